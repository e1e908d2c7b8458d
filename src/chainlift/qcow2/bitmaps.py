"""Persistent dirty bitmaps: which there are in an image, and which of their bits are set.

Specification, section "Bitmaps". A backup's checkpoint is such a bitmap: its bits say what was written since.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.layout import Autoclear, ExtensionType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.qcow2.image import Image

_IN_USE: Final = 1 << 0
_AUTO: Final = 1 << 1
#: Bitmaps whose type is another one are not dirty tracking bitmaps, and nobody knows them.
_DIRTY_TRACKING: Final = 1
#: Limits of QEMU's (block/qcow2-bitmap.c: BME_MIN_GRANULARITY_BITS, BME_MAX_GRANULARITY_BITS, BME_MAX_TABLE_SIZE).
_GRANULARITY_BITS: Final = range(9, 32)
_MAX_TABLE_ENTRIES: Final = 0x8000000
#: Of a bitmap table's entry.
_ENTRY_OFFSET_MASK: Final = 0x00FFFFFFFFFFFE00
_ENTRY_ALL_ONES: Final = 1
_TABLE_STRIDE: Final = 8192


@dataclass(frozen=True)
class Bitmap:
    """A persistent dirty bitmap."""

    name: str
    #: Bytes of the disk that one bit stands for.
    granularity: int
    #: It was not saved properly and cannot be used.
    in_use: bool
    #: QEMU keeps it up to date while the image is written: it is enabled.
    auto: bool
    #: Where its bitmap table is, in bytes of the file, and how many entries of 8 bytes that has.
    table_offset: int = 0
    table_size: int = 0


def list_bitmaps(image: Image) -> list[Bitmap]:
    """Return the persistent dirty bitmaps of an image; none where its autoclear bit says that they are stale.

    :raise ImageError: if the bitmap directory is malformed or cut off.
    """
    content = image.header.extensions.get(ExtensionType.BITMAPS)
    if content is None or Autoclear.BITMAPS not in image.header.autoclear_features:
        return []
    if len(content) != layout.BITMAPS_EXTENSION.size:
        raise ImageError(f"the bitmaps extension has {len(content)} bytes", path=image.path)
    count, _, size, offset = layout.BITMAPS_EXTENSION.unpack(content)
    if not 0 < count <= layout.MAX_BITMAPS or size > layout.MAX_BITMAP_DIRECTORY_BYTES or offset >= 1 << 62:
        raise ImageError(f"the bitmaps extension names {count} bitmaps in {size} bytes at {offset:#x}", path=image.path)
    found: list[Bitmap] = []
    end = offset + size
    while offset < end:
        fixed = image.file.pread(offset, layout.BITMAP_ENTRY.size)
        if len(fixed) < layout.BITMAP_ENTRY.size:
            raise ImageError("the bitmap directory is cut off", path=image.path)
        table_offset, table_size, flags, kind, granularity_bits, name_size, extra_size = layout.BITMAP_ENTRY.unpack(
            fixed
        )
        name_at = offset + layout.BITMAP_ENTRY.size + extra_size
        if (
            granularity_bits not in _GRANULARITY_BITS
            or not 0 < name_size <= layout.MAX_BITMAP_NAME
            or name_at + name_size > end
            or len(found) == count
        ):
            raise ImageError(f"bitmap {len(found)}: the bitmap directory is malformed", path=image.path)
        name = image.file.pread(name_at, name_size)
        if len(name) < name_size:
            raise ImageError("the bitmap directory is cut off", path=image.path)
        text = name.decode("utf-8", "backslashreplace")
        if kind != _DIRTY_TRACKING:
            raise ImageError(f"bitmap {text!r} has the unknown type {kind}", path=image.path)
        in_use, auto = bool(flags & _IN_USE), bool(flags & _AUTO)
        found.append(Bitmap(text, 1 << granularity_bits, in_use, auto, table_offset, table_size))
        offset += (layout.BITMAP_ENTRY.size + extra_size + name_size + 7) & ~7
    return found


def read_bits(image: Image, bitmap: Bitmap) -> Iterator[tuple[int, NDArray[np.uint8] | bool]]:
    """Yield a bitmap's bits, a cluster of it at a time, in ascending order.

    :return: the number of the first bit, and a byte of 0 or 1 for each bit, or what all of them are.
    :raise ImageError: if the bitmap table has another size than the disk asks for, or leads where there is no cluster.
    """
    size = image.header.cluster_size
    bits = -(-image.header.virtual_size // bitmap.granularity)
    per_cluster = size * 8
    entries = -(-bits // per_cluster)
    # A bitmap in use may be of another size: the disk was resized, and it was not saved since.
    if bitmap.table_size != entries or entries > _MAX_TABLE_ENTRIES:
        what = f"bitmap {bitmap.name!r}: its table has {bitmap.table_size} entries, the disk asks for {entries}"
        raise ImageError(what, path=image.path)
    if bitmap.table_offset % size or bitmap.table_offset >= 1 << 62:
        raise ImageError(f"bitmap {bitmap.name!r}: its table is not aligned", path=image.path)
    for start in range(0, entries, _TABLE_STRIDE):
        count = min(_TABLE_STRIDE, entries - start)
        data = image.file.pread(bitmap.table_offset + 8 * start, 8 * count)
        if len(data) < 8 * count:
            raise ImageError(f"bitmap {bitmap.name!r}: its table is cut off", path=image.path)
        for number, entry in enumerate(np.frombuffer(data, ">u8").tolist(), start):
            first = number * per_cluster
            offset = entry & _ENTRY_OFFSET_MASK
            if not offset:
                yield first, bool(entry & _ENTRY_ALL_ONES)
                continue
            wanted = min(per_cluster, bits - first)
            cluster = image.file.pread(offset, -(-wanted // 8))
            if offset % size or len(cluster) < -(-wanted // 8):
                raise ImageError(f"bitmap {bitmap.name!r}: there is no cluster at {offset:#x}", path=image.path)
            yield first, np.unpackbits(np.frombuffer(cluster, np.uint8), count=wanted, bitorder="little")


def count_set_bits(image: Image, bitmap: Bitmap) -> int:
    """Return how many bits of a bitmap are set: each stands for :attr:`Bitmap.granularity` bytes of the disk.

    :raise ImageError: as :func:`read_bits`.
    """
    bits = -(-image.header.virtual_size // bitmap.granularity)
    per_cluster = image.header.cluster_size * 8
    count = 0
    for first, values in read_bits(image, bitmap):
        count += (
            (min(per_cluster, bits - first) * values) if isinstance(values, bool) else int(np.count_nonzero(values))
        )
    return count
