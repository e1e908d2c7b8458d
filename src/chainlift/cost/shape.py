"""What the model looks at in a chain: for each layer what reads reach it, what they find, and how many nodes are below.

Everything is a sum over the disk, so that a chain of 1,000 layers is a few arrays of 1,000 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.chain.summary import ChainSummary, LayerSummary

    Floats = NDArray[np.float64]

#: What can be done to a chain; ``no-check`` is a QEMU without the check whose walks make reads quadratic.
Lift = Literal["none", "index", "squash", "flatten", "prune", "no-check"]


#: QEMU caches whole L2 tables, or slices of so much where the cache cannot hold all that a disk needs
#: (``read_cache_sizes()`` in block/qcow2.c).
_SLICE_BYTES = 4 << 10
_RAW_CLUSTER_BYTES = 64 << 10
#: DEFAULT_L2_CACHE_MAX_SIZE in block/qcow2.h.
_L2_CACHE_BYTES = 32 << 20


@dataclass(frozen=True)
class Shape:
    """A chain; arrays have an element a layer, the active one first."""

    virtual_size_bytes: int
    #: The smallest piece that any layer can have.
    granularity_bytes: int
    #: Nodes of QEMU's graph that belong to the layer, its files among them.
    nodes: Floats
    #: Nodes that a read of the layer's data goes through, and is checked at.
    io_nodes: Floats
    #: Files that QEMU opens for it.
    files: Floats
    #: Files that it points into, where it is an index; else 0.
    extents: Floats
    #: Bytes of the disk whose search comes to the layer, and the pieces in which they lie.
    entered_bytes: Floats
    entered_runs: Floats
    #: Bytes that are read from its data, and the pieces.
    data_bytes: Floats
    data_runs: Floats
    #: Bytes that are read from its compressed clusters.
    compressed_bytes: Floats
    #: 0 for a raw layer.
    cluster_bytes: Floats
    is_zstd: NDArray[np.bool_]
    #: Its L2 tables; how much of the disk one is for; the bytes of one slice as QEMU caches it; bytes of all slices
    #: that reads of the whole disk look at; bytes that its L2 cache may hold.
    tables: Floats
    table_span_bytes: Floats
    slice_bytes: Floats
    table_bytes: Floats
    cache_bytes: Floats
    is_encrypted: bool

    @property
    def length(self) -> int:
        """Layers over the base."""
        return len(self.nodes) - 1

    @property
    def nodes_below(self) -> Floats:
        """Nodes of each layer and of all below it: what one walk visits."""
        return np.cumsum(self.nodes[::-1])[::-1]

    def under_an_overlay(self) -> Shape:
        """Return the chain with one more layer on top, which has nothing yet."""

        def on_top(values: Floats, value: float) -> Floats:
            return np.array([value, *values])

        cluster = float(self.cluster_bytes.max() or 65536)
        span = cluster * cluster / 8
        cache = float(self.cache_bytes.max())
        return replace(
            self,
            nodes=on_top(self.nodes, 2),
            io_nodes=on_top(self.io_nodes, 1),
            files=on_top(self.files, 1),
            extents=on_top(self.extents, 0),
            entered_bytes=on_top(self.entered_bytes, self.virtual_size_bytes),
            entered_runs=on_top(self.entered_runs, 1),
            data_bytes=on_top(self.data_bytes, 0),
            data_runs=on_top(self.data_runs, 0),
            compressed_bytes=on_top(self.compressed_bytes, 0),
            cluster_bytes=on_top(self.cluster_bytes, cluster),
            is_zstd=np.array([False, *self.is_zstd]),
            tables=on_top(self.tables, 0),
            table_span_bytes=on_top(self.table_span_bytes, span),
            slice_bytes=on_top(self.slice_bytes, _slice(cluster, span, self.virtual_size_bytes, cache)),
            table_bytes=on_top(self.table_bytes, 0),
            cache_bytes=on_top(self.cache_bytes, cache),
        )

    def lifted(self, lift: Lift, *, extents: int | None = None, layers: int | None = None) -> Shape:
        """Return the chain as a lift would leave it.

        :param extents: of an index: the files that it points into; None: all that have something to be seen.
        :param layers: what ``prune`` leaves over the base, 1 or more; None: 10.
        """
        if lift in ("none", "no-check"):
            return self
        if lift == "prune":
            return self._pruned(10 if layers is None else layers)
        if lift == "flatten" or self.length < 1:
            return self._joined([(0, len(self.nodes))]) if self.length else self
        if lift == "squash":
            cuts = [(0, 1), (self.length, self.length + 1)]
            return self._joined(cuts if self.length < 2 else [cuts[0], (1, self.length), cuts[1]])
        seen = int(np.count_nonzero(self.data_bytes[1:] + self.compressed_bytes[1:]))
        return _indexed(self._joined([(0, 1), (1, self.length + 1)]), max(1, seen if extents is None else extents))

    def _pruned(self, layers: int) -> Shape:
        """Join layers until so many are left over the base, in parts as even as can be."""
        if layers >= self.length:
            return self
        edges = np.unique(np.linspace(0, self.length, max(1, layers) + 1).round().astype(int)).tolist()
        return self._joined([*pairwise(edges), (self.length, self.length + 1)])

    def _joined(self, groups: list[tuple[int, int]]) -> Shape:
        """Make one plain qcow2 layer of each range of layers; a range of one stays what it is."""
        first = np.array([low for low, _ in groups])

        def summed(values: Floats) -> Floats:
            return np.array([values[low:high].sum() for low, high in groups])

        def alone(values: Floats, joined: float) -> Floats:
            return np.array([values[low] if high - low == 1 else joined for low, high in groups])

        cluster = float(self.cluster_bytes.max() or 65536)
        span = cluster * cluster / 8
        most = -(-self.virtual_size_bytes // span)
        slice_bytes = _slice(cluster, span, self.virtual_size_bytes, float(self.cache_bytes.max()))
        return replace(
            self,
            nodes=alone(self.nodes, 2),
            io_nodes=alone(self.io_nodes, 1),
            files=alone(self.files, 1),
            extents=alone(self.extents, 0),
            entered_bytes=self.entered_bytes[first],
            entered_runs=self.entered_runs[first],
            data_bytes=summed(self.data_bytes),
            data_runs=summed(self.data_runs),
            compressed_bytes=summed(self.compressed_bytes),
            cluster_bytes=alone(self.cluster_bytes, cluster),
            is_zstd=np.array([self.is_zstd[low:high].any() for low, high in groups]),
            tables=alone(self.tables, most),
            table_span_bytes=alone(self.table_span_bytes, span),
            slice_bytes=alone(self.slice_bytes, slice_bytes),
            table_bytes=alone(
                self.table_bytes, most * _table_bytes(cluster, span, slice_bytes, self.virtual_size_bytes)
            ),
            cache_bytes=np.array([self.cache_bytes[low:high].max() for low, high in groups]),
        )


def _indexed(shape: Shape, extents: int) -> Shape:
    """Make an index over ``extents`` files of what is layer 1."""

    def with_last(values: Floats, last: float) -> Floats:
        return np.array([*values[:-1], last])

    # The qcow2 node, the vmdk node, its descriptor, and each extent.
    return replace(
        shape,
        nodes=with_last(shape.nodes, extents + 3),
        io_nodes=with_last(shape.io_nodes, extents + 2),
        files=with_last(shape.files, extents + 1),
        extents=with_last(shape.extents, extents),
    )


def plain_shape(
    virtual_size_bytes: int,
    cluster_bytes: float,
    *,
    entered_bytes: Floats,
    entered_runs: Floats,
    data_bytes: Floats,
    data_runs: Floats,
    tables: Floats,
) -> Shape:
    """Return the shape of a chain of plain qcow2 layers, all with clusters of one size.

    :param entered_bytes: of each layer, from the top down, as all arrays here: see the fields of :class:`Shape`.
    """
    count = len(tables)
    span = cluster_bytes * cluster_bytes / 8
    cache = float(_L2_CACHE_BYTES)
    slice_bytes = _slice(cluster_bytes, span, virtual_size_bytes, cache)
    return Shape(
        virtual_size_bytes=virtual_size_bytes,
        granularity_bytes=int(cluster_bytes),
        nodes=np.full(count, 2.0),
        io_nodes=np.ones(count),
        files=np.ones(count),
        extents=np.zeros(count),
        entered_bytes=entered_bytes,
        entered_runs=entered_runs,
        data_bytes=data_bytes,
        data_runs=data_runs,
        compressed_bytes=np.zeros(count),
        cluster_bytes=np.full(count, float(cluster_bytes)),
        is_zstd=np.zeros(count, dtype=bool),
        tables=tables,
        table_span_bytes=np.full(count, span),
        slice_bytes=np.full(count, slice_bytes),
        table_bytes=tables * _table_bytes(cluster_bytes, span, slice_bytes, virtual_size_bytes),
        cache_bytes=np.full(count, cache),
        is_encrypted=False,
    )


def shape_of(summary: ChainSummary, *, l2_cache_bytes: int | None = None) -> Shape:
    """Return what the model looks at.

    :param l2_cache_bytes: QEMU's option ``l2-cache-size``, in bytes a layer; None: its default, 32 MiB.
    """
    layers, disk = summary.layers, summary.virtual_size
    cache_bytes = float(_L2_CACHE_BYTES if l2_cache_bytes is None else l2_cache_bytes)
    reached = np.array(summary.answered_bytes, float) + np.array(summary.unanswered_bytes, float)

    def each(value: object) -> Floats:
        return np.array([float(value(layer)) for layer in layers])  # type: ignore[operator]

    return Shape(
        virtual_size_bytes=summary.virtual_size,
        granularity_bytes=summary.granularity,
        nodes=each(_nodes),
        io_nodes=each(lambda layer: layer.extents + 2 if layer.extents else 1),
        files=each(lambda layer: layer.files),
        extents=each(lambda layer: layer.extents),
        entered_bytes=np.cumsum(reached[::-1])[::-1],
        entered_runs=np.array(summary.entered_runs, float),
        data_bytes=each(lambda layer: layer.visible_bytes - layer.visible_compressed_bytes),
        data_runs=np.array(summary.answered_runs, float),
        compressed_bytes=each(lambda layer: layer.visible_compressed_bytes),
        cluster_bytes=each(lambda layer: layer.cluster_size or 0),
        is_zstd=np.array([layer.compression == "zstd" for layer in layers]),
        tables=each(lambda layer: layer.l2_tables),
        table_span_bytes=each(_span),
        slice_bytes=each(lambda layer: _slice(_cluster(layer), _span(layer), disk, cache_bytes)),
        table_bytes=each(lambda layer: layer.l2_tables and layer.l2_tables * _read_bytes(layer, disk, cache_bytes)),
        cache_bytes=np.full(len(layers), cache_bytes),
        is_encrypted=any(layer.is_encrypted for layer in layers),
    )


def _cluster(layer: LayerSummary) -> int:
    return layer.cluster_size or _RAW_CLUSTER_BYTES


def _span(layer: LayerSummary) -> float:
    """Return how much of the disk one L2 table of a layer is for; entries with subclusters have 16 bytes, not 8."""
    cluster = _cluster(layer)
    has_subclusters = layer.unit_size is not None and layer.unit_size < cluster
    return cluster * cluster / (16 if has_subclusters else 8)


def _slice(cluster: float, span: float, virtual_size: int, cache_bytes: float) -> float:
    """Return the bytes of a slice."""
    needed = -(-virtual_size // span) * cluster
    return cluster if cache_bytes >= needed else min(cluster, _SLICE_BYTES)


def _read_bytes(layer: LayerSummary, virtual_size: int, cache_bytes: float) -> float:
    cluster, span = _cluster(layer), _span(layer)
    return _table_bytes(cluster, span, _slice(cluster, span, virtual_size, cache_bytes), virtual_size)


def _table_bytes(cluster: float, span: float, slice_bytes: float, virtual_size: int) -> float:
    """Return the bytes of one table that reads of a disk look at: of a large one, on a small disk, not all slices."""
    return min(cluster, -(-cluster * min(span, virtual_size) / span // slice_bytes) * slice_bytes)


def _nodes(layer: LayerSummary) -> int:
    """Count a layer's nodes: its format's, and one a file; of an index the vmdk node, too."""
    return layer.files + (2 if layer.extents else 1)
