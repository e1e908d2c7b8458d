"""What killed runs have left of a domain's disk: jobs of libvirt, and files that nobody uses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.host.filesystem import is_same_file
from chainlift.lift.domain.blockcopy import BlockCopy, read_disk
from chainlift.lift.domain.home import left_behind, return_home
from chainlift.lift.domain.overlay import find_overlays
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.record.lifts import find_lift
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.overlay import read_overlay_mark
from chainlift.lift.tidy import remove_leftovers, remove_lifts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.host.virsh import Virsh
    from chainlift.lift.record.overlay import OverlayMark


def put_in_order(virsh: Virsh, target: str, directory: Path | None = None) -> list[str]:
    """End a copy that a killed run has begun on a disk, and remove what was made for it and never used.

    :param directory: where overlays of a disk on a block device are.
    :return: what was done, each as a phrase.
    :raise UnknownStateError: if it cannot be told what became of the copy.
    """
    disk = read_disk(virsh, target)
    if disk is None or disk.path is None:
        return []
    done = []
    place = disk.path.parent if disk.kind == "file" else directory
    left = {
        path: mark
        for path, mark in ({} if place is None else find_overlays(place, virsh.uuid, target)).items()
        if not mark.used and not is_same_file(path, disk.path)
    }
    path = None if disk.mirror is None or disk.mirror.path is None else Path(disk.mirror.path)
    mark = None if path is None else read_overlay_mark(path)
    if path is not None and mark is not None and (mark.domain, mark.kind) == (virsh.uuid, "copy"):
        if BlockCopy(virsh, target, path).settle():
            return [f"the disk is {path} now", *return_home(virsh, target)]
        done.append("ended libvirt's copy")
        # It was never the disk, and the copies of layers below it were made for it alone.
        while path is not None and mark is not None:
            left[path] = mark
            path = None if mark.over is None else Path(mark.over)
            mark = None if path is None else read_overlay_mark(path)
    done += _remove(left, disk.path)
    done += return_home(virsh, target)
    removed, _ = remove(left_behind(virsh, target, place), image=disk.path)
    return done + [f"removed {path}" for path in removed]


def _remove(marks: dict[Path, OverlayMark], image: Path) -> list[str]:
    """Remove overlays that nobody needs, and lifts that were made for them alone."""
    # Of an image on a device they lie elsewhere.
    places = list(dict.fromkeys(path.parent for path in marks))
    removed, _ = remove(list(marks), image=image, search=places)
    lifts = []
    for path in removed:
        over = marks[path].over
        lift = None if over is None or marks[path].kind != "copy" else find_lift(image, Pointer(over, "qcow2"))
        if lift is not None:
            lifts.append(lift.file)
    if lifts:
        removed += remove_lifts(list(dict.fromkeys(lifts)), image=image, search=places, used=False).removed
        remove_leftovers(image)
    return [f"removed {path}" for path in removed]


def remove(files: Sequence[Path], *, image: Path, search: Sequence[Path] = ()) -> tuple[list[Path], dict[Path, str]]:
    """Remove overlays, but for those that somebody needs; return what was removed, and what stays and why.

    :param image: of the disk; its directory is searched.
    """
    there = [path for path in files if path.exists()]
    if not there:
        return [], {}
    kept = Neighbourhood(image, search=search).sort_out(there)
    removed = []
    for path in there:
        if path not in kept:
            path.unlink()
            removed.append(path)
    return removed, kept
