"""A snapshot over a disk's active layer, asked of libvirt so that a copy is short, and how it is taken back."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from chainlift.errors import QemuError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.domain.blockcopy import read_disk
from chainlift.lift.domain.overlay import make_empty
from chainlift.lift.record.overlay import OverlayMark, read_overlay_mark

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.host.virsh import Virsh
    from chainlift.lift.neighbours.domain_xml import DiskDefinition

#: Kinds of overlays that are merged into the layer below.
_MERGED: Final = ("snapshot", "passing")
_SNAPSHOT_S: Final = 120.0
#: What was written since is merged back by a block job.
_COMMIT_S: Final = 3600.0


def put_snapshot(
    virsh: Virsh,
    target: str,
    image: Path,
    disks: Sequence[DiskDefinition],
    directory: Path | None = None,
    *,
    passing: bool = False,
) -> Path:
    """Have libvirt put a new overlay over a disk's active layer, without an entry in its list of snapshots.

    :param disks: all of the domain: the others are left out.
    :param directory: where the overlay is made; None: beside the image.
    :param passing: whether the image will be the disk again in a moment.
    :return: the overlay, which is the disk now.
    :raise QemuError: in libvirt's words, if it refuses; nothing has changed.
    """
    # An empty file is taken as a place for the new image, and has owner, mode and mark already.
    mark = OverlayMark("snapshot", virsh.uuid, target, used=True)
    mark = replace(mark, kind="passing", home=str(image)) if passing else mark
    overlay = make_empty(image, mark, directory)
    words = ["--diskspec", f"{target},snapshot=external,file={_escaped(str(overlay))}"]
    for disk in disks:
        if disk.target != target:
            words += ["--diskspec", f"{disk.target},snapshot=no"]
    try:
        virsh.tell("snapshot-create-as", "--disk-only", "--no-metadata", "--atomic", *words, timeout_s=_SNAPSHOT_S)
    except BaseException:
        if not _is_active(virsh, target, overlay):
            overlay.unlink(missing_ok=True)
            raise
    return overlay


def held_bytes(image: Path) -> int:
    """Return at most how much libvirt copies of an active layer: of a device all that fits on it."""
    if not image.is_block_device():
        return image.stat().st_blocks * 512
    with image.open("rb") as device:
        return device.seek(0, os.SEEK_END)


def commit_back(virsh: Virsh, target: str) -> Path | None:
    """Merge a snapshot of ours back into the layer below and remove it; nothing where the active layer is none.

    :return: the overlay that was removed.
    :raise QemuError: in libvirt's words, if it refuses.
    """
    disk = read_disk(virsh, target)
    overlay = None if disk is None else disk.path
    mark = None if overlay is None else read_overlay_mark(overlay)
    if overlay is None or mark is None or mark.kind not in _MERGED or mark.domain != virsh.uuid:
        return None
    try:
        virsh.tell("blockcommit", target, "--active", "--shallow", "--pivot", "--wait", timeout_s=_COMMIT_S)
    except QemuError:
        if _is_active(virsh, target, overlay):
            raise
    if _is_active(virsh, target, overlay):
        raise QemuError(f"libvirt did not merge it into the layer below {target}", path=overlay)
    with suppress(OSError):
        overlay.unlink()
    return overlay


def _is_active(virsh: Virsh, target: str, overlay: Path) -> bool:
    disk = read_disk(virsh, target) or read_disk(virsh, target, inactive=True)
    return disk is not None and disk.path is not None and is_same_file(disk.path, overlay)


def _escaped(path: str) -> str:
    """Return a path as virsh takes one in ``--diskspec``: a comma twice."""
    return path.replace(",", ",,")
