"""A disk's own file: an overlay that was the disk for a moment is merged back into it.

``prune`` has libvirt open a disk's chain anew. The active layer's file must keep its name, so it is not copied: an
overlay is put over it, libvirt copies that over the chain as it is to be, and merges it into the active layer there
(:meth:`chainlift.lift.domain.disk.DomainDisk.reopen`). The overlays say in their marks which file that is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import QemuError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.domain.blockcopy import read_disk
from chainlift.lift.domain.overlay import find_overlays
from chainlift.lift.domain.setaside import commit_back
from chainlift.lift.record.overlay import read_overlay_mark, write_overlay_mark
from chainlift.lift.record.pointer import led_to, read_pointer

if TYPE_CHECKING:
    from chainlift.host.virsh import Virsh


def settle(virsh: Virsh, target: str, first: Path) -> None:
    """Remove the overlay that libvirt has copied, and merge the copy, which is the disk now, into its home.

    :param first: what was the disk before; nothing of it is needed.
    :raise QemuError: in libvirt's words, if it refuses to merge it.
    """
    with suppress(OSError):
        first.unlink()
    return_home(virsh, target)


def return_home(virsh: Virsh, target: str) -> list[str]:
    """Merge a disk that is one for a moment into its home, if it still stands on that.

    :return: what was done, as a phrase; nothing where the disk has no other home.
    :raise QemuError: in libvirt's words, if it refuses.
    """
    disk = read_disk(virsh, target)
    mark = None if disk is None or disk.path is None else read_overlay_mark(disk.path)
    if disk is None or disk.path is None or mark is None or mark.home is None or mark.domain != virsh.uuid:
        return []
    overlay, pointer = disk.path, read_pointer(disk.path)[1]
    if pointer is None or not is_same_file(led_to(overlay, pointer), Path(mark.home)):
        return []
    if disk.mirror is not None and disk.mirror.job == "active-commit":
        # Of a run that was killed. It is begun anew: nothing is lost by that.
        with suppress(QemuError):
            virsh.tell("blockjob", target, "--abort")
    write_overlay_mark(overlay, replace(mark, kind="passing", used=True))
    commit_back(virsh, target)
    return [f"merged {overlay} into {mark.home}"]


def left_behind(virsh: Virsh, target: str, place: Path | None) -> list[Path]:
    """Return overlays that were the disk for a moment and were not removed: the disk is at home.

    :param place: where they are.
    """
    disk = read_disk(virsh, target)
    defined = read_disk(virsh, target, inactive=True) or disk
    if disk is None or disk.path is None or defined is None or defined.path is None:
        return []
    if place is None or not is_same_file(disk.path, defined.path):
        return []
    found = find_overlays(place, virsh.uuid, target)
    return [path for path, mark in found.items() if mark.kind == "passing" and mark.home == str(disk.path)]
