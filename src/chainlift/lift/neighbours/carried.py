"""What a layer carries beside a disk's data, and what of it can be taken along.

Deleting a layer deletes its internal snapshots and its bitmaps too, and leaving it out of a chain leaves the bitmaps
behind: a backup's checkpoint is a bitmap of one name in several layers, and the next incremental backup is silently too
small without one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.errors import ImageError, QemuError
from chainlift.host.process import last_lines
from chainlift.host.scratch import ScratchDirectory
from chainlift.qcow2.bitmaps import Bitmap, count_set_bits, list_bitmaps, read_bits
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header
from chainlift.qcow2.layout import QCOW_MAGIC
from chainlift.qcow2.snapshots import InternalSnapshot, list_snapshots
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from chainlift.chain import Layer
    from chainlift.qemu.binary import Qemu


_STORE_S: Final = 600.0


@dataclass(frozen=True)
class _Part:
    """A bitmap of one layer."""

    path: Path
    bitmap: Bitmap
    set_bits: int


@dataclass(frozen=True)
class Carried:
    """What one file carries; all is empty for a file that is no qcow2 image."""

    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[Bitmap, ...] = ()
    #: Set bits of each bitmap, by its name; a bitmap in use has none that count, and is left out.
    set_bits: dict[str, int] = field(default_factory=dict)
    #: Bytes of the disk; 0 for a file that is no qcow2 image.
    virtual_size: int = 0

    @property
    def irreplaceable(self) -> str | None:
        """What nobody has any more if the file is deleted, as a phrase; None where there is nothing of the kind.

        Bitmaps are not told here: they can be carried over.
        """
        if not self.snapshots:
            return None
        first = self.snapshots[0]
        state = " with the machine's state" if first.vm_state_bytes else ""
        more = f" and {len(self.snapshots) - 1} more" if len(self.snapshots) > 1 else ""
        return f"it holds the internal snapshot {first.name or first.id}{state}{more}"


def read_carried(path: str | os.PathLike[str]) -> Carried:
    """Look at what a file carries.

    :raise ImageError: if it cannot be opened, or is a malformed qcow2 image.
    """
    file = ImageFile(str(path))
    try:
        if file.pread(0, 4) != QCOW_MAGIC.to_bytes(4, "big"):
            return Carried()
        return carried_by(Image(file, read_header(file)))
    finally:
        file.close()


def carried_by(image: Image) -> Carried:
    """Look at what an open image carries.

    :raise ImageError: if its snapshot table or a bitmap is malformed.
    """
    bitmaps = tuple(list_bitmaps(image))
    return Carried(
        snapshots=tuple(list_snapshots(image)),
        bitmaps=bitmaps,
        set_bits={bitmap.name: count_set_bits(image, bitmap) for bitmap in bitmaps if not bitmap.in_use},
        virtual_size=image.header.virtual_size,
    )


def has_bitmaps(layer: Layer) -> bool:
    """Whether a layer of an open chain has persistent bitmaps."""
    return layer.image is not None and bool(list_bitmaps(layer.image))


def carry_bitmaps(qemu: Qemu, layers_top_first: Sequence[Layer], target: Path) -> list[str]:
    """Copy the persistent bitmaps of layers into the image that replaces them.

    A storage daemon of our own merges them all, as ``qemu-img bitmap --merge`` does one at a time.

    Bitmaps of one name in several layers become one, with all their bits and the smallest granularity. It is enabled
    where the topmost of them is.

    :param layers_top_first: of an open chain.
    :param target: a qcow2 image of version 3 without bitmaps, which nobody has open.
    :return: the names of the bitmaps that it has now.
    :raise ImageError: if a bitmap cannot be merged: it was not saved properly, or is one of a disk of another size;
        the target was not touched.
    :raise QemuError: if QEMU failed; the target may have some of the bitmaps.
    """
    carried = [
        (Path(layer.file.path), carried_by(layer.image)) for layer in layers_top_first if layer.image is not None
    ]
    if not any(content.bitmaps for _, content in carried):
        return []
    size = read_carried(target).virtual_size
    merged: dict[str, list[_Part]] = {}
    for path, content in carried:
        for bitmap in content.bitmaps:
            if bitmap.in_use:
                raise _cannot_be_carried(path, bitmap, "was not saved properly")
            if content.virtual_size != size:
                raise _cannot_be_carried(path, bitmap, f"is of a disk of {content.virtual_size} bytes, not {size}")
            merged.setdefault(bitmap.name, []).append(_Part(path, bitmap, content.set_bits[bitmap.name]))
    _merge(qemu, merged, target)
    _check(merged, target)
    return list(merged)


def _cannot_be_carried(path: Path, bitmap: Bitmap, why: str) -> ImageError:
    return ImageError(
        f"the bitmap {bitmap.name!r} {why}: it cannot be carried over",
        path=path,
        hint="--drop-bitmaps goes on without the bitmaps; let the next backup be a full one",
    )


def _merge(qemu: Qemu, merged: Mapping[str, Sequence[_Part]], target: Path) -> None:
    # A bitmap without bits adds none, and most are without: each snapshot gives every checkpoint's to the new layer.
    sources = list(dict.fromkeys(part.path for parts in merged.values() for part in parts if part.set_bits))
    nodes = {path: f"layer{number}" for number, path in enumerate(sources)}
    with ScratchDirectory() as place:
        qmp = place / "qmp"
        argv = qemu.command(
            "storage-daemon",
            *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
        )
        with QemuProcess(argv, environment=qemu.environment, remove=place) as process:
            with Monitor.connect(qmp, process) as monitor:
                monitor.execute("blockdev-add", _alone(target, "target", read_only=False))
                for path, node in nodes.items():
                    monitor.execute("blockdev-add", _alone(path, node, read_only=True))
                for name, parts in merged.items():
                    bitmap = {
                        "node": "target",
                        "name": name,
                        "granularity": min(part.bitmap.granularity for part in parts),
                        "persistent": True,
                        "disabled": not parts[0].bitmap.auto,
                    }
                    monitor.execute("block-dirty-bitmap-add", bitmap)
                    from_layers = [{"node": nodes[part.path], "name": name} for part in parts if part.set_bits]
                    merge = {"node": "target", "target": name, "bitmaps": from_layers}
                    if from_layers:
                        monitor.execute("block-dirty-bitmap-merge", merge)
                # Bitmaps are written when the image is closed (by quit only from 6.0 on), and what fails there is only
                # printed: see _check().
                monitor.execute("blockdev-del", {"node-name": "target"}, timeout_s=_STORE_S)
                monitor.execute("quit")
            try:
                finished = process.wait(_STORE_S)
            except TimeoutError:
                raise QemuError(f"the bitmaps were not written within {_STORE_S:g} s", path=target) from None
    if finished.returncode != 0:
        raise QemuError(f"the bitmaps were not written: {last_lines(finished.stderr, 1)}", path=target)


def _check(merged: Mapping[str, Sequence[_Part]], target: Path) -> None:
    """Compare the target's bitmaps with the union of the layers', bit by bit.

    :raise QemuError: if one differs: a backup would miss what it does not say.
    """
    for name, parts in merged.items():
        granularity = min(part.bitmap.granularity for part in parts)
        expected = _bits(parts[0].path, name, granularity)
        for part in parts[1:]:
            if part.set_bits:
                expected |= _bits(part.path, name, granularity)
        if not np.array_equal(_bits(target, name, granularity), expected):
            raise QemuError(f"QEMU did not carry over the bitmap {name!r}", path=target)


def _bits(path: Path, name: str, granularity: int) -> NDArray[np.bool_]:
    """Return a bitmap's bits at a granularity not larger than its own; none at all where it is not there, or in use."""
    file = ImageFile(str(path))
    try:
        image = Image(file, read_header(file))
        for bitmap in list_bitmaps(image):
            if bitmap.name == name and not bitmap.in_use:
                bits = np.zeros(-(-image.header.virtual_size // bitmap.granularity), dtype=bool)
                for first, values in read_bits(image, bitmap):
                    bits[first : first + image.header.cluster_size * 8] = values
                wanted = -(-image.header.virtual_size // granularity)
                times = bitmap.granularity // granularity
                return bits if times == 1 else np.repeat(bits, times)[:wanted]
    finally:
        file.close()
    return np.zeros(0, dtype=bool)


def _alone(path: Path, node: str, *, read_only: bool) -> dict[str, object]:
    """Return options for opening an image without what lies below it."""
    driver = "host_device" if path.is_block_device() else "file"
    file = {"driver": driver, "filename": str(path)}
    return {"driver": "qcow2", "node-name": node, "backing": None, "read-only": read_only, "file": file}
