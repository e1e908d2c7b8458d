"""The kinds of guests by the names that a plan gives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.guest.debian import DebianGuest
from chainlift.guest.micro import MicroGuest
from chainlift.guest.own import WORK, Firmware, OwnImage
from chainlift.guest.ssh import SshLogin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.guest.interface import GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator


def guest_kind(
    name: str,
    qemu: Qemu,
    *,
    accelerator: Accelerator = "tcg",
    suite: str | None = None,
    firmware: Firmware = "bios",
    kernel: Path | None = None,
    initrd: Path | None = None,
    append: str = "",
    ssh_key: Path | None = None,
    ssh_user: str = "root",
    ssh_port: int = 22,
    directory: str | None = None,
    packages: Sequence[str] = (),
) -> GuestKind:
    """Return the kind of guest that a plan names; nothing is made yet.

    :param name: ``micro``, ``debian``, or the path of a person's own image.
    :param qemu: what makes the disk of an own image.
    :param accelerator: what it will run on.
    :param suite: the Debian release that ``micro`` or ``debian`` is made of; None is the host's own.
    :param firmware: what an own image boots by, where no ``kernel`` (with ``initrd`` and ``append``) is given.
    :param ssh_key: the private key to reach an own image with, as ``ssh_user``; None: it has the guest agent.
    :param directory: where an own image keeps the workload's file.
    :param packages: what a Debian is to have beside what every study needs; an own image has them already.
    :raise InputError: if there is no such kind, a file is not there, or an option is not for this kind.
    :raise MissingToolError: if an option needs what this host does not have.
    """
    own = {
        "firmware": firmware != "bios",
        "kernel": kernel is not None,
        "initrd": initrd is not None,
        "append": bool(append),
        "ssh_key": ssh_key is not None,
        "directory": directory is not None,
    }
    made_here = name in ("micro", "debian")
    if made_here and (option := next((option for option, given in own.items() if given), None)):
        raise InputError(f"{option} is for an image of your own, not for {name!r}")
    if not made_here and suite is not None:
        raise InputError("suite is for the guests micro and debian, not for an image of your own")
    if name == "micro":
        return MicroGuest(suite=suite)
    if name == "debian":
        return DebianGuest(suite=suite, accelerator=accelerator, packages=packages)
    image = Path(name).expanduser()
    if not image.exists():
        raise InputError(f"there is no guest {name!r} and no image of that name", hint="give micro, debian or a path")
    kind = OwnImage(
        image.absolute(),
        qemu,
        accelerator=accelerator,
        firmware=firmware,
        kernel=kernel,
        initrd=initrd,
        append=append,
        login=None if ssh_key is None else SshLogin(ssh_key.expanduser(), ssh_user, ssh_port),
        work=directory or WORK,
    )
    kind.prepare()
    return kind
