"""Layers of a domain's disk that were written anew, opened by libvirt while the active layer keeps its file.

An overlay comes between for a moment, is copied over the new chain, and is merged into the active layer there. Where
libvirt takes no layer more, the active layer itself is copied, and copied back to its name.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, InputError, UnknownStateError
from chainlift.host import interrupts
from chainlift.host.filesystem import is_same_file
from chainlift.lift.disk import Change
from chainlift.lift.domain import chain_limit, home
from chainlift.lift.domain.leftovers import remove
from chainlift.lift.domain.new_chain import NewChain
from chainlift.lift.domain.switch import has_switched, over_a_snapshot, switch, switch_to
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.mark import read_mark, state_directory, write_mark
from chainlift.lift.record.pointer import read_pointer
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.domain.libvirt_disk import LibvirtDisk


def reopen(disk: LibvirtDisk) -> None:
    """Have libvirt open the chain that the active layer's header names anew; see :meth:`DomainDisk.reopen`.

    :raise OperationError: if it could not be switched; the layers are open as before.
    :raise UnknownStateError: if it is not known which are open.
    """
    own, began_s = disk.image, time.monotonic()
    pointer = read_pointer(own)[1]
    if pointer is None:
        raise InputError("has no backing file", path=own)
    disk.copy = None
    try:
        if chain_limit.takes_one_more(disk.virsh.daemon_version, len(disk.definition.below or ())):
            _reopen_under(disk, own)
        else:
            _move_and_return(disk, own, pointer)
    except UnknownStateError:
        raise
    except BaseException as error:
        if not has_switched(disk):
            raise
        raise UnknownStateError(
            f"{error}; libvirt may have switched the disk {disk.target}",
            path=disk.image,
            hint=f"see virsh domblklist {disk.virsh.domain.name}: both sides read the same, nothing was deleted",
        ) from error
    took = format_seconds(time.monotonic() - began_s)
    disk.outcome = f"; libvirt has opened what is under {disk.target} anew in {took}"
    if not is_same_file(own, disk.image):
        disk.left.append(f"the disk {disk.target} is {disk.image} now, not {own}")


def _reopen_under(disk: LibvirtDisk, own: Path) -> None:
    with over_a_snapshot(disk, passing=True):
        first = disk.image
        switch_to(disk, NewChain(Pointer(str(own), "qcow2")), None, home=own)
    interrupts.too_late()
    try:
        disk.ask_again()
        home.settle(disk.virsh, disk.target, first)
        disk.ask_again()
    except (ChainliftError, OSError) as error:
        disk.left.append(
            f"{disk.image} was not merged into {own} ({error}): chainlift clean --libvirt "
            f"{disk.virsh.domain.name} does so"
        )


def _move_and_return(disk: LibvirtDisk, own: Path, pointer: Pointer) -> None:
    mark = read_mark(own, state_directory())
    switch(disk, [Change(own, pointer, pointer)])
    interrupts.too_late()
    first = disk.image
    try:
        removed, kept = remove([own], image=first) if own.is_file() else ([], {own: "it is no file"})
        if removed:
            disk.copy = None
            switch(disk, [Change(first, pointer, pointer)], at=own)
            first.unlink()
        disk.left += [f"{path} stays: {why}" for path, why in kept.items()]
    except UnknownStateError:
        raise
    except (ChainliftError, OSError) as error:
        disk.left.append(f"libvirt did not copy {first} back to {own}: {error}")
    if mark is not None:
        with suppress(OSError):
            write_mark(disk.image, mark, state_directory())
