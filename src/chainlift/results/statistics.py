"""What is derived from samples when they are shown: medians and spreads.

Raw samples stay what they are; nothing here is ever written into a result file.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Summary:
    """A handful of repeats in few words: with three repeats a median and the extremes say all that there is."""

    count: int
    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Range of the values over their median: 0.1 is ten percent; 0 where the median is 0."""
        return (self.high - self.low) / abs(self.median) if self.median else 0.0


def summarise(values: Iterable[float]) -> Summary | None:
    """Summarise the values, or return None where there are none."""
    kept = sorted(values)
    if not kept:
        return None
    return Summary(count=len(kept), median=median(kept), low=kept[0], high=kept[-1])
