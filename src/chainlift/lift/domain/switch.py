"""The switch of a domain's disk by libvirt's own block copy.

An overlay is prepared over what the disk is to stand on. libvirt copies into it what the active layer has of its own,
and makes it the disk (``blockcopy --shallow``, ``blockjob --pivot``).
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from chainlift.errors import ChainliftError, InputError, OperationError, UnknownStateError
from chainlift.host import interrupts
from chainlift.host.filesystem import is_same_file
from chainlift.lift.domain import chain_limit, guard, snapshots
from chainlift.lift.domain.blockcopy import BlockCopy, read_disk
from chainlift.lift.domain.new_chain import prepare_chain
from chainlift.lift.domain.overlay import make_empty
from chainlift.lift.domain.setaside import commit_back, put_snapshot
from chainlift.lift.neighbours.domain_xml import copy_text
from chainlift.lift.neighbours.locks import is_written
from chainlift.lift.record.overlay import write_overlay_mark
from chainlift.lift.record.pointer import led_to, open_pointer, read_pointer
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.lift.disk import Change
    from chainlift.lift.domain.libvirt_disk import LibvirtDisk
    from chainlift.lift.domain.new_chain import NewChain


def switch(
    disk: LibvirtDisk, changes: Sequence[Change], *, rate_bytes_per_s: int | None = None, at: Path | None = None
) -> None:
    """Have libvirt switch the disk to an overlay over what the changes lead to.

    Where an image further down is to stand on something else, it and those above are copied: none that is there is
    changed.

    :param rate_bytes_per_s: libvirt copies at most so fast.
    :param at: what the overlay is to be called; None: as libvirt calls those of snapshots.
    :raise OperationError: if it could not be switched; everything is as before.
    :raise UnknownStateError: if it is not known what is left.
    """
    if not changes:
        raise InputError("there is nothing to switch", path=disk.image)
    began_s = time.monotonic()
    before, chain = disk.image, disk.chain()
    new = prepare_chain(disk.image, changes, disk.mark("layer"), disk.qemu)
    try:
        interrupts.between_steps()
        switch_to(disk, new, rate_bytes_per_s, at=at)
    except UnknownStateError:
        raise
    except BaseException:
        new.discard()
        raise
    disk.ask_again()
    took = format_seconds(time.monotonic() - began_s)
    disk.outcome = f"; libvirt switched {disk.target} from {before} to {disk.image} in {took}"
    _say_afterwards(disk, new, chain)


def switch_to(
    disk: LibvirtDisk, new: NewChain, rate_bytes_per_s: int | None, *, at: Path | None = None, home: Path | None = None
) -> None:
    """Have libvirt copy the active layer into an overlay over a chain, and make that the disk.

    :param home: the image that the overlay is to be merged into in a moment.
    :raise OperationError: if it could not be switched; everything is as before, but for what was prepared.
    :raise UnknownStateError: if it is not known what is left.
    """
    with open_pointer(disk.image, new.pointer) as chain:
        guard.refuse_strange(chain, disk.image)
        chain_limit.refuse_longer(disk.virsh.daemon_version, chain.layers, disk.image)
        mark = replace(disk.mark("copy", new.pointer.name), home=None if home is None else str(home))
        overlay = make_empty(disk.image, mark, disk.elsewhere, at=at)
        disk.copy = copy = BlockCopy(disk.virsh, disk.target, overlay)
        text = copy_text(overlay, chain.layers)
    disk.reached("overlay")
    try:
        copy.start(text, rate_bytes_per_s=rate_bytes_per_s)
        disk.reached("begun")
        copy.wait()
        disk.reached("ready")
        _check_again(disk, copy, new)
        new.mark_used()
        write_overlay_mark(overlay, replace(mark, used=True))
        disk.reached("used")
        copy.pivot()
    except BaseException as error:
        if not copy.settle():
            overlay.unlink(missing_ok=True)
            raise
        if not isinstance(error, (KeyboardInterrupt, ChainliftError)):
            raise
    disk.reached("switched")


def _check_again(disk: LibvirtDisk, copy: BlockCopy, new: NewChain) -> None:
    """Refuse to pivot where the overlay is not what was prepared.

    Only the uppermost layer is copied: what a snapshot has put below it before the job began would be lost. During
    the job libvirt takes none.

    :raise OperationError: saying what it is instead.
    """
    now = read_disk(disk.virsh, disk.target)
    if now is None or now.path is None or not is_same_file(now.path, disk.image):
        what = "it does not run" if now is None else f"{now.path} is"
        raise OperationError(
            f"is not the active layer of {disk.name} any more: {what}", path=disk.image, hint="run it again"
        )
    named = read_pointer(copy.overlay)[1]
    if named is None or not is_same_file(led_to(copy.overlay, named), Path(new.pointer.name)):
        raise OperationError(
            f"libvirt's copy stands on {None if named is None else named.name}, not on {new.pointer.name}",
            path=copy.overlay,
        )
    if is_written(Path(new.pointer.name)):
        raise OperationError("somebody writes to it", path=new.pointer.name)


def has_switched(disk: LibvirtDisk) -> bool:
    """Whether the overlay may be the disk, for libvirt or at the next start."""
    if disk.copy is None:
        return False
    try:
        for inactive in (False, True):
            found = read_disk(disk.virsh, disk.target, inactive=inactive)
            if found is not None and found.path is not None and is_same_file(found.path, disk.copy.overlay):
                return True
    except ChainliftError:
        return True
    # Somebody keeps it because it may be.
    return disk.copy.overlay.exists()


@contextmanager
def over_a_snapshot(disk: LibvirtDisk, *, passing: bool = False) -> Iterator[None]:
    """Put the active layer below a snapshot; merged back, where the block fails and nothing was switched.

    :param passing: whether the active layer will be the disk again in a moment.
    """
    below = disk.image
    put_snapshot(disk.virsh, disk.target, below, disk.all_disks(), disk.elsewhere, passing=passing)
    disk.reached("set aside")
    try:
        disk.ask_again()
        _require_stands_on(disk, below)
        yield
    except UnknownStateError:
        raise
    except BaseException:
        if not has_switched(disk):
            try:
                commit_back(disk.virsh, disk.target)
            except ChainliftError as error:
                disk.left.append(f"{disk.image}: the snapshot over {below} was not merged back ({error.what})")
        raise


def _require_stands_on(disk: LibvirtDisk, below: Path) -> None:
    """Refuse to go on where somebody took a snapshot right before ours."""
    found = next(iter(disk.definition.below or ()), None)
    if found is None or not is_same_file(Path(found), below):
        raise OperationError(
            f"is not the active layer of {disk.name} any more: {found} is", path=below, hint="run it again"
        )


def _say_afterwards(disk: LibvirtDisk, new: NewChain, before: Sequence[Path]) -> None:
    """See what the switch has changed for libvirt's users, and say what they must do; nothing here fails."""
    try:
        snapshots.follow(disk.virsh, disk.target, new.moved(disk.image))
        disk.left += snapshots.say_left(disk.virsh, disk.target, disk.chain(), before)
    except (ChainliftError, OSError, ET.ParseError) as error:
        disk.left.append(f"libvirt's list of snapshots was not brought up to date: {error}")
    with suppress(ChainliftError, OSError):
        if not disk.virsh.is_persistent():
            disk.left.append(
                f"the domain is transient: whoever starts it again must name {disk.image} as {disk.target}"
            )
        next_one = read_disk(disk.virsh, disk.target, inactive=True)
        if next_one is not None and next_one.path is not None and not is_same_file(next_one.path, disk.image):
            disk.left.append(
                f"the domain's persistent definition names {next_one.path} as {disk.target}, as it did before: it "
                "starts with that"
            )
