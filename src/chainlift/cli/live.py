"""What the verbs share that work under a running VM: ``--qmp`` and its company."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.libvirt import Domain
    from chainlift.lift.live.lifts import LiveResult
    from chainlift.lift.live.session import LiveSession

_F = TypeVar("_F", bound="Callable[..., object]")

#: A command that took longer was noticed by the guest, if QEMU's main loop serves its disk.
_NOTICED_S = 0.3


def live_options(function: _F) -> _F:
    """Add ``--qmp``, ``--libvirt``, ``--device`` and ``--node``; either of the first two is the parameter ``qmp``."""

    @wraps(function)
    def with_domain(*, qmp: Path | Domain | None, libvirt: str | None, **others: object) -> object:
        if libvirt is not None:
            from chainlift.lift.live.libvirt import Domain

            if qmp is not None:
                raise click.UsageError("--qmp and --libvirt are two ways to the same thing: choose one")
            qmp = Domain(libvirt)
        return function(qmp=qmp, **others)

    wrapped = cast("_F", with_domain)
    for option in (
        click.option("--node", metavar="NAME", help="With a running QEMU: the disk whose active layer is this node."),
        click.option("--device", metavar="ID", help="With a running QEMU: the disk of this device or export."),
        click.option("--libvirt", metavar="DOMAIN", help="Work under the running QEMU of this libvirt domain."),
        click.option(
            "--qmp",
            type=click.Path(path_type=Path),
            metavar="SOCKET",
            help="Work under the running QEMU on this socket.",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped


def need_image(image: str | None, device: str | None, node: str | None, *, content: bool = False) -> str:
    """Return the image of a verb that works at rest.

    :raise UsageError: if there is none, or options that only go with ``--qmp``.
    """
    if device or node:
        raise click.UsageError("--device and --node go with --qmp or --libvirt")
    if image is None:
        raise click.UsageError("Missing argument 'IMAGE' (or --qmp SOCKET, or --libvirt DOMAIN)")
    if content:
        raise click.UsageError("--content goes with --qmp or --libvirt; see also chainlift verify --content")
    return image


@contextmanager
def session(qmp: Path | Domain, *, device: str | None, node: str | None, image: str | None) -> Iterator[LiveSession]:
    """Open the disk that is meant, gently, and say on standard error what an operator should know."""
    from chainlift.lift.live.lifts import be_gentle
    from chainlift.lift.live.session import open_session

    be_gentle()
    with open_session(qmp, device=device, node=node, image=None if image is None else Path(image)) as opened:
        for warning in opened.warnings:
            click.echo(f"chainlift: warning: {warning}", err=True)
        yield opened


def describe_switch(result: LiveResult) -> str:
    """Return how the switch went: ``switched under the running QEMU in 0.74 s, no command took longer than 49 ms``."""
    from chainlift.units import format_seconds

    timings = result.timings
    longest = timings.longest_s()
    if longest > _NOTICED_S:
        slow = next(name for name, seconds in timings.commands if seconds == longest)
        click.echo(
            f"chainlift: warning: {slow} took {format_seconds(longest)}, and a disk that QEMU's main loop serves stood "
            "still meanwhile; fewer extents (--copy-budget) or a squash make it shorter",
            err=True,
        )
    for left in result.left:
        click.echo(f"chainlift: warning: not cleaned up: {left}", err=True)
    return (
        f"switched under the running QEMU in {format_seconds(timings.total_s())}, "
        f"no command took longer than {format_seconds(longest)}"
    )
