"""Which of a chain's files an index points into: what can be seen of each decides, and how much may be copied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from chainlift.lift.build.merge import State
from chainlift.qcow2.layout import CompressionType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from chainlift.lift.build.files import SourceFile
    from chainlift.lift.build.merge import Pieces


@dataclass(frozen=True)
class Extents:
    """Which files an index points into, and what it copies instead."""

    #: For each file of the sources whether its clusters are copied; bool.
    is_absorbed: NDArray[np.bool_]
    #: Files that are pointed into, the one with the most visible clusters first.
    kept: list[int]
    #: The compression type of the index.
    use_zstd: bool
    #: Those put together, absorbed, or compressed in the other way.
    copied_clusters: int


@dataclass(frozen=True)
class Seen:
    """Clusters of an index's size that can be seen, one element a file of the sources."""

    #: Clusters that can be pointed at; int64.
    visible: NDArray[np.int64]
    #: How many of these are compressed; int64.
    compressed: NDArray[np.int64]
    #: Whether they are compressed with zstd; bool.
    zstd: NDArray[np.bool_]

    @classmethod
    def none(cls, sources: Sequence[SourceFile]) -> Self:
        """Return what is known before anything was looked at."""
        zstd = np.array([source.compression is CompressionType.ZSTD for source in sources], dtype=bool)
        return cls(np.zeros(len(sources), dtype=np.int64), np.zeros(len(sources), dtype=np.int64), zstd)

    def add(self, pieces: Pieces) -> None:
        """Count what pieces point at."""
        pointed = (pieces.state == State.DATA) | (pieces.state == State.COMPRESSED)
        np.add.at(self.visible, pieces.source[pointed], pieces.count[pointed])
        np.add.at(self.compressed, pieces.source[pieces.state == State.COMPRESSED], 1)

    def choose(self, mixed_clusters: int, budget_clusters: int, most_extents: int | None = None) -> Extents:
        """Choose which files become extents.

        :param mixed_clusters: that must be put together, and are copied anyway.
        :param budget_clusters: how many of the smallest files may be copied.
        :param most_extents: copy no more than it takes to be left with so many; None copies what the budget allows.
        """
        use_zstd = int(self.compressed[self.zstd].sum()) > int(self.compressed[~self.zstd].sum())
        is_absorbed = np.zeros(len(self.visible), dtype=bool)
        seen = np.flatnonzero(self.visible > 0)
        too_many = len(seen) if most_extents is None else 1 + len(seen) - most_extents
        for index in seen[np.argsort(self.visible[seen], kind="stable")].tolist()[: max(too_many, 0)]:
            if self.visible[index] <= budget_clusters:
                is_absorbed[index] = True
                budget_clusters -= int(self.visible[index])
        odd_type = self.compressed * (self.zstd != use_zstd)
        copied = mixed_clusters + int(np.where(is_absorbed, self.visible, odd_type).sum())
        needed = (self.visible > 0) & ~is_absorbed & (self.visible > odd_type)
        kept = sorted(np.flatnonzero(needed).tolist(), key=lambda index: -int(self.visible[index]))
        return Extents(is_absorbed, kept, use_zstd, copied)
