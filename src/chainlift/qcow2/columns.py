"""Rows as columns: what images and chains say is dataclasses of arrays that have one element a row."""

from __future__ import annotations

from dataclasses import dataclass, fields
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
