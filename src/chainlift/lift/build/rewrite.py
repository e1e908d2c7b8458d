"""Writing merged clusters as one ordinary qcow2 image: what a squash and a flattened image are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count, pread
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.lift.build.copying import Copied, Copier
from chainlift.lift.build.index import copy_fragments, expand
from chainlift.lift.build.merge import Merger, Pieces, State
from chainlift.qcow2 import layout, tables
from chainlift.qcow2.compression import compress_cluster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from chainlift.lift.build.files import ClusterFiles, SourceFile
    from chainlift.qcow2.writer import ImageWriter

#: Clusters whose entries are written together.
_BATCH: Final = 1 << 16


@dataclass(frozen=True)
class Rewritten:
    """What was written."""

    copied: Copied
    #: Clusters of each file of the sources that went into it.
    visible_clusters: list[int]


def rewrite(
    merger: Merger,
    sources: ClusterFiles,
    descriptors: dict[str, int],
    writer: ImageWriter,
    *,
    virtual_size: int,
    compress: bool = False,
    clone: bool = True,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Rewritten:
    """Write every cluster that a merger gives; holes stay unallocated, zeros become zero clusters.

    :param descriptors: an open file descriptor for each file of the sources.
    :param writer: of an image with the merger's cluster size; the caller finishes it.
    :param compress: store clusters compressed where that makes them smaller.
    :param clone: share blocks where the file system can.
    """
    rewriter = _Rewriter(sources.files, descriptors, writer, virtual_size)
    with Copier(writer.fd, clone=clone, rate_bytes_per_s=rate_bytes_per_s, progress=progress) as copier:
        for pieces in merger.pieces():
            rewriter.count(pieces)
            if compress:
                rewriter.write_compressed(pieces, progress)
            else:
                rewriter.write(pieces, copier)
    copier.done.copied_bytes += rewriter.stored_bytes
    return Rewritten(copier.done, rewriter.visible.tolist())


class _Rewriter:
    def __init__(
        self, sources: list[SourceFile], descriptors: dict[str, int], writer: ImageWriter, virtual_size: int
    ) -> None:
        self._sources = sources
        self._fds = descriptors
        self._writer = writer
        self._virtual_size = virtual_size
        self.visible = np.zeros(len(sources), dtype=np.int64)
        #: What was written without the copier: compressed clusters, as they are or newly made.
        self.stored_bytes = 0
        self._done = 0

    def count(self, pieces: Pieces) -> None:
        """Count what can be seen of each file."""
        pointed = (pieces.state == State.DATA) | (pieces.state == State.COMPRESSED)
        np.add.at(self.visible, pieces.source[pointed], pieces.count[pointed])

    def write(self, pieces: Pieces, copier: Copier) -> None:
        """Give each cluster with content a place, in the order of the disk, and copy."""
        size = self._writer.cluster_size
        state, count = pieces.state, pieces.count
        kept = self._kept_compressed(pieces)
        placed = (state >= State.DATA) & ~kept
        total = int(count[placed].sum())
        base = self._writer.reserve(total)
        begin = np.zeros(len(pieces), dtype=np.int64)
        begin[placed] = base + (np.cumsum(count[placed]) - count[placed]) * size
        for place in np.flatnonzero(placed & (state != State.MIXED)).tolist():
            source = self._sources[pieces.source[place]]
            host, length = int(pieces.host_offset[place]), int(count[place]) * size
            if state[place] == State.DATA:
                copier.add(self._fds[source.path], source.base + host, length, int(begin[place]))
            else:
                copier.add(_decompressor(source, host, int(pieces.stored_bytes[place])), 0, length, int(begin[place]))
        mixed = np.flatnonzero(state == State.MIXED)
        if len(mixed):
            starts = pieces.first[mixed] * size

            def place_of(guest: int) -> int:
                index = mixed[int(np.searchsorted(starts, guest, side="right")) - 1]
                return int(begin[index]) + guest - int(pieces.first[index]) * size

            copy_fragments(self._sources, self._fds, pieces.fragments, copier, place_of)
            end = int(starts[-1]) + int(count[mixed[-1]]) * size
            if end > self._virtual_size:
                missing = end - self._virtual_size
                copier.add(lambda: bytes(missing), 0, missing, place_of(self._virtual_size))
        self._set_entries(pieces, begin, kept)

    def _kept_compressed(self, pieces: Pieces) -> NDArray[np.bool_]:
        """Tell which compressed clusters stay as they are: those of the writer's compression type."""
        alike = np.array([source.compression == self._writer.compression for source in self._sources], dtype=bool)
        kept: NDArray[np.bool_] = (pieces.state == State.COMPRESSED) & alike[pieces.source]
        return kept

    def _set_entries(self, pieces: Pieces, begin: NDArray[np.int64], kept: NDArray[np.bool_]) -> None:
        size, bits = self._writer.cluster_size, self._writer.cluster_size.bit_length() - 1
        value = begin.astype(np.uint64) | np.uint64(layout.OFLAG_COPIED)
        value[pieces.state == State.ZERO] = layout.OFLAG_ZERO
        for place in np.flatnonzero(kept).tolist():
            source, stored = self._sources[pieces.source[place]], int(pieces.stored_bytes[place])
            data = pread(self._fds[source.path], stored, source.base + int(pieces.host_offset[place]))
            offset = self._writer.store_compressed(data)
            self.stored_bytes += stored
            value[place] = tables.compressed_entries(np.array([offset]), np.array([len(data)]), bits)[0]
        step = np.where(pieces.state >= State.DATA, np.uint64(size), np.uint64(0))
        says = pieces.state != State.HOLE
        first, count, value, step = pieces.first[says], pieces.count[says], value[says], step[says]
        within = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        entries = np.repeat(value, count) + np.repeat(step, count) * within.astype(np.uint64)
        self._writer.set_entries(expand(first, count), *self._extended(entries))

    def _extended(self, entries: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64] | None]:
        """Return entries with the subcluster bitmaps that say the same, where the image has them."""
        if not self._writer.extended_l2:
            return entries, None
        is_zero = entries == np.uint64(layout.OFLAG_ZERO)
        is_packed = (entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0
        bitmaps = np.full(len(entries), layout.L2_BITMAP_ALL_ALLOC, dtype=np.uint64)
        bitmaps[is_zero] = layout.L2_BITMAP_ALL_ZEROES
        bitmaps[is_packed] = 0
        return np.where(is_zero, np.uint64(0), entries), bitmaps

    def write_compressed(self, pieces: Pieces, progress: Callable[[int], None] | None) -> None:
        """Compress every cluster with content, on all processors, and store them in the order of the disk."""
        size, bits = self._writer.cluster_size, self._writer.cluster_size.bit_length() - 1
        compression = self._writer.compression

        def pack(job: tuple[int, bytes]) -> tuple[int, bytes, bytes | None]:
            cluster, data = job
            return cluster, data, compress_cluster(data, compression)

        clusters: list[int] = []
        entries: list[int] = []
        with ThreadPoolExecutor(cpu_count() or 1) as pool:
            for jobs in _in_batches(self._contents(pieces), 64):
                for cluster, data, packed in pool.map(pack, jobs):
                    clusters.append(cluster)
                    if not any(data):
                        entries.append(layout.OFLAG_ZERO)
                    elif packed is None:
                        offset = self._writer.reserve(1)
                        self._writer.write(offset, data)
                        self.stored_bytes += len(data)
                        entries.append(offset | layout.OFLAG_COPIED)
                    else:
                        offset = self._writer.store_compressed(packed)
                        self.stored_bytes += len(packed)
                        entry = tables.compressed_entries(np.array([offset]), np.array([len(packed)]), bits)[0]
                        entries.append(int(entry))
                    self._done += size
                if progress is not None:
                    progress(self._done)
        zero = pieces.state == State.ZERO
        zeros = expand(pieces.first[zero], pieces.count[zero])
        every = np.concatenate((np.array(clusters, dtype=np.int64), zeros))
        values = np.concatenate((
            np.array(entries, dtype=np.uint64), np.full(len(zeros), layout.OFLAG_ZERO, dtype=np.uint64)
        ))  # fmt: skip
        order = np.argsort(every, kind="stable")
        self._writer.set_entries(every[order], values[order])

    def _contents(self, pieces: Pieces) -> Iterator[tuple[int, bytes]]:
        """Yield the clusters with content: their guest cluster number and their bytes."""
        size = self._writer.cluster_size
        fragment = 0
        parts = pieces.fragments
        for place in np.flatnonzero(pieces.state >= State.DATA).tolist():
            first, state = int(pieces.first[place]), pieces.state[place]
            for number in range(int(pieces.count[place])):
                if state == State.MIXED:
                    whole = bytearray(size)
                    start = (first + number) * size
                    while fragment < len(parts) and parts.start[fragment] < start + size:
                        self._fill(whole, start, pieces, fragment)
                        if parts.start[fragment] + parts.length[fragment] > start + size:
                            break
                        fragment += 1
                    yield first + number, bytes(whole)
                    continue
                source = self._sources[pieces.source[place]]
                host = int(pieces.host_offset[place])
                if state == State.COMPRESSED:
                    yield first, source.read_compressed(host, int(pieces.stored_bytes[place]))
                else:
                    data = pread(self._fds[source.path], size, source.base + host + number * size)
                    yield first + number, data.ljust(size, b"\0")

    def _fill(self, whole: bytearray, start: int, pieces: Pieces, fragment: int) -> None:
        parts = pieces.fragments
        begin = max(start, int(parts.start[fragment]))
        end = min(start + len(whole), int(parts.start[fragment] + parts.length[fragment]))
        moved = begin - int(parts.start[fragment])
        kind, host = parts.kind[fragment], int(parts.host_offset[fragment])
        if kind not in (layout.Kind.DATA, layout.Kind.COMPRESSED):
            return
        source = self._sources[parts.source[fragment]]
        if kind == layout.Kind.DATA:
            data = pread(self._fds[source.path], end - begin, source.base + host + moved).ljust(end - begin, b"\0")
        else:
            skip = int(parts.skip[fragment]) + moved
            data = source.read_compressed(host, int(parts.stored_bytes[fragment]))[skip : skip + end - begin]
        whole[begin - start : end - start] = data


def _decompressor(source: SourceFile, host: int, stored: int) -> Callable[[], bytes]:
    return lambda: source.read_compressed(host, stored)


def _in_batches(items: Iterator[tuple[int, bytes]], count: int) -> Iterator[list[tuple[int, bytes]]]:
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == count:
            yield batch
            batch = []
    if batch:
        yield batch
