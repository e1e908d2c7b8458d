"""Rows as columns: what images and chains say is dataclasses of arrays that have one element a row."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Columns:
    """Rows; every field of a subclass is an array of the same length."""

    def __len__(self) -> int:
        return len(self.columns()[0])

    def columns(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays, in the order in which they are declared."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def take(self, chosen: NDArray[np.int64] | NDArray[np.bool_] | slice) -> Self:
        """Return some of the rows; views of the same arrays where a slice is asked for."""
        return type(self)(*(column[chosen] for column in self.columns()))

    def copy(self) -> Self:
        """Return the same rows in arrays of their own."""
        return type(self)(*(column.copy() for column in self.columns()))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of several, in their order."""
        return cls(*(np.concatenate(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))


@dataclass(frozen=True)
class Spans(Columns):
    """Consecutive pieces of a disk, a row each; what a subclass says of them comes behind."""

    #: Guest offset in bytes, int64.
    start: NDArray[np.int64]
    #: Bytes, int64.
    length: NDArray[np.int64]

    @property
    def end(self) -> int:
        """Guest offset of the first byte behind."""
        return int(self.start[-1] + self.length[-1])

    def starts_with(self, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where pieces begin when they are cut in two where one of these guest offsets is inside a piece.

        :return: :attr:`start` itself where none is.
        """
        inner = cuts[(cuts > self.start[0]) & (cuts < self.end)]
        return np.union1d(self.start, inner) if len(inner) else self.start

    def cut_into(self, starts: NDArray[np.int64], end: int) -> tuple[Self, NDArray[np.int64]]:
        """Return the span from ``starts[0]`` to ``end``, cut into parts that begin at ``starts`` (every own cut too).

        :param starts: guest offsets in bytes, ascending.
        :return: also how far each part begins behind the piece that it is of, in bytes; where a part lies is still that
            of its piece.
        """
        parts = self.take(self.start.searchsorted(starts, side="right") - 1)
        return replace(parts, start=starts, length=np.diff(starts, append=end)), starts - parts.start
