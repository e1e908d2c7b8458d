"""The QEMU that a person names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.qemu.binary import WITHOUT, find_installed

if TYPE_CHECKING:
    from collections.abc import Collection

    from chainlift.qemu.binary import Qemu, Tool


def find_qemu(spec: str = "host", *, need: Collection[Tool] = ("system", "img", "io")) -> Qemu:
    """Find a QEMU and ask for its version.

    >>> qemu = find_qemu("host", need=["img", "storage-daemon"])
    >>> qemu.label, qemu.version >= (5, 0, 0)
    ('host', True)

    :param spec: ``host`` for what is installed; ``debian:SUITE`` for what ``chainlift qemu add`` has unpacked; the path
        of a system emulator, a build directory or an installation's prefix; any of these with ``,without=FUNCTION`` for
        the copy that ``chainlift qemu ablate`` has made of it.
    :param need: the programs that must be there; what switches and compares a disk are ``img`` and ``storage-daemon``.
    :return: where its programs are, and which version they have.
    :raise MissingToolError: if one of them is not, or cannot be run, or is older than 5.0.
    :raise InputError: if ``spec`` names nothing that we know.
    """
    if WITHOUT in spec and not Path(spec).exists():
        from chainlift.qemu.ablated import find_ablated

        original, _, function = spec.rpartition(WITHOUT)
        return find_ablated(find_qemu(original, need=()), function, need=need)
    if spec.startswith("debian:"):
        from chainlift.qemu.releases import find_release

        return find_release(spec)
    return find_installed(spec, need=need)
