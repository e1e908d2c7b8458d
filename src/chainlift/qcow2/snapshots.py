"""Listing the internal snapshots of an image."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.qcow2 import layout

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


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
