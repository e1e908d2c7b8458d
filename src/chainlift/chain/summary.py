"""What a person should know of a chain: who owns what, what is dead weight, how far reads fall, what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chainlift.chain.finding import Finding
    from chainlift.qcow2.bitmaps import Bitmap
    from chainlift.qcow2.snapshots import InternalSnapshot

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
    #: The part of it that is stored compressed.
    visible_compressed_bytes: int
    #: Zeros that are read from here, because it says so.
    visible_zero_bytes: int
    #: Disk content that is stored here and cannot be read from the top.
    shadowed_bytes: int
    #: What deleting the layer would free once the one above it has what it needs of it, if no other image stands on
    #: it; None for the active layer, and where that cannot be told.
    frees_bytes: int | None
    #: L2 tables, each a cluster.
    l2_tables: int
    #: What QEMU's L2 cache of this layer holds after the whole disk was read, with default settings.
    l2_cache_bytes: int
    backing_name: str | None
    backing_format: str | None
    in_use: bool
    snapshots: tuple[InternalSnapshot, ...]
    bitmaps: tuple[Bitmap, ...]
    #: ``zlib`` or ``zstd``: what its compressed clusters are; None for a raw layer.
    compression: str | None
    #: Files that QEMU opens for it: one, two with an external data file, or an index's own and the layers' below it.
    files: int
    #: How many files it points into, where it is an index made by a lift; else 0.
    extents: int
    is_encrypted: bool

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
    #: For each depth the pieces, as long as they can be, whose search comes so far: a read that has several in it is
    #: cut into them.
    entered_runs: tuple[int, ...]
    #: For each depth the pieces of data, one after the other on the disk and in the file, that are read from there.
    answered_runs: tuple[int, ...]
    #: Bytes in the smallest piece that any layer can have.
    granularity: int
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
