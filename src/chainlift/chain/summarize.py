"""A chain is read once, and said is what a person should know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.findings import find_all
from chainlift.chain.needs import Needs
from chainlift.chain.resolve import Resolver
from chainlift.chain.summary import ChainSummary, LayerSummary, l2_cache_bytes
from chainlift.qcow2.bitmaps import list_bitmaps
from chainlift.qcow2.layout import Kind
from chainlift.qcow2.snapshots import list_snapshots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.chain.chain import Chain
    from chainlift.chain.layer import Layer
    from chainlift.chain.window import Runs


class _Pieces:
    """Counts pieces of the disk, window after window."""

    def __init__(self, layers: int) -> None:
        #: Where a piece begins to reach a depth that its neighbour before does not: one more there, one less behind.
        self._steps = np.zeros(layers + 1, dtype=np.int64)
        self._last = -1
        self.answered = np.zeros(layers, dtype=np.int64)

    def add(self, runs: Runs, ends: NDArray[np.int32]) -> None:
        """Count the pieces among some runs; ``ends`` is the depth at which the search for each ends."""
        before = np.concatenate((np.array([self._last], dtype=ends.dtype), ends[:-1]))
        falls = ends > before
        size = len(self._steps)
        self._steps += np.bincount(before[falls] + 1, minlength=size) - np.bincount(ends[falls] + 1, minlength=size)
        self._last = int(ends[-1])
        self.answered += np.bincount(runs.layer[runs.kind == Kind.DATA], minlength=size - 1)

    def entered(self) -> tuple[int, ...]:
        """Return the pieces that reach each depth."""
        return tuple(np.cumsum(self._steps)[:-1].tolist())


def summarize(chain: Chain) -> ChainSummary:
    """Read every L2 table of every layer once and say what a person should know.

    :raise ImageError: if a table is malformed.
    """
    tally = np.zeros((len(chain.layers), len(Kind)), dtype=np.int64)
    needs = Needs(chain.layers)
    resolver = Resolver(chain, tally, needs.takers)
    visible = np.zeros((len(chain.layers), len(Kind)), dtype=np.int64)
    unanswered = np.zeros(len(chain.layers), dtype=np.int64)
    pieces = _Pieces(len(chain.layers))
    limits = np.unique(chain.visible_sizes)
    for window in resolver.windows(0, chain.virtual_size):
        needs.next_window()
        # Most of a disk is in few runs. Layers may end inside of one that nobody has.
        runs = window.runs().split(limits)
        owned = runs.layer >= 0
        ends = runs.layer
        place = runs.layer[owned].astype(np.int64) * len(Kind) + runs.kind[owned]
        # Weights are summed as floats: exact up to 2^53 bytes.
        visible += np.bincount(place, runs.length[owned], visible.size).astype(np.int64).reshape(visible.shape)
        if not owned.all():
            depth = chain.fall_depth(runs.start[~owned])
            unanswered += np.bincount(depth, runs.length[~owned], len(unanswered)).astype(np.int64)
            ends = ends.copy()
            ends[~owned] = depth
        pieces.add(runs, ends)
    resolver.tally_beyond(chain.virtual_size)
    layers = tuple(
        _summarize_layer(
            chain, depth, tally[depth], visible[depth], int(resolver.table_count[depth]), needs.needed_bytes[depth]
        )
        for depth in range(len(chain.layers))
    )
    return ChainSummary(
        path=chain.layers[0].path,
        length=chain.length,
        virtual_size=chain.virtual_size,
        layers=layers,
        answered_bytes=tuple(visible.sum(axis=1).tolist()),
        unanswered_bytes=tuple(unanswered.tolist()),
        entered_runs=pieces.entered(),
        answered_runs=tuple(pieces.answered.tolist()),
        granularity=chain.granularity,
        findings=tuple(find_all(chain, layers)),
    )


def _summarize_layer(
    chain: Chain,
    depth: int,
    tally: NDArray[np.int64],
    visible: NDArray[np.int64],
    l2_tables: int,
    needed_bytes: int,
) -> LayerSummary:
    layer = chain.layers[depth]
    seen = int(visible[Kind.DATA] + visible[Kind.COMPRESSED])
    disk_bytes = layer.file.allocated_bytes
    if layer.image is None:
        stored, cache = min(layer.file.size, disk_bytes), 0
    else:
        header = layer.image.header
        stored = int(tally[Kind.DATA] + tally[Kind.COMPRESSED]) * header.subcluster_size
        cache = l2_cache_bytes(l2_tables, header.cluster_size)
        if layer.image.data_file is not layer.file:
            disk_bytes += layer.image.data_file.allocated_bytes
    return LayerSummary(
        depth=depth,
        path=layer.path,
        format=layer.format,
        cluster_size=layer.cluster_size,
        unit_size=layer.unit_size,
        virtual_size=layer.virtual_size,
        disk_bytes=disk_bytes,
        visible_bytes=seen,
        visible_compressed_bytes=int(visible[Kind.COMPRESSED]),
        visible_zero_bytes=int(visible[Kind.ZERO_PLAIN] + visible[Kind.ZERO_ALLOC]),
        # The last cluster of a disk may be a partial one, of which more is stored than can be seen.
        shadowed_bytes=max(0, stored - seen) if stored - seen >= (layer.unit_size or 1) else 0,
        frees_bytes=max(0, disk_bytes - needed_bytes) if _can_be_deleted(chain, depth) else None,
        l2_tables=l2_tables,
        l2_cache_bytes=cache,
        backing_name=layer.backing_name,
        backing_format=layer.backing_format,
        in_use=layer.file.has_writer(),
        snapshots=() if layer.image is None else tuple(list_snapshots(layer.image)),
        bitmaps=() if layer.image is None else tuple(list_bitmaps(layer.image)),
        compression=None if layer.image is None else layer.image.header.compression_type.name.lower(),
        files=_files(layer),
        extents=layer.extents,
        is_encrypted=layer.image is not None and layer.image.header.crypt_method != 0,
    )


def _files(layer: Layer) -> int:
    if layer.extents:
        return layer.extents + 1  # and the descriptor
    return 1 if layer.data_file is layer.file else 2


def _can_be_deleted(chain: Chain, depth: int) -> bool:
    if not depth or chain.layers[depth].extents:
        return False
    # What lies behind the end of the disk was not looked at.
    return min(layer.virtual_size for layer in chain.layers[depth - 1 : depth + 1]) <= chain.virtual_size
