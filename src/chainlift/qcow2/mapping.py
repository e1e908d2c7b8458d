"""What one image's L2 tables say about a span of its disk, as sparse arrays.

Only what a table says something about is returned: 75 changed clusters out of 300,000 are 75 elements. Names follow
``qcow2_get_cluster_type()`` and ``qcow2_get_subcluster_type()`` in QEMU's block/qcow2.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.layout import Kind
from chainlift.qcow2.tables import split_compressed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.qcow2.image import Image

#: Bytes of L2 tables that are looked at in one go: they stay in the CPU's cache from the read to the last look.
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Mapping:
    """Units (subclusters where the image has them, else clusters) that an image says something about.

    The arrays have one element a unit, in ascending order of guest offset.
    """

    #: Guest offset divided by the unit's size.
    unit: NDArray[np.int64]
    #: :class:`~chainlift.qcow2.layout.Kind`. UNALLOCATED occurs with a host offset: a subcluster without content in a
    #: host cluster that exists.
    kind: NDArray[np.uint8]
    #: Bytes in the data file (for COMPRESSED: of the whole cluster's stream, in the image file); -1 for ZERO_PLAIN.
    host_offset: NDArray[np.int64]
    #: For COMPRESSED the bytes from the host offset to the end of the stream's last sector, else 0.
    stored_bytes: NDArray[np.int32]


class TableReader:
    """Reads L2 tables, many at a time, into one buffer that is used again and again."""

    def __init__(self) -> None:
        self._words = np.empty(_CHUNK_BYTES // 8, dtype=np.uint64)

    def read(
        self, image: Image, l1_index: NDArray[np.int64], l2_offset: NDArray[np.int64], begin: int, end: int
    ) -> Iterator[Mapping]:
        """Yield what some L2 tables say.

        :param l1_index: the tables' places in the L1 table, ascending.
        :param l2_offset: their host offsets, from :meth:`Image.l2_offsets`.
        :param begin: guest offset in bytes, a multiple of the cluster; what lies before is left out.
        :param end: guest offset in bytes; clusters from there on are left out.
        :raise ImageError: if an entry is malformed or points past the end of its file.
        """
        header = image.header
        size, per_table = header.cluster_size, header.l2_entries
        first = np.maximum(l1_index * per_table, begin // size)
        last = np.minimum((l1_index + 1) * per_table, -(-end // size))
        host = l2_offset + (first - l1_index * per_table) * header.l2_entry_size
        count = last - first
        keep = count > 0
        first, host, count = first[keep], host[keep], count[keep]
        words_per_entry = header.l2_entry_size // 8
        ends = np.cumsum(count * words_per_entry)
        start = 0
        while start < len(first):
            base = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, base + len(self._words), side="right")))
            chosen = slice(start, stop)
            yield from self._read_chunk(image, first[chosen], host[chosen], count[chosen])
            start = stop

    def _read_chunk(
        self, image: Image, first: NDArray[np.int64], host: NDArray[np.int64], count: NDArray[np.int64]
    ) -> Iterator[Mapping]:
        words_per_entry = image.header.l2_entry_size // 8
        position = np.cumsum(count) - count
        total = int(position[-1] + count[-1])
        if total * words_per_entry > len(self._words):
            self._words = np.empty(total * words_per_entry, dtype=np.uint64)  # a table of 2 MiB
        words = self._words[: total * words_per_entry]
        view = words.data.cast("B")
        done = 0
        for offset, length in _extents(host, count * image.header.l2_entry_size):
            if image.file.pread_into(view[done : done + length], offset) != length:
                raise ImageError(f"L2 table at {offset:#x} is cut off", path=image.path)
            done += length
        if words_per_entry == 1:
            found = np.flatnonzero(words != 0)
            bitmaps = None
        else:
            pairs = words.reshape(-1, 2)
            found = np.flatnonzero((pairs != 0).any(axis=1))
            bitmaps = pairs[found, 1].byteswap()
        if not len(found):
            return
        entries = words[found * words_per_entry].byteswap()
        # From the place among the words that were read to the guest's cluster number.
        table = np.searchsorted(position, found, side="right") - 1
        clusters = found + (first - position)[table]
        mapping = _decode(image, clusters, entries)
        yield mapping if bitmaps is None else _split(image, mapping, bitmaps)


def _extents(host: NDArray[np.int64], length: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Join tables that are neighbours in the file: one read each instead of one a table."""
    is_first = np.ones(len(host), dtype=bool)
    is_first[1:] = host[1:] != host[:-1] + length[:-1]
    begin = np.flatnonzero(is_first)
    return list(zip(host[begin].tolist(), np.add.reduceat(length, begin).tolist(), strict=True))


