"""What one image's L2 tables say about a span of its disk, as sparse arrays.

Only what a table says something about is returned: 75 changed clusters out of 300,000 are 75 elements. Names follow
``qcow2_get_cluster_type()`` and ``qcow2_get_subcluster_type()`` in QEMU's block/qcow2.h.
"""

from __future__ import annotations

import os
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

#: Bytes of L2 tables that are read and looked at in one go: they are still in the CPU's nearest caches when they are
#: looked at, which makes more of a difference than the number of system calls.
_CHUNK_BYTES = 128 << 10
#: Units that are decoded together.
_BATCH_UNITS = 1 << 17


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
    """Reads L2 tables into one buffer that is used again and again."""

    def __init__(self) -> None:
        self._words = np.empty(_CHUNK_BYTES // 8, dtype=np.uint64)
        self._bytes = self._words.data.cast("B")
        self._used = np.empty(_CHUNK_BYTES // 8, dtype=bool)

    def read(
        self, image: Image, l1_index: NDArray[np.int64], l2_offset: NDArray[np.int64], begin: int, end: int
    ) -> Iterator[Mapping]:
        """Yield what some L2 tables say.

        :param l1_index: the tables' places in the L1 table, ascending.
        :param l2_offset: their host offsets, from :meth:`Image.l2_offsets`.
        :param begin: guest offset in bytes; clusters that end before it are left out.
        :param end: guest offset in bytes; clusters from there on are left out.
        :raise ImageError: if an entry is malformed or points past the end of its file.
        """
        header = image.header
        size, per_table, entry_size = header.cluster_size, header.l2_entries, header.l2_entry_size
        first_wanted, last_wanted = begin // size, -(-end // size)
        per_chunk = _CHUNK_BYTES // entry_size
        batch = _BATCH_UNITS // layout.SUBCLUSTERS_PER_CLUSTER if header.extended_l2 else _BATCH_UNITS
        descriptor = image.file.fileno()
        clusters: list[NDArray[np.int64]] = []
        words: list[NDArray[np.uint64]] = []
        collected = 0
        for index, offset, tables in _joined(l1_index, l2_offset, size):
            first = max(index * per_table, first_wanted)
            last = min((index + tables) * per_table, last_wanted)
            place = image.file.base + offset + (first - index * per_table) * entry_size
            while first < last:
                count = min(last - first, per_chunk)
                found, content = self._read_some(descriptor, place, count, entry_size)
                if found is None:
                    table = offset + (first // per_table - index) * size
                    raise ImageError(f"L2 table at {table:#x} is cut off", path=image.path)
                if len(found):
                    words.append(content)
                    clusters.append(found + first)
                    collected += len(found)
                    if collected >= batch:
                        yield _decode_batch(image, clusters, words)
                        clusters, words, collected = [], [], 0
                        descriptor = image.file.fileno()
                first, place = first + count, place + count * entry_size
        if collected:
            yield _decode_batch(image, clusters, words)

    def _read_some(
        self, descriptor: int, offset: int, count: int, entry_size: int
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.uint64]]:
        """Return which of ``count`` entries at a host offset are not zero, and these; None if the file ends."""
        length = count * entry_size
        words, used = self._words[: length >> 3], self._used[: length >> 3]
        if os.preadv(descriptor, [self._bytes[:length]], offset) != length:
            return None, words
        (found,) = np.not_equal(words, 0, out=used).nonzero()
        if entry_size == 16:  # an entry is of interest if either half of it is
            found = np.unique(found >> 1)
            return found, words.reshape(-1, 2)[found]
        return found, words[found]


def _joined(
    l1_index: NDArray[np.int64], l2_offset: NDArray[np.int64], table_bytes: int
) -> Iterator[tuple[int, int, int]]:
    """Join tables that follow each other on the disk and in the file: yield L1 index, host offset and how many."""
    if not len(l1_index):
        return iter(())
    follows = (np.diff(l1_index) == 1) & (np.diff(l2_offset) == table_bytes)
    starts = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    counts = np.diff(starts, append=len(l1_index))
    return zip(l1_index[starts].tolist(), l2_offset[starts].tolist(), counts.tolist(), strict=True)


def _decode_batch(image: Image, clusters: list[NDArray[np.int64]], words: list[NDArray[np.uint64]]) -> Mapping:
    numbers, entries = np.concatenate(clusters), np.concatenate(words).byteswap()
    if image.header.extended_l2:
        return _split(image, _decode(image, numbers, entries[:, 0]), entries[:, 1])
    return _decode(image, numbers, entries)


def _decode(image: Image, clusters: NDArray[np.int64], entries: NDArray[np.uint64]) -> Mapping:
    """Take L2 entries apart; with extended L2 the kinds are those of whole clusters, still without the bitmaps."""
    header = image.header
    host = (entries & np.uint64(layout.L2E_OFFSET_MASK)).astype(np.int64)
    kind = np.full(len(entries), int(Kind.DATA), dtype=np.uint8)
    stored = np.zeros(len(entries), dtype=np.int32)
    any_flag = int(np.bitwise_or.reduce(entries))
    if not int(host.min()):
        no_place = host == 0
        if header.has_data_file:
            # Offset 0 is a place like any other in an external data file; the COPIED flag tells that it is meant.
            no_place &= (entries & np.uint64(layout.OFLAG_COPIED)) == 0
        kind[no_place] = Kind.UNALLOCATED
        host[no_place] = -1
    zero = any_flag & layout.OFLAG_ZERO and not header.extended_l2
    if zero:
        flagged = (entries & np.uint64(layout.OFLAG_ZERO | layout.OFLAG_COMPRESSED)) == layout.OFLAG_ZERO
        if header.version == 2 and flagged.any():
            _refuse(image, clusters, flagged, "has the zero flag, which version 2 does not know")
        kind[flagged] = np.where(host[flagged] > 0, np.uint8(Kind.ZERO_ALLOC), np.uint8(Kind.ZERO_PLAIN))
    if any_flag & layout.OFLAG_COMPRESSED:
        compressed = (entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0
        if header.has_data_file:
            _refuse(image, clusters, compressed, "is compressed, which an external data file does not allow")
        offset, length = split_compressed(entries[compressed], header.cluster_bits)
        kind[compressed] = Kind.COMPRESSED
        host[compressed] = offset
        stored[compressed] = length
    _check_offsets(image, clusters, kind, host)
    return Mapping(clusters, kind, host, stored)


def _check_offsets(image: Image, clusters: NDArray[np.int64], kind: NDArray[np.uint8], host: NDArray[np.int64]) -> None:
    header = image.header
    is_aligned = not int(np.bitwise_or.reduce(host)) & (header.cluster_size - 1)
    if is_aligned and not header.has_data_file and int(host.max()) < image.file.size:
        return  # the rule
    has_place = ((kind == Kind.DATA) | (kind == Kind.ZERO_ALLOC)) & (host >= 0)
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
