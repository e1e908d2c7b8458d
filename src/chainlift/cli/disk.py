"""What the verbs share that work on a disk, at rest or running: its options, and what is said of a switch."""

from __future__ import annotations

import shlex
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.disk import Disk
    from chainlift.lift.tidy import Tidied
    from chainlift.qemu.binary import Qemu, Tool

_F = TypeVar("_F", bound="Callable[..., object]")

#: Of every verb that talks to a running QEMU. Shorter than a second, a QEMU that is well is taken for one that is not.
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=1),
    metavar="S",
    help="With a running QEMU: wait so long for its socket to be free, and for each answer.  [default: 10 and 120]",
)

#: A command that took longer was noticed by the guest, if QEMU's main loop serves its disk.
_NOTICED_S = 0.3


@dataclass(frozen=True)
class DiskName:
    """Which disk is meant: what the options of :func:`disk_options` say."""

    image: str | None
    qmp: Path | None
    libvirt: str | None
    device: str | None
    node: str | None
    force: bool = False
    timeout_s: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether a running QEMU has it."""
        return self.qmp is not None or self.libvirt is not None

    @property
    def tools(self) -> list[Tool]:
        """The programs of a QEMU that are needed to switch it."""
        return ["storage-daemon"] if self.qmp is not None else ["img", "storage-daemon"]

    @property
    def as_options(self) -> str:
        """The same as words of a command line."""
        given = (("--qmp", self.qmp), ("--libvirt", self.libvirt), ("--device", self.device), ("--node", self.node))
        words = [word for option, value in given if value is not None for word in (option, str(value))]
        return shlex.join([*([self.image] if self.image is not None else []), *words])

    @contextmanager
    def open(
        self, qemu: Qemu | None = None, *, by_monitor: bool | None = None, directory: Path | None = None
    ) -> Iterator[Disk]:
        """Open it, and say on standard error what an operator should know.

        :param by_monitor: of a libvirt domain, as ``directory``: see :func:`chainlift.lift.open.open_disk`.
        """
        from chainlift.host.priority import lower_priority
        from chainlift.lift.open import open_disk

        if self.is_running:
            lower_priority()
        with open_disk(
            self.image,
            qmp=self.qmp,
            libvirt=self.libvirt,
            device=self.device,
            node=self.node,
            qemu=qemu,
            force=self.force,
            timeout_s=self.timeout_s,
            by_monitor=by_monitor,
            directory=directory,
        ) as disk:
            for warning in getattr(getattr(disk, "session", disk), "warnings", ()):
                click.echo(f"chainlift: warning: {warning}", err=True)
            yield disk


def disk_options(function: _F) -> _F:
    """Add the argument IMAGE and what says where its disk is; the function gets a :class:`DiskName` as ``name``."""

    @wraps(function)
    def with_name(
        *,
        image: str | None,
        qmp: Path | None,
        libvirt: str | None,
        device: str | None,
        node: str | None,
        timeout_s: float | None,
        force: bool = False,
        **others: Any,  # noqa: ANN401 - the verb's own
    ) -> object:
        if qmp is not None and libvirt is not None:
            raise click.UsageError("--qmp and --libvirt are two ways to the same thing: choose one")
        name = DiskName(image, qmp, libvirt, device, node, force, timeout_s)
        if not name.is_running:
            if device or node:
                raise click.UsageError("--device and --node go with --qmp or --libvirt")
            if timeout_s is not None:
                raise click.UsageError("--timeout goes with --qmp or --libvirt")
            if image is None:
                raise click.UsageError("Missing argument 'IMAGE' (or --qmp SOCKET, or --libvirt DOMAIN)")
        return function(name=name, **others)

    wrapped = cast("_F", with_name)
    for option in (
        timeout_option,
        click.option("--node", metavar="NAME", help="With a running QEMU: the disk whose active layer is this node."),
        click.option(
            "--device",
            metavar="ID",
            help="With a running QEMU: the disk of this device, export or target (vda).",
        ),
        click.option("--libvirt", metavar="DOMAIN", help="Work under the running QEMU of this libvirt domain."),
        click.option(
            "--qmp",
            type=click.Path(path_type=Path),
            metavar="SOCKET",
            help="Work under the running QEMU on this socket.",
        ),
        click.argument("image", type=click.Path(), required=False),
    ):
        wrapped = option(wrapped)
    return wrapped


#: Options of every verb that switches a disk.
qemu_option = click.option(
    "--qemu", "qemu_name", default="host", metavar="QEMU", help="Whose tools compare and switch."
)
content_option = click.option(
    "--content", is_flag=True, help="Compare everything before the switch, not only a sample."
)
force_option = click.option(
    "--force", is_flag=True, help="Also where libvirt or another manager keeps its own record of the chain."
)
search_option = click.option(
    "--search",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    metavar="DIR",
    help="Look here, too, for other images before anything is deleted; without: in IMAGE's directory.",
)
lift_dir_option = click.option(
    "--lift-dir",
    type=click.Path(path_type=Path, exists=True, file_okay=False, writable=True),
    metavar="DIR",
    help="Make IMAGE.lift/ in DIR instead of beside IMAGE; with --libvirt also the new image of one on a block device.",
)


def describe_switch(disk: Disk, *, shorter: str = "") -> str:
    """Return how a running disk's switch went: ``; switched under the running QEMU in 0.74 s, no command took ...``.

    What was left is said on standard error.

    :param shorter: what would make its longest command shorter.
    """
    from chainlift.errors import one_line
    from chainlift.units import format_seconds

    timings = getattr(disk, "timings", None)
    if timings is None:
        for left in getattr(disk, "left", ()):
            click.echo(one_line(f"chainlift: {left}"), err=True)
        return str(getattr(disk, "outcome", ""))
    longest = timings.longest_s()
    if longest > _NOTICED_S:
        slow = next(name for name, seconds in timings.commands if seconds == longest)
        click.echo(
            f"chainlift: warning: {slow} took {format_seconds(longest)}, and a disk that QEMU's main loop serves stood "
            f"still meanwhile{shorter and '; '}{shorter}",
            err=True,
        )
    for left in getattr(disk, "left", ()):
        click.echo(f"chainlift: warning: not cleaned up: {left}", err=True)
    return (
        f"; switched under the running QEMU in {format_seconds(timings.total_s())}, "
        f"no command took longer than {format_seconds(longest)}"
    )


def say_tidied(tidied: Tidied, *, asked: bool) -> None:
    """Say on standard error what was removed of older lifts, and what was kept and why."""
    if tidied.searched:
        click.echo(f"chainlift: {tidied.searched}", err=True)
    if tidied.removed:
        click.echo(f"chainlift: removed {', '.join(str(path) for path in tidied.removed)}", err=True)
    for path, why in tidied.kept.items():
        if asked:
            click.echo(f"chainlift: kept {path}: {why}", err=True)
        else:
            click.echo(f"chainlift: {path} is not needed any more by this image; --clean removes it", err=True)
