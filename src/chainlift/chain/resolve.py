"""The one resolver: a chain's layers in, windows of one merged map out.

For every window the layers are taken from the top down; each fills what is still open, until nothing is. A layer whose
L1 table has nothing for a window costs one look into that table, and none where the last look told that the next L2
table is further on. Memory is that of a window, whatever the disk's size and the number of layers.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

import numpy as np

from chainlift.chain.partial_window import PartialWindow
from chainlift.chain.window import Window
from chainlift.errors import ImageError
from chainlift.qcow2.layout import SECTOR_SIZE, Kind
from chainlift.qcow2.mapping import BATCH_UNITS, Entries, Mapping, TableReader, Tables, decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.chain.layer import Layer
    from chainlift.qcow2.image import Image

#: Granules in a window: 18 bytes each.
WINDOW_GRANULES = 1 << 20
#: L2 tables of a layer whose places are remembered: 16 bytes each.
_TABLES_AHEAD = 512
_NEVER = np.iinfo(np.int64).max


class Taker(Protocol):
    """What takes in what a layer's tables say."""

    def add(self, mapping: Mapping) -> None:
        """Take in what some tables say, in ascending order; where windows overlap, some of it twice."""


class Layers(Protocol):
    """What of a :class:`~chainlift.chain.chain.Chain` is resolved."""

    layers: tuple[Layer, ...]
    granularity: int
    visible_sizes: NDArray[np.int64]

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk that a guest sees."""

    def require_open(self) -> None:
        """Refuse to go on with files that were closed."""


class Resolver:
    """Resolves a chain, window after window.

    :param chain: the chain.
    :param tally: None, or an int64 array of shape (layers, kinds), zeros: every unit (subcluster or cluster) that a
        layer's tables speak of is counted in it, the invisible ones too. Nothing is then left unread.
    :param digests: None, or one for each layer, to take in what its tables say of the disk; of everything, too.
    """

    def __init__(
        self, chain: Layers, tally: NDArray[np.int64] | None = None, digests: Sequence[Taker] | None = None
    ) -> None:
        self._chain = chain
        self._layers = chain.layers
        #: How far each layer can be seen, and that nothing is below the last.
        self._limits = [*chain.visible_sizes.tolist(), 0]
        self._granularity = chain.granularity
        self._size = chain.virtual_size
        self._tally = tally
        self._digests = digests
        self._reads_all = tally is not None or digests is not None
        #: With a tally, the L2 tables of each layer.
        self.table_count = np.zeros(len(self._layers), dtype=np.int64)
        self._reader = TableReader()
        self._tables = [None if layer.image is None else _TablesAhead(layer.image) for layer in self._layers]
        #: For each layer the guest offset of the first L2 table at or after the window.
        self._next_table = np.full(len(self._layers), -1, dtype=np.int64)
        granule = self._granularity
        inner = sorted({limit for limit in self._limits if 0 < limit < self._size})
        #: Granules in which a layer ends, and where windows must therefore be cut.
        self._odd = {limit // granule * granule for limit in inner if limit % granule}
        self._cuts = sorted({limit // granule * granule for limit in inner} | {odd + granule for odd in self._odd})

    def windows(self, start: int, end: int) -> Iterator[Window]:
        """Yield the windows from ``start`` (rounded down to a granule) to ``end`` (rounded up), in bytes.

        :raise InputError: if the chain is closed.
        """
        granule = self._granularity
        position = start // granule * granule
        end = min(-(-end // granule) * granule, self._size)
        step = WINDOW_GRANULES * granule
        while position < end:
            self._chain.require_open()
            if position in self._odd:
                stop = min(position + granule, end)
                self._look_ahead(position)
                yield self._resolve(position, stop, SECTOR_SIZE)
                position = stop
                continue
            cut = self._cuts[i] if (i := bisect_right(self._cuts, position)) < len(self._cuts) else end
            stop = min((position // step + 1) * step, end, cut)
            self._look_ahead(position)
            nearest = int(self._next_table.min())
            if nearest >= stop:
                stop = min(nearest, end, cut)
                yield self._without_tables(position, stop)
            else:
                stop = min(stop, self._tables_end(stop))
                yield self._resolve(position, stop, granule)
            position = stop

    def tally_beyond(self, offset: int) -> None:
        """Count what layers have at and after a guest offset: of layers that are larger than the disk."""
        for index, layer in enumerate(self._layers):
            image = layer.image
            if image is None or layer.virtual_size <= offset:
                continue
            span = image.table_span
            tables, offsets = image.next_tables(offset // span, _TABLES_AHEAD)
            while len(tables) and int(tables[0]) * span < layer.virtual_size:
                begin = max(offset, int(tables[0]) * span)
                end = min((int(tables[-1]) + 1) * span, layer.virtual_size)
                self._count_tables(index, tables, begin)
                for _, entries in self._reader.read([Tables(index, image, tables, offsets, begin, end)]):
                    mapping = decode([entries])
                    self._count(np.full(len(mapping), index), mapping, image, begin)
                tables, offsets = image.next_tables(int(tables[-1]) + 1, _TABLES_AHEAD)

    def _look_ahead(self, position: int) -> None:
        for index in (self._next_table < position).nonzero()[0].tolist():
            tables = self._tables[index]
            self._next_table[index] = _NEVER if tables is None else tables.next_at(position)

    def _tables_end(self, stop: int) -> int:
        """Return where the last table before ``stop`` ends: most of a disk may have none, and costs nothing then."""
        ends = [
            tables.end_before(stop)
            for index in (self._next_table < stop).nonzero()[0].tolist()
            if (tables := self._tables[index]) is not None
        ]
        return max(ends, default=stop)

    def _without_tables(self, start: int, stop: int) -> Window:
        depth = len(self._layers) - 1
        is_raw = self._layers[depth].image is None and self._limits[depth] > start
        return Window(
            start=start,
            length=stop - start,
            granularity=stop - start,
            layer=np.array([depth if is_raw else -1], dtype=np.int32),
            kind=np.array([Kind.DATA if is_raw else Kind.UNALLOCATED], dtype=np.uint8),
            host_offset=np.array([start if is_raw else -1], dtype=np.int64),
            stored_bytes=np.zeros(1, dtype=np.int32),
        )

    def _resolve(self, start: int, stop: int, granule: int) -> Window:
        partial = PartialWindow(start, stop, granule)
        # Layers that are alike are decoded together: many have but a few entries each.
        batch: list[tuple[int, Entries]] = []
        size = 0  # of the batch, in granules
        shown, key = self._size, None

        def is_needless(tables: Tables) -> bool:
            self._fill(partial, batch)
            partial.close_from(self._limits[tables.number])
            span = tables.image.table_span
            return not self._reads_all and all(
                partial.is_hidden(first, first + span) for first in (tables.l1_index * span).tolist()
            )

        for index, entries in self._reader.read(self._wanted(partial, start, stop), is_needless):
            image, limit = entries.image, self._limits[index]
            if limit != shown or image.batch_key != key or key is None or size >= min(partial.remaining, BATCH_UNITS):
                self._fill(partial, batch)
                size, shown, key = 0, limit, image.batch_key
                partial.close_from(limit)
                if not partial.remaining and not self._reads_all:
                    break
            batch.append((index, entries))
            size += len(entries.cluster) * (image.header.cluster_size // granule)
        self._fill(partial, batch)
        depth = len(self._layers) - 1
        if self._layers[depth].image is None:
            partial.close_from(self._limits[depth])
            partial.fill_raw(depth)
        return partial.window

    def _wanted(self, partial: PartialWindow, start: int, stop: int) -> Iterator[Tables]:
        """Yield the tables to read, from the top down; the window may meanwhile lag behind by some layers."""
        for index in (self._next_table < stop).nonzero()[0].tolist():
            image, ahead = self._layers[index].image, self._tables[index]
            assert image is not None
            assert ahead is not None
            end = min(stop, image.header.virtual_size)
            tables, offsets = ahead.between(start, end)
            if self._tally is not None:
                self._count_tables(index, tables, start)
            if partial.has_closed_bucket and not self._reads_all:
                seen = partial.has_open(tables * image.table_span, image.table_span)
                tables, offsets = tables[seen], offsets[seen]
            if len(tables):
                yield Tables(index, image, tables, offsets, start, end)

    def _fill(self, partial: PartialWindow, batch: list[tuple[int, Entries]]) -> None:
        """Bring a batch into the window, and empty it."""
        if batch:
            try:
                mapping = decode([entries for _, entries in batch])
            except ImageError:
                if self._reads_all:
                    raise
                self._fill_what_is_seen(partial, batch)
            else:
                self._fill_decoded(partial, batch, mapping)
            batch.clear()

    def _fill_what_is_seen(self, partial: PartialWindow, batch: list[tuple[int, Entries]]) -> None:
        # QEMU does not look at what other layers hide, malformed or not.
        for index, entries in batch:
            seen = partial.without_hidden(entries)
            if len(seen.cluster):
                self._fill_decoded(partial, [(index, seen)], decode([seen]))

    def _fill_decoded(self, partial: PartialWindow, batch: list[tuple[int, Entries]], mapping: Mapping) -> None:
        index, image = batch[-1][0], batch[-1][1].image
        if batch[0][0] == index:
            layer = np.full(len(mapping), index)
        else:  # of several, which are alike and have a unit for each entry
            layer = np.repeat([part for part, _ in batch], [len(entries.cluster) for _, entries in batch])
        if self._tally is not None:
            self._count(layer, mapping, image, partial.window.start)
        if self._digests is not None:
            first = 0
            for part, count in zip(*(column.tolist() for column in np.unique(layer, return_counts=True)), strict=True):
                self._digests[part].add(mapping.take(slice(first, first + count)))
                first += count
        if partial.remaining:
            partial.fill(layer, mapping, image.header.subcluster_size, self._limits[index + 1])

    def _count_tables(self, index: int, tables: NDArray[np.int64], start: int) -> None:
        # A table that began in the window before was counted there; so was a unit.
        image = self._layers[index].image
        assert image is not None
        self.table_count[index] += np.count_nonzero(tables * image.table_span >= start)

    def _count(self, layer: NDArray[np.int64], mapping: Mapping, image: Image, start: int) -> None:
        assert self._tally is not None
        new = mapping.unit * image.header.subcluster_size >= start
        place = layer[new] * len(Kind) + mapping.kind[new]
        self._tally += np.bincount(place, minlength=self._tally.size).reshape(self._tally.shape)


class _TablesAhead:
    """Where a layer's next L2 tables are: the L1 table is read some way ahead, not once for every window."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._span = image.table_span
        #: L1 indexes below this one are known: those in use are in the arrays, as far as they have not been passed.
        self._known_to = 0
        self._index = self._offset = np.zeros(0, dtype=np.int64)

    def next_at(self, position: int) -> int:
        """Return the guest offset at which the first table at or after ``position`` begins there, or _NEVER."""
        first = position // self._span
        place = int(self._index.searchsorted(first))
        if place == len(self._index):
            if self._known_to >= self._image.header.l1_size:
                return _NEVER
            self._index, self._offset = self._image.next_tables(max(first, self._known_to), _TABLES_AHEAD)
            is_all = len(self._index) < _TABLES_AHEAD
            self._known_to = self._image.header.l1_size if is_all else int(self._index[-1]) + 1
            if not len(self._index):
                return _NEVER
            place = 0
        return max(position, int(self._index[place]) * self._span)

    def end_before(self, stop: int) -> int:
        """Return the guest offset at which the last table ends that begins before ``stop``; ``stop`` if not known."""
        last = -(-stop // self._span)
        if last > self._known_to < self._image.header.l1_size:
            return stop
        place = int(self._index.searchsorted(last))
        return (int(self._index[place - 1]) + 1) * self._span if place else 0

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the L1 indexes that have a table for a span of the disk, and where the tables are."""
        first, last = start // self._span, -(-stop // self._span)
        if last > self._known_to < self._image.header.l1_size:
            offsets = self._image.l2_offsets(first, last)
            (used,) = offsets.nonzero()
            return used + first, offsets[used]
        begin, end = int(self._index.searchsorted(first)), int(self._index.searchsorted(last))
        return self._index[begin:end], self._offset[begin:end]
