"""The kinds of guests by the names that a plan gives them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.guest.debian import DebianGuest
from chainlift.guest.micro import MicroGuest

if TYPE_CHECKING:
    from chainlift.guest.interface import GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator


def guest_kind(
    name: str,
    qemu: Qemu,  # noqa: ARG001 - what an own image will be grown with
    *,
    accelerator: Accelerator = "tcg",
    suite: str | None = None,
) -> GuestKind:
    """Return the kind of guest that a plan names.

    :param name: ``micro`` or ``debian``.
    :param qemu: what lays a workload's data down where the guest itself must write it.
    :param accelerator: what it will run on.
    :param suite: the Debian release that ``micro`` or ``debian`` is made of; None is the host's own.
    :raise InputError: if there is no such kind.
    """
    if name == "micro":
        return MicroGuest(suite=suite)
    if name == "debian":
        return DebianGuest(suite=suite, accelerator=accelerator)
    raise InputError(f"there is no guest {name!r}", hint="give micro or debian")
