"""The one resolver: a chain's layers in, windows of one merged map out.

For every window the layers are taken from the top down; each fills what is still open, until nothing is. A layer whose
L1 table has nothing for a window costs one look into that table, and none where the last look told that the next L2
table is further on. Memory is that of a window, whatever the disk's size and the number of layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.window import Window
from chainlift.qcow2.layout import SECTOR_SIZE, Kind
from chainlift.qcow2.mapping import Mapping, TableReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.chain.chain import Chain
    from chainlift.chain.digest import TablesDigest
    from chainlift.chain.layer import Layer
    from chainlift.qcow2.image import Image

#: Granules in a window: 18 bytes each.
WINDOW_GRANULES = 1 << 20
#: Granules whose open ones are counted together, to know early that a table need not be read.
_BUCKET_BITS = 12
_NEVER = np.iinfo(np.int64).max


class Resolver:
    """Resolves a chain, window after window.

    :param chain: the chain.
    :param tally: None, or an int64 array of shape (layers, kinds), zeros: every unit (subcluster or cluster) that a
        layer's tables speak of is counted in it, the invisible ones too. Nothing is then left unread.
    :param digests: None, or one for each layer, to take in what its tables say of the disk; of everything, too.
    """

    def __init__(
        self, chain: Chain, tally: NDArray[np.int64] | None = None, digests: Sequence[TablesDigest] | None = None
    ) -> None:
        self._layers = chain.layers
        self._limits = chain.visible_sizes
        self._granularity = chain.granularity
        self._size = chain.virtual_size
        self._tally = tally
        self._digests = digests
        self._reads_all = tally is not None or digests is not None
        #: With a tally, the L2 tables of each layer.
        self.table_count = np.zeros(len(self._layers), dtype=np.int64)
        self._reader = TableReader()
        #: For each layer the guest offset of the first L2 table at or after the window, as far as is known.
        self._next_table = np.full(len(self._layers), -1, dtype=np.int64)
        granule = self._granularity
        inner = np.unique(self._limits[(self._limits > 0) & (self._limits < self._size)])
        odd = inner[inner % granule != 0] // granule * granule
        #: Granules in which a layer ends, and where windows must therefore be cut.
        self._odd = set(odd.tolist())
        self._cuts = np.unique(np.concatenate((inner // granule * granule, odd + granule)))

    def windows(self, start: int, end: int) -> Iterator[Window]:
        """Yield the windows from ``start`` (rounded down to a granule) to ``end`` (rounded up), in bytes."""
        granule = self._granularity
        position = start // granule * granule
        end = min(-(-end // granule) * granule, self._size)
        step = WINDOW_GRANULES * granule
        while position < end:
            if position in self._odd:
                stop = min(position + granule, end)
                self._look_ahead(position)
                yield self._resolve(position, stop, SECTOR_SIZE)
                position = stop
                continue
            cut = int(self._cuts[i]) if (i := np.searchsorted(self._cuts, position, "right")) < len(self._cuts) else end
            stop = min((position // step + 1) * step, end, cut)
            self._look_ahead(position)
            nearest = int(self._next_table.min())
            if nearest >= stop:
                stop = min(nearest, end, cut)
                yield self._without_tables(position, stop)
            else:
                yield self._resolve(position, stop, granule)
            position = stop

    def tally_beyond(self, offset: int) -> None:
        """Count what layers have at and after a guest offset: of layers that are larger than the disk."""
        for index, layer in enumerate(self._layers):
            if layer.image is not None and layer.virtual_size > offset:
                span = layer.image.table_span
                first = layer.image.next_table(offset // span)
                while first is not None and first * span < layer.virtual_size:
                    self._count_only(
                        index, layer.image, max(offset, first * span), min((first + 64) * span, layer.virtual_size)
                    )
                    first = layer.image.next_table(first + 64)

    def _look_ahead(self, position: int) -> None:
        for index in np.flatnonzero(self._next_table < position).tolist():
            image = self._layers[index].image
            table = None if image is None else image.next_table(position // image.table_span)
            if table is None or image is None:
                self._next_table[index] = _NEVER
            else:
                self._next_table[index] = max(position, table * image.table_span)

    def _without_tables(self, start: int, stop: int) -> Window:
        depth = len(self._layers) - 1
        is_raw = self._layers[depth].image is None and int(self._limits[depth]) > start
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
        canvas = _Canvas(start, stop, granule)
        for index, layer in enumerate(self._layers):
            limit = int(self._limits[index])
            canvas.close_from(limit)
            if not canvas.remaining and not self._reads_all:
                break
            if layer.image is None:
                canvas.fill_raw(index)
            elif int(self._next_table[index]) < stop:
                ends_at = int(self._limits[index + 1]) if index + 1 < len(self._layers) else 0
                self._read_layer(canvas, index, layer, ends_at)
        return canvas.window

    def _read_layer(self, canvas: _Canvas, index: int, layer: Layer, ends_at: int) -> None:
        image = layer.image
        assert image is not None
        start, stop = canvas.window.start, min(canvas.window.end, layer.virtual_size)
        tables, offsets = _tables(image, start, stop)
        if self._tally is not None:
            # A table that began in the window before was counted there.
            self.table_count[index] += np.count_nonzero(tables * image.table_span >= start)
        elif len(tables) and not self._reads_all:
            wanted = canvas.has_open(tables * image.table_span, image.table_span)
            tables, offsets = tables[wanted], offsets[wanted]
        if not len(tables):
            return
        unit_size = image.header.subcluster_size
        for mapping in self._reader.read(image, tables, offsets, start, stop):
            if self._tally is not None:
                # A unit that began in the window before was counted there.
                self._tally[index] += np.bincount(mapping.kind[mapping.unit * unit_size >= start], minlength=len(Kind))
            if self._digests is not None:
                self._digests[index].add(mapping)
            if canvas.remaining:
                canvas.paint(index, mapping, unit_size, ends_at)

    def _count_only(self, index: int, image: Image, start: int, stop: int) -> None:
        assert self._tally is not None
        tables, offsets = _tables(image, start, stop)
        self.table_count[index] += np.count_nonzero(tables * image.table_span >= start)
        for mapping in self._reader.read(image, tables, offsets, start, stop):
            begins = mapping.unit * image.header.subcluster_size
            self._tally[index] += np.bincount(mapping.kind[begins >= start], minlength=len(Kind))


def _tables(image: Image, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the L1 indexes that have a table for a span of the disk, and where the tables are."""
    first = start // image.table_span
    offsets = image.l2_offsets(first, -(-stop // image.table_span))
    used = np.flatnonzero(offsets)
    return used + first, offsets[used]


class _Canvas:
    """A window that is being filled."""

    def __init__(self, start: int, stop: int, granule: int) -> None:
        count = -(-(stop - start) // granule)
        self.window = Window(
            start=start,
            length=stop - start,
            granularity=granule,
            layer=np.full(count, -1, dtype=np.int32),
            kind=np.zeros(count, dtype=np.uint8),
            host_offset=np.full(count, -1, dtype=np.int64),
            stored_bytes=np.zeros(count, dtype=np.int32),
        )
        self._open = np.ones(count, dtype=bool)
        self.remaining = count
        buckets = -(-count >> _BUCKET_BITS)
        self._open_in_bucket = np.full(buckets, 1 << _BUCKET_BITS, dtype=np.int64)
        self._open_in_bucket[-1] = count - ((len(self._open_in_bucket) - 1) << _BUCKET_BITS)
        self._closed_from = count

    def close_from(self, limit: int) -> None:
        """Close what lies at and after a guest offset: the layers from here on end there, and zeros follow."""
        first = max(0, -(-(limit - self.window.start) // self.window.granularity))
        if first >= self._closed_from:
            return
        self._close(first + np.flatnonzero(self._open[first : self._closed_from]))
        self._closed_from = first

    def has_open(self, begin: NDArray[np.int64], span: int) -> NDArray[np.bool_]:
        """Tell for spans of the disk, given by their guest offset and common length, whether anything is open there."""
        open_before = np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._open_in_bucket)))
        granule = self.window.granularity
        first = np.maximum(0, (begin - self.window.start) // granule) >> _BUCKET_BITS
        last = np.minimum(len(self._open) - 1, (begin + span - 1 - self.window.start) // granule) >> _BUCKET_BITS
        wanted: NDArray[np.bool_] = open_before[last + 1] > open_before[first]
        return wanted

    def fill_raw(self, index: int) -> None:
        """Fill all that is open from a raw layer, in which guest offset and host offset are the same."""
        places = np.flatnonzero(self._open)
        self.window.layer[places] = index
        self.window.kind[places] = Kind.DATA
        self.window.host_offset[places] = self.window.start + places * self.window.granularity
        self._close(places)

    def paint(self, index: int, mapping: Mapping, unit_size: int, ends_at: int) -> None:
        """Fill what is open from what a layer's tables say.

        :param ends_at: guest offset from which on there is nothing below this layer.
        """
        granule = self.window.granularity
        per_unit = unit_size // granule
        places = mapping.unit * per_unit - self.window.start // granule
        kind, host, stored = mapping.kind, mapping.host_offset, mapping.stored_bytes
        if per_unit > 1:
            within = np.arange(per_unit, dtype=np.int64)
            places = (places[:, None] + within).ravel()
            has_place = (kind != Kind.COMPRESSED) & (host >= 0)
            host = (host[:, None] + has_place[:, None] * within * granule).ravel()
            kind, stored = np.repeat(kind, per_unit), np.repeat(stored, per_unit)
        first, last = np.searchsorted(places, (0, len(self._open)))
        chosen = np.flatnonzero(self._open[places[first:last]]) + first
        if len(chosen) < len(places):
            places, kind, host, stored = places[chosen], kind[chosen], host[chosen], stored[chosen]
        says_nothing = kind == Kind.UNALLOCATED
        if says_nothing.any():
            # Allocated without content: the answer is further down, unless this layer is the last that reaches here.
            ends = says_nothing & (self.window.start + places * granule >= ends_at)
            self.window.host_offset[places[ends]] = host[ends]
            speaks = ~says_nothing
            places, kind, host, stored = places[speaks], kind[speaks], host[speaks], stored[speaks]
        self.window.layer[places] = index
        self.window.kind[places] = kind
        self.window.host_offset[places] = host
        self.window.stored_bytes[places] = stored
        self._close(places)

    def _close(self, places: NDArray[np.int64]) -> None:
        self._open[places] = False
        self.remaining -= len(places)
        self._open_in_bucket -= np.bincount(places >> _BUCKET_BITS, minlength=len(self._open_in_bucket))
