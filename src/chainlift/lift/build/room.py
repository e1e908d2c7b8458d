"""Whether a lift has the room it needs, asked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chainlift.errors import ImageError
from chainlift.lift.build.copying import can_clone
from chainlift.lift.build.merge import Merger, State
from chainlift.qcow2.layout import CompressionType
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.chain import Chain
    from chainlift.lift.build.files import Sources
    from chainlift.lift.build.merge import Below


def require_room(directory: Path, needed_bytes: int) -> None:
    """Refuse where a file system is read-only or has less room than is needed.

    :raise ImageError: naming the directory.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=directory) from error
    if status.f_flag & os.ST_RDONLY:
        raise ImageError("is on a read-only file system", path=directory, hint="a lift needs a place to write to")
    free = status.f_bavail * status.f_frsize
    if needed_bytes > free:
        raise ImageError(
            f"{format_bytes(needed_bytes)} are needed, {format_bytes(free)} are free",
            path=directory,
            hint="make room there and run it again",
        )


def require_room_for_copy(
    directory: Path,
    chain: Chain,
    sources: Sources,
    descriptors: dict[str, int],
    cluster_size: int,
    *,
    below: Below | None = None,
    sparse: bool = False,
) -> None:
    """Refuse where what can be seen of a chain does not fit into a directory's file system.

    :param descriptors: an open file descriptor for each file of the sources, by its path.
    :param cluster_size: of the image that is to be written.
    :param below: layers that are not copied.
    :param sparse: holes of raw layers are not copied.
    :raise ImageError: naming the directory.
    """
    clusters = -(-chain.virtual_size // cluster_size)
    most = chain.virtual_size + _tables(clusters, cluster_size)
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize > most and not status.f_flag & os.ST_RDONLY:
        return  # the rule: the whole disk would fit
    if _shares_blocks(directory, sources, descriptors):
        require_room(directory, _tables(0, cluster_size))
        return
    found = measure_rewrite(Merger(chain, sources, cluster_size, below=below, sparse=sparse), sources, cluster_size)
    require_room(directory, found.copied_bytes + found.table_bytes)


@dataclass(frozen=True)
class RewriteSize:
    """What it takes to write clusters as one image."""

    #: Whole clusters, and compressed ones as they are stored.
    copied_bytes: int
    table_bytes: int


def measure_rewrite(
    merger: Merger, sources: Sources, cluster_size: int, *, compression: CompressionType = CompressionType.ZLIB
) -> RewriteSize:
    """Tell what :func:`~chainlift.lift.build.rewrite.rewrite` would write, without compressing anything anew.

    :param merger: of all that is to be written.
    :param cluster_size: the merger's, in bytes.
    :param compression: of the image that would be written: clusters that are compressed in another way are unpacked.
    """
    alike = np.array([source.compression is compression for source in sources.files], dtype=bool)
    copied = mapped = 0
    for pieces in merger.pieces():
        kept = (pieces.state == State.COMPRESSED) & alike[pieces.source]
        copied += int(pieces.count[(pieces.state >= State.DATA) & ~kept].sum()) * cluster_size
        copied += int(pieces.stored_bytes[kept].sum())
        mapped += int(pieces.count[pieces.state != State.HOLE].sum())
    return RewriteSize(copied, _tables(mapped, cluster_size))


def _tables(clusters: int, cluster_size: int) -> int:
    """Return bytes of the header, the L1 table, and for each cluster an L2 entry and a refcount."""
    return clusters * 10 + 8 * cluster_size


def _shares_blocks(directory: Path, sources: Sources, descriptors: dict[str, int]) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return can_clone(fd, descriptors[sources.files[0].path])
    finally:
        os.close(fd)
