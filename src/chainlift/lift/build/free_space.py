"""Whether a lift has the room it needs, asked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.chain import Kind
from chainlift.errors import ImageError
from chainlift.lift.build.copying import can_clone
from chainlift.lift.build.files import ClusterFiles
from chainlift.lift.build.merge import Merger, State
from chainlift.qcow2.layout import CompressionType
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from chainlift.chain import Chain
    from chainlift.lift.build.merge import LayersBelow, Pieces

#: Clusters by which refcount blocks and the refcount table may grow beyond the refcounts that are counted.
_REFCOUNT_SLACK: Final = 4
#: STREAM_CHUNK in QEMU's block/stream.c.
_STREAM_CHUNK: Final = 512 << 10


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
    sources: ClusterFiles,
    descriptors: dict[str, int],
    cluster_size: int,
    *,
    below: LayersBelow | None = None,
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
    merger: Merger, sources: ClusterFiles, cluster_size: int, *, compression: CompressionType = CompressionType.ZLIB
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


def room_for_stream(chain: Chain) -> int:
    """Return the bytes by which the active layer's file grows, at most, when QEMU copies all that is below into it.

    What is stored below is copied in whole clusters, unpacked, and what only reads as zeros becomes an entry in a table
    (``bdrv_co_do_copy_on_readv()`` in block/io.c), but in an image of version 2, which has no such entries. Clusters
    that the active layer has already need nothing. QEMU shares no blocks, whatever the file system can do. Zeros are
    copied that one step of the job reads together with data: beside those of a raw file, which is not asked for its
    holes, and beside a cluster of which a part is stored.

    :param chain: the active layer and everything below it.
    :raise ImageError: if a table is malformed.
    """
    active = chain.layers[0].image
    assert active is not None
    header, sources = active.header, ClusterFiles(chain)
    size, per_table = header.cluster_size, header.l2_entries
    touched = np.zeros(-(-chain.virtual_size // (size * per_table)) + 1, dtype=np.int64)
    clusters = 0
    for pieces in Merger(chain, sources, size, sparse=True).pieces():
        is_copied = (pieces.state >= State.DATA) & ~_is_active(pieces, sources, size)
        count = np.where(is_copied, pieces.count, 0)
        if header.version < 3:
            count += _zeros(pieces, chain, size)
        else:
            count += _zeros_beside_data(pieces, sources, max(1, _STREAM_CHUNK // size))
        clusters += int(count.sum())
        chosen = count > 0
        np.add.at(touched, pieces.first[chosen] // per_table, 1)
        np.add.at(touched, (pieces.first + pieces.count - 1)[chosen] // per_table + 1, -1)
    if not clusters:
        return 0
    tables = int((touched.cumsum() > 0).sum())
    refcounts = -(-((clusters + tables) << header.refcount_order) // 8 // size)
    return (clusters + tables + refcounts + _REFCOUNT_SLACK) * size


def _is_active(pieces: Pieces, sources: ClusterFiles, size: int) -> NDArray[np.bool_]:
    """Tell which pieces have a cluster in the active layer."""
    layer = np.array([*sources.layer, -1])
    parts = pieces.fragments
    stored = (parts.layer == 0) & ((parts.kind == Kind.DATA) | (parts.kind == Kind.COMPRESSED))
    mixed = (pieces.state == State.MIXED) & (pieces.source < 0)
    found: NDArray[np.bool_] = (layer[pieces.source] == 0) | (
        mixed & np.isin(pieces.first, parts.start[stored] // size)
    )
    return found


def _zeros(pieces: Pieces, chain: Chain, size: int) -> NDArray[np.int64]:
    """Return how many clusters of each piece QEMU takes for zeros that a layer has; it does so past a layer's end."""
    is_raw = chain.layers[-1].image is None
    end = 0 if is_raw else min(layer.virtual_size for layer in chain.layers) // size
    past = np.minimum(np.maximum(pieces.first + pieces.count - end, 0), pieces.count)
    return np.where(pieces.state == State.ZERO, pieces.count, np.where(pieces.state == State.HOLE, past, 0))


def _zeros_beside_data(pieces: Pieces, sources: ClusterFiles, reach: int) -> NDArray[np.int64]:
    """Return how many clusters of each piece may be copied although they are zeros, with what is beside them.

    :param reach: clusters in a step of the job.
    """
    is_raw = np.array([*(file.cluster_size == 0 for file in sources.files), False])
    mixed = pieces.state == State.MIXED
    is_data = is_raw[pieces.source] | (mixed & (pieces.source < 0))
    # What is beyond this part of the disk is not known here.
    edge = is_raw.any()
    beside = np.concatenate(([edge], is_data, [edge])).astype(np.int64)
    most = np.minimum(pieces.count, reach * (beside[:-2] + beside[2:]))
    return np.where(pieces.state <= State.ZERO, most, 0)


def _tables(clusters: int, cluster_size: int) -> int:
    """Return bytes of the header, the L1 table, and for each cluster an L2 entry and a refcount."""
    return clusters * 10 + 8 * cluster_size


def _shares_blocks(directory: Path, sources: ClusterFiles, descriptors: dict[str, int]) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return can_clone(fd, descriptors[sources.files[0].path])
    finally:
        os.close(fd)
