"""What one image's L2 tables say about a span of its disk, as sparse arrays.

Only what a table says something about is returned: 75 changed clusters out of 300,000 are 75 elements. Names follow
``qcow2_get_cluster_type()`` and ``qcow2_get_subcluster_type()`` in QEMU's block/qcow2.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.ahead import PIECE_BYTES, Piece, ReadAhead, divide
from chainlift.qcow2.columns import Columns
from chainlift.qcow2.layout import Kind
from chainlift.qcow2.tables import split_compressed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.qcow2.image import Image

#: Units that are decoded together.
BATCH_UNITS = 1 << 16


@dataclass(frozen=True)
class Mapping(Columns):
    """Units (subclusters where the image has them, else clusters) that an image says something about.

    The arrays have one element a unit, in ascending order of guest offset (in that of each image, where they are of
    several).
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


@dataclass(frozen=True)
class Entries:
    """L2 entries of an image that are not zero, as they stand in the file."""

    image: Image
    #: Guest cluster numbers, int64, ascending.
    cluster: NDArray[np.int64]
    #: Big-endian words, as uint64; shape (entries, 2) where L2 entries are extended.
    words: NDArray[np.uint64]


class Tables(NamedTuple):
    """L2 tables of an image that are wanted."""

    #: The caller's number for them.
    number: int
    image: Image
    #: Their places in the L1 table, int64, ascending.
    l1_index: NDArray[np.int64]
    #: Their host offsets, from :meth:`Image.l2_offsets`.
    l2_offset: NDArray[np.int64]
    #: Guest offset in bytes; clusters that end before it are left out.
    begin: int
    #: Guest offset in bytes; clusters from there on are left out.
    end: int


class TableReader:
    """Reads L2 tables, into buffers that are used again and again."""

    def __init__(self) -> None:
        self._ahead = ReadAhead()
        self._used = np.empty(PIECE_BYTES >> 3, dtype=bool)

    def read(
        self, wanted: Iterable[Tables], is_needless: Callable[[Tables], bool] | None = None
    ) -> Iterator[tuple[int, Entries]]:
        """Yield what some L2 tables hold, in their order, with the number of each.

        :param wanted: is asked for tables some time before they are yielded.
        :param is_needless: asked when tables cannot be read: whether nobody wants them any more.
        :raise ImageError: if a table cannot be read or reaches past the end of its file.
        """
        failed: Tables | None = None
        for part, content in self._ahead.read(_pieces(wanted)):
            tables, collected = part.tables, part.collected
            if isinstance(content, ImageError):
                if is_needless is None or not is_needless(tables):
                    raise content
                failed = tables
                continue
            if tables is failed:
                continue
            header = tables.image.header
            found, words = self._used_entries(content, header.l2_entry_size)
            if len(found):
                collected.positions.append(found + part.first_entry)
                collected.words.append(words)
                collected.count += len(found)
            batch = BATCH_UNITS // layout.SUBCLUSTERS_PER_CLUSTER if header.extended_l2 else BATCH_UNITS
            if collected.count and (part.is_last or collected.count >= batch):
                yield tables.number, collected.take(tables.image)

    def _used_entries(self, words: NDArray[np.uint64], entry_size: int) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        """Return which entries are not zero, and these."""
        (found,) = np.not_equal(words, 0, out=self._used[: len(words)]).nonzero()
        if entry_size == 16:  # an entry is of interest if either half of it is
            half = found >> 1
            found = half[np.flatnonzero(np.diff(half, prepend=-1))]
            return found, words.reshape(-1, 2)[found]
        return found, words[found]


class _Collected:
    """Entries that were found in some tables and not yet handed out."""

    __slots__ = ("_number", "_shift", "count", "positions", "words")

    def __init__(self, number: list[int], shift: list[int]) -> None:
        self._number, self._shift = number, shift
        self.positions: list[NDArray[np.int64]] = []
        self.words: list[NDArray[np.uint64]] = []
        self.count = 0

    def take(self, image: Image) -> Entries:
        entries = Entries(image, _clusters(self.positions, self._number, self._shift), np.concatenate(self.words))
        self.positions, self.words, self.count = [], [], 0
        return entries