def _decode(image: Image, clusters: NDArray[np.int64], entries: NDArray[np.uint64]) -> Mapping:
    """Take L2 entries apart; with extended L2 the kinds are those of whole clusters, still without the bitmaps."""
    header = image.header
    host = (entries & np.uint64(layout.L2E_OFFSET_MASK)).astype(np.int64)
    compressed = (entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0
    kind = np.where(host != 0, np.uint8(Kind.DATA), np.uint8(Kind.UNALLOCATED))
    if header.has_data_file:
        # Offset 0 is a place like any other in an external data file; the COPIED flag tells that it is meant.
        kind[(entries & np.uint64(layout.OFLAG_COPIED)) != 0] = Kind.DATA
    if not header.extended_l2:
        zero = (entries & np.uint64(layout.OFLAG_ZERO)) != 0
        if header.version == 2 and (zero & ~compressed).any():
            _refuse(image, clusters, zero & ~compressed, "has the zero flag, which version 2 does not know")
        kind[zero] = np.where(host[zero] != 0, np.uint8(Kind.ZERO_ALLOC), np.uint8(Kind.ZERO_PLAIN))
    stored = np.zeros(len(entries), dtype=np.int32)
    if compressed.any():
        if header.has_data_file:
            _refuse(image, clusters, compressed, "is compressed, which an external data file does not allow")
        offset, length = split_compressed(entries[compressed], header.cluster_bits)
        kind[compressed] = Kind.COMPRESSED
        host[compressed] = offset
        stored[compressed] = length
    has_place = (kind == Kind.DATA) | (kind == Kind.ZERO_ALLOC)
    _check_offsets(image, clusters, kind, host, has_place)
    host[~has_place & ~compressed] = -1
    return Mapping(clusters, kind, host, stored)


def _check_offsets(
    image: Image,
    clusters: NDArray[np.int64],
    kind: NDArray[np.uint8],
    host: NDArray[np.int64],
    has_place: NDArray[np.bool_],
) -> None:
    header = image.header
    misplaced = has_place & ((host & (header.cluster_size - 1)) != 0)
    if misplaced.any():
        _refuse(image, clusters, misplaced, "has a host offset that is not aligned", host)
    if header.has_data_file:
        misplaced = has_place & (host != clusters * header.cluster_size)
        if misplaced.any():
            _refuse(image, clusters, misplaced, "has a host offset that is not the guest's, in a data file", host)
    # A preallocated zero cluster may lie past the end of the file: nothing was ever written there.
    for what, file in ((Kind.DATA, image.data_file), (Kind.COMPRESSED, image.file)):
        beyond = (kind == what) & (host >= file.size)
        if beyond.any() and (host[beyond] >= file.refresh_size()).any():
            _refuse(image, clusters, beyond & (host >= file.size), "points past the file's end", host)


def _refuse(
    image: Image,
    clusters: NDArray[np.int64],
    where: NDArray[np.bool_],
    what: str,
    host: NDArray[np.int64] | None = None,
) -> NoReturn:
    index = int(where.argmax())
    detail = "" if host is None else f" ({int(host[index]):#x})"
    guest = int(clusters[index]) * image.header.cluster_size
    raise ImageError(f"L2 entry of guest offset {guest:#x} {what}{detail}", path=image.path)


def _split(image: Image, whole: Mapping, bitmaps: NDArray[np.uint64]) -> Mapping:
    """Split clusters into their subclusters and drop those that neither the entry nor the bitmap speaks of."""
    per_cluster = layout.SUBCLUSTERS_PER_CLUSTER
    index = np.arange(per_cluster, dtype=np.uint64)
    alloc = ((bitmaps[:, None] >> index) & np.uint64(1)) != 0
    zero = ((bitmaps[:, None] >> (index + np.uint64(32))) & np.uint64(1)) != 0
    compressed = whole.kind == Kind.COMPRESSED
    has_place = whole.kind == Kind.DATA
    invalid = ~compressed & np.where(has_place, (alloc & zero).any(axis=1), alloc.any(axis=1))
    if invalid.any():
        _refuse(image, whole.unit, invalid, "has a subcluster bitmap that contradicts itself")
    kind = np.where(alloc, np.uint8(Kind.DATA), np.uint8(Kind.UNALLOCATED))
    kind[zero & has_place[:, None]] = Kind.ZERO_ALLOC
    kind[zero & ~has_place[:, None]] = Kind.ZERO_PLAIN
    kind[compressed] = Kind.COMPRESSED
    host = np.repeat(whole.host_offset[:, None], per_cluster, axis=1)
    host[has_place] += index.astype(np.int64) * image.header.subcluster_size
    unit = whole.unit[:, None] * per_cluster + index.astype(np.int64)
    stored = np.repeat(whole.stored_bytes, per_cluster)
    keep = ((kind != Kind.UNALLOCATED) | (host >= 0)).ravel()
    return Mapping(unit.ravel()[keep], kind.ravel()[keep], host.ravel()[keep], stored[keep])
