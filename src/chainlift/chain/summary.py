"""What a person should know of a chain: who owns what, what is dead weight, how far reads fall, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.findings import Finding, find_all
from chainlift.chain.resolve import Resolver
from chainlift.qcow2.bitmaps import Bitmap, list_bitmaps
from chainlift.qcow2.layout import Kind
from chainlift.qcow2.snapshots import InternalSnapshot, list_snapshots

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.chain.chain import Chain

#: DEFAULT_L2_CACHE_MAX_SIZE in QEMU's block/qcow2.h.
_L2_CACHE_MAX_BYTES = 32 << 20


def l2_cache_bytes(tables: int, cluster_size: int) -> int:
    """Return what QEMU's L2 cache of an image holds after all of the disk was read, with default settings, in bytes.

    :param tables: L2 tables of the image.
    :param cluster_size: its clusters' size in bytes; a table has a cluster.
    """
    return min(tables * cluster_size, _L2_CACHE_MAX_BYTES)


@dataclass(frozen=True)
class LayerSummary:
    """One layer; sizes in bytes. What it has is either visible from the top or shadowed."""

    #: 0: the active layer.
    depth: int
    path: str
    format: str
    cluster_size: int | None
    #: The smallest piece that can be allocated: a subcluster or a cluster.
    unit_size: int | None
    virtual_size: int
    #: What the files of the layer take on their file systems.
    disk_bytes: int
    #: Disk content that is read from here.
    visible_bytes: int
    #: Zeros that are read from here, because it says so.
    visible_zero_bytes: int
    #: Disk content that is stored here and cannot be read from the top.
    shadowed_bytes: int
    #: L2 tables, each a cluster.
    l2_tables: int
    #: What QEMU's L2 cache of this layer holds after the whole disk was read, with default settings.
    l2_cache_bytes: int
    backing_name: str | None
    backing_format: str | None
    in_use: bool
    snapshots: tuple[InternalSnapshot, ...]
    bitmaps: tuple[Bitmap, ...]

    @property
    def visible_clusters(self) -> float:
        """Clusters that are visible, in parts where subclusters are; 0 for a raw layer."""
        return self.visible_bytes / self.cluster_size if self.cluster_size else 0

    @property
    def shadowed_clusters(self) -> float:
        """Clusters that are shadowed."""
        return self.shadowed_bytes / self.cluster_size if self.cluster_size else 0


@dataclass(frozen=True)
class ChainSummary:
    """A chain."""

    path: str
    #: Layers over the base.
    length: int
    virtual_size: int
    layers: tuple[LayerSummary, ...]
    #: For each depth the bytes of the disk whose search ends there with an answer, ...
    answered_bytes: tuple[int, ...]
    #: ... and those whose search ends there without one, as nothing is below: they read as zeros.
    unanswered_bytes: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def disk_bytes(self) -> int:
        """What all files take."""
        return sum(layer.disk_bytes for layer in self.layers)

    @property
    def visible_bytes(self) -> int:
        """Disk content that can be read."""
        return sum(layer.visible_bytes for layer in self.layers)

    @property
    def shadowed_bytes(self) -> int:
        """Dead weight: disk content that is stored and cannot be read from the top."""
        return sum(layer.shadowed_bytes for layer in self.layers)

    @property
    def l2_cache_bytes(self) -> int:
        """What QEMU's L2 caches hold after the whole disk was read."""
        return sum(layer.l2_cache_bytes for layer in self.layers)

    @property
    def mean_depth(self) -> float:
        """How many layers a read of the disk falls through, on average over all bytes."""
        reached = [a + b for a, b in zip(self.answered_bytes, self.unanswered_bytes, strict=True)]
        return sum(depth * count for depth, count in enumerate(reached)) / max(1, self.virtual_size)


def summarize(chain: Chain) -> ChainSummary:
    """Read every L2 table of every layer once and say what a person should know.

    :raise ImageError: if a table is malformed.
    """
    tally = np.zeros((len(chain.layers), len(Kind)), dtype=np.int64)
    resolver = Resolver(chain, tally)
    visible = np.zeros((len(chain.layers), len(Kind)), dtype=np.int64)
    unanswered = np.zeros(len(chain.layers), dtype=np.int64)
    for window in resolver.windows(0, chain.virtual_size):
        lengths = window.lengths()
        owned = window.layer >= 0
        place = window.layer[owned].astype(np.int64) * len(Kind) + window.kind[owned]
        # Weights are summed as floats: exact up to 2^53 bytes.
        visible += np.bincount(place, lengths[owned], visible.size).astype(np.int64).reshape(visible.shape)
        if not owned.all():
            depth = chain.fall_depth(window.guest_offsets()[~owned])
            unanswered += np.bincount(depth, lengths[~owned], len(unanswered)).astype(np.int64)
    resolver.tally_beyond(chain.virtual_size)
    layers = tuple(
        _summarize_layer(chain, depth, tally[depth], visible[depth], int(resolver.table_count[depth]))
        for depth in range(len(chain.layers))
    )
    return ChainSummary(
        path=chain.layers[0].path,
        length=chain.length,
        virtual_size=chain.virtual_size,
        layers=layers,
        answered_bytes=tuple(visible.sum(axis=1).tolist()),
        unanswered_bytes=tuple(unanswered.tolist()),
        findings=tuple(find_all(chain, layers)),
    )


def _summarize_layer(
    chain: Chain, depth: int, tally: NDArray[np.int64], visible: NDArray[np.int64], l2_tables: int
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
        visible_zero_bytes=int(visible[Kind.ZERO_PLAIN] + visible[Kind.ZERO_ALLOC]),
        # The last cluster of a disk may be a partial one, of which more is stored than can be seen.
        shadowed_bytes=max(0, stored - seen) if stored - seen >= (layer.unit_size or 1) else 0,
        l2_tables=l2_tables,
        l2_cache_bytes=cache,
        backing_name=layer.backing_name,
        backing_format=layer.backing_format,
        in_use=layer.file.has_writer(),
        snapshots=() if layer.image is None else tuple(list_snapshots(layer.image)),
        bitmaps=() if layer.image is None else tuple(list_bitmaps(layer.image)),
    )
