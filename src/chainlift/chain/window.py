"""A span of a chain's disk, resolved: which layer every piece of it comes from, and where it lies there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.columns import Spans
from chainlift.qcow2.layout import Kind

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """A span of the disk, cut into granules; the arrays have one element a granule.

    Granules have the chain's granularity, with two exceptions: where a layer in the middle ends inside a granule, that
    granule is a window of its own with granules of a sector; and a span in which no layer has an L2 table is a window
    with one granule, however long. :meth:`runs` makes the difference disappear.
    """

    #: Guest offset in bytes.
    start: int
    #: Bytes; the last granule is a partial one where the disk ends inside it.
    length: int
    #: Bytes in a granule.
    granularity: int
    #: Index into the chain's layers (0: the active one), int32; -1 where no layer has anything, and zeros are read.
    layer: NDArray[np.int32]
    #: :class:`~chainlift.qcow2.layout.Kind`, uint8.
    kind: NDArray[np.uint8]
    #: int64, bytes. DATA, ZERO_ALLOC: of the granule's first byte in the layer's data file. COMPRESSED: of the stream
    #: of the cluster (of the layer's size) that the granule is in. Else -1; or, under UNALLOCATED, the host cluster
    #: that the last layer has for a subcluster without content.
    host_offset: NDArray[np.int64]
    #: int32: under COMPRESSED the bytes from the host offset to the end of the stream's last sector, else 0.
    stored_bytes: NDArray[np.int32]

    @property
    def end(self) -> int:
        """Guest offset of the first byte behind."""
        return self.start + self.length

    def guest_offsets(self) -> NDArray[np.int64]:
        """Return where each granule begins on the disk, in bytes."""
        return self.start + np.arange(len(self.kind), dtype=np.int64) * self.granularity

    def lengths(self) -> NDArray[np.int64]:
        """Return how many bytes each granule has: all the same, but for a partial last one."""
        lengths = np.full(len(self.kind), self.granularity, dtype=np.int64)
        lengths[-1] = self.length - (len(self.kind) - 1) * self.granularity
        return lengths

    def runs(self) -> Runs:
        """Return the window with neighbours joined: same layer, same kind, consecutive in the file."""
        has_place = (self.host_offset >= 0) & (self.kind != Kind.COMPRESSED)
        step = np.where(has_place[:-1], self.granularity, 0)
        joined = (
            (self.layer[1:] == self.layer[:-1])
            & (self.kind[1:] == self.kind[:-1])
            & (self.host_offset[1:] == self.host_offset[:-1] + step)
        )
        first = np.concatenate((np.zeros(1, dtype=np.int64), (~joined).nonzero()[0] + 1))
        start = self.start + first * self.granularity
        length = np.diff(start, append=self.end)
        return Runs(
            start, length, self.layer[first], self.kind[first], self.host_offset[first], self.stored_bytes[first]
        )


@dataclass(frozen=True)
class Runs(Spans):
    """Consecutive pieces of the disk, a row each; the arrays mean what a window's do."""

    #: As a window's.
    layer: NDArray[np.int32]
    #: As a window's.
    kind: NDArray[np.uint8]
    #: Of the piece's first byte. A COMPRESSED piece lies in one cluster.
    host_offset: NDArray[np.int64]
    #: As a window's.
    stored_bytes: NDArray[np.int32]

    def split(self, cuts: NDArray[np.int64]) -> Runs:
        """Return the same pieces, cut in two where one of these guest offsets (bytes) is inside a piece."""
        starts = self.starts_with(cuts)
        if starts is self.start:
            return self
        parts, moved = self.cut_into(starts, self.end)
        has_place = (parts.host_offset >= 0) & (parts.kind != Kind.COMPRESSED)
        return replace(parts, host_offset=parts.host_offset + np.where(has_place, moved, 0))
