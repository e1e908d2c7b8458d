"""Listing what an image holds besides its active state: internal snapshots and dirty bitmaps."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.layout import Autoclear, ExtensionType

if TYPE_CHECKING:
    from chainlift.qcow2.image import Image


@dataclass(frozen=True)
class InternalSnapshot:
    """An internal snapshot (specification, section "Snapshots")."""

    id: str
    name: str
    #: Seconds since the epoch.
    date_s: int
    vm_state_bytes: int


@dataclass(frozen=True)
class Bitmap:
    """A persistent dirty bitmap (specification, section "Bitmaps")."""

    name: str
    #: Bytes of the disk that one bit stands for.
    granularity: int
    #: It was not saved properly and cannot be used.
    in_use: bool
    #: QEMU keeps it up to date while the image is written.
    auto: bool


def list_snapshots(image: Image) -> list[InternalSnapshot]:
    """Return the internal snapshots of an image.

    :raise ImageError: if the snapshot table is malformed or cut off.
    """
    header, found = image.header, []
    offset = header.snapshots_offset
    end = offset + layout.MAX_SNAPSHOT_TABLE_BYTES
    if header.nb_snapshots and (offset % header.cluster_size or not offset):
        raise ImageError(f"header field snapshots_offset is {offset:#x}, not a cluster in the file", path=image.path)
    for index in range(header.nb_snapshots):
        fixed = image.file.pread(offset, layout.SNAPSHOT_HEADER.size)
        if len(fixed) < layout.SNAPSHOT_HEADER.size:
            raise ImageError(f"snapshot {index}: the snapshot table is cut off", path=image.path)
        _, _, id_size, name_size, date_s, _, _, vm_state_bytes, extra_size = layout.SNAPSHOT_HEADER.unpack(fixed)
        if extra_size > layout.MAX_SNAPSHOT_EXTRA_BYTES:
            raise ImageError(f"snapshot {index}: extra data of {extra_size} bytes", path=image.path)
        length = extra_size + id_size + name_size
        rest = image.file.pread(offset + layout.SNAPSHOT_HEADER.size, length)
        offset += (layout.SNAPSHOT_HEADER.size + length + 7) & ~7
        if len(rest) < length or offset > end:
            raise ImageError(f"snapshot {index}: the snapshot table is cut off", path=image.path)
        if extra_size >= 8:
            (vm_state_bytes,) = struct.unpack_from(">Q", rest)
        name_at = extra_size + id_size
        found.append(InternalSnapshot(_text(rest[extra_size:name_at]), _text(rest[name_at:]), date_s, vm_state_bytes))
    return found


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
        _, _, flags, _, granularity_bits, name_size, extra_size = layout.BITMAP_ENTRY.unpack(fixed)
        if granularity_bits > 31 or name_size > layout.MAX_BITMAP_NAME or len(found) == count:
            raise ImageError(f"bitmap {len(found)}: the bitmap directory is malformed", path=image.path)
        name = image.file.pread(offset + layout.BITMAP_ENTRY.size + extra_size, name_size)
        found.append(Bitmap(_text(name), 1 << granularity_bits, bool(flags & 1), bool(flags & 2)))
        offset += (layout.BITMAP_ENTRY.size + extra_size + name_size + 7) & ~7
    return found


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