class _Part(NamedTuple):
    """A piece of a file in which some tables, or a part of one, lie."""

    tables: Tables
    collected: _Collected
    #: Number of its first entry among all of the tables.
    first_entry: int
    is_last: bool


def _pieces(wanted: Iterable[Tables]) -> Iterator[Piece[_Part]]:
    for tables in wanted:
        spans, number, shift = _spans(tables)
        collected, done = _Collected(number, shift), 0
        for nth, (offset, length) in enumerate(spans, 1):
            yield Piece(_Part(tables, collected, done, nth == len(spans)), tables.image.file, offset, length)
            done += length // tables.image.header.l2_entry_size


def _spans(tables: Tables) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return what to read in one go: tables that follow each other in the file together, large ones in parts.

    :return: offset and length in bytes of every piece of the file; for each table the number of its first entry among
        all that are read, and what to add to the number of one of its entries to have the guest cluster.
    """
    header = tables.image.header
    size, per_table, entry_size = header.cluster_size, header.l2_entries, header.l2_entry_size
    first_wanted, last_wanted = tables.begin // size, -(-tables.end // size)
    spans: list[tuple[int, int]] = []
    number: list[int] = []
    shift: list[int] = []
    start = stop = total = 0
    for index, offset in zip(tables.l1_index.tolist(), tables.l2_offset.tolist(), strict=True):
        first = max(index * per_table, first_wanted)
        count = min((index + 1) * per_table, last_wanted) - first
        place = offset + (first - index * per_table) * entry_size
        number.append(total)
        shift.append(first - total)
        total += count
        if place != stop:
            spans += divide(start, stop)
            start = place
        stop = place + count * entry_size
    spans += divide(start, stop)
    return spans, number, shift


def _clusters(positions: list[NDArray[np.int64]], number: list[int], shift: list[int]) -> NDArray[np.int64]:
    """Return the guest clusters of entries that are known by their number among all that are read."""
    position = np.concatenate(positions)
    if len(number) == 1:
        return position + shift[0]
    table = np.array(number).searchsorted(position, side="right") - 1
    clusters: NDArray[np.int64] = position + np.array(shift)[table]
    return clusters


def decode(parts: Sequence[Entries]) -> Mapping:
    """Take L2 entries apart.

    :param parts: of one image; or of several with one :attr:`Image.batch_key`, whose units then follow each other.
    :raise ImageError: if an entry is malformed or points past the end of its file.
    """
    clusters = np.concatenate([part.cluster for part in parts])
    entries = np.concatenate([part.words for part in parts]).byteswap()
    if parts[0].image.header.extended_l2:
        return _split(parts, _decode(parts, clusters, entries[:, 0]), entries[:, 1])
    return _decode(parts, clusters, entries)


def _decode(parts: Sequence[Entries], clusters: NDArray[np.int64], entries: NDArray[np.uint64]) -> Mapping:
    """Take L2 entries apart; with extended L2 the kinds are those of whole clusters, still without the bitmaps."""
    header = parts[0].image.header
    host = (entries & np.uint64(layout.L2E_OFFSET_MASK)).view(np.int64)
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
    if any_flag & layout.OFLAG_ZERO and not header.extended_l2:
        flagged = (entries & np.uint64(layout.OFLAG_ZERO | layout.OFLAG_COMPRESSED)) == layout.OFLAG_ZERO
        if header.version == 2 and flagged.any():
            _refuse(parts, flagged, "has the zero flag, which version 2 does not know")
        kind[flagged] = np.where(host[flagged] > 0, np.uint8(Kind.ZERO_ALLOC), np.uint8(Kind.ZERO_PLAIN))
        # Under the zero flag offset 0 is no place, in an external data file either (qcow2_get_cluster_type()).
        host[kind == Kind.ZERO_PLAIN] = -1
    if any_flag & layout.OFLAG_COMPRESSED:
        compressed = (entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0
        if header.has_data_file:
            _refuse(parts, compressed, "is compressed, which an external data file does not allow")
        offset, length = split_compressed(entries[compressed], header.cluster_bits)
        kind[compressed] = Kind.COMPRESSED
        host[compressed] = offset
        stored[compressed] = length
    _check_offsets(parts, clusters, kind, host)
    return Mapping(clusters, kind, host, stored)


def _check_offsets(
    parts: Sequence[Entries], clusters: NDArray[np.int64], kind: NDArray[np.uint8], host: NDArray[np.int64]
) -> None:
    header = parts[0].image.header
    is_aligned = not int(np.bitwise_or.reduce(host)) & (header.cluster_size - 1)
    if is_aligned and not header.has_data_file:
        sizes = np.array([part.image.file.size for part in parts]).repeat([len(part.cluster) for part in parts])
        if (host < sizes).all():
            return  # the rule
    has_place = ((kind == Kind.DATA) | (kind == Kind.ZERO_ALLOC)) & (host >= 0)
    misplaced = has_place & ((host & (header.cluster_size - 1)) != 0)
    if misplaced.any():
        _refuse(parts, misplaced, "has a host offset that is not aligned", host)
    if header.has_data_file:
        misplaced = has_place & (host != clusters * header.cluster_size)
        if misplaced.any():
            _refuse(parts, misplaced, "has a host offset that is not the guest's, in a data file", host)
    beyond = np.zeros(len(host), dtype=bool)
    first = 0
    for part in parts:
        rows = slice(first, first + len(part.cluster))
        # A preallocated zero cluster may lie past the end of the file: nothing was ever written there.
        for what, file in ((Kind.DATA, part.image.data_file), (Kind.COMPRESSED, part.image.file)):
            places = np.where(kind[rows] == what, host[rows], -1)
            if (places >= file.size).any():
                beyond[rows] |= places >= file.refresh_size()
        first = rows.stop
    if beyond.any():
        _refuse(parts, beyond, "points past the file's end", host)


def _refuse(
    parts: Sequence[Entries], where: NDArray[np.bool_], what: str, host: NDArray[np.int64] | None = None
) -> NoReturn:
    index = int(where.argmax())
    detail = "" if host is None else f" ({int(host[index]):#x})"
    for part in parts:
        if index < len(part.cluster):
            break
        index -= len(part.cluster)
    guest = int(part.cluster[index]) * part.image.header.cluster_size
    raise ImageError(f"L2 entry of guest offset {guest:#x} {what}{detail}", path=part.image.path)


def _split(parts: Sequence[Entries], whole: Mapping, bitmaps: NDArray[np.uint64]) -> Mapping:
    """Split clusters into their subclusters and drop those that neither the entry nor the bitmap speaks of."""
    per_cluster = layout.SUBCLUSTERS_PER_CLUSTER
    index = np.arange(per_cluster, dtype=np.uint64)
    alloc = ((bitmaps[:, None] >> index) & np.uint64(1)) != 0
    zero = ((bitmaps[:, None] >> (index + np.uint64(32))) & np.uint64(1)) != 0
    compressed = whole.kind == Kind.COMPRESSED
    has_place = whole.kind == Kind.DATA
    invalid = ~compressed & np.where(has_place, (alloc & zero).any(axis=1), alloc.any(axis=1))
    if invalid.any():
        _refuse(parts, invalid, "has a subcluster bitmap that contradicts itself")
    kind = np.where(alloc, np.uint8(Kind.DATA), np.uint8(Kind.UNALLOCATED))
    kind[zero & has_place[:, None]] = Kind.ZERO_ALLOC
    kind[zero & ~has_place[:, None]] = Kind.ZERO_PLAIN
    kind[compressed] = Kind.COMPRESSED
    host = np.repeat(whole.host_offset[:, None], per_cluster, axis=1)
    host[has_place] += index.astype(np.int64) * parts[0].image.header.subcluster_size
    unit = whole.unit[:, None] * per_cluster + index.astype(np.int64)
    stored = np.repeat(whole.stored_bytes, per_cluster)
    keep = ((kind != Kind.UNALLOCATED) | (host >= 0)).ravel()
    return Mapping(unit.ravel()[keep], kind.ravel()[keep], host.ravel()[keep], stored[keep])
