"""What is derived from samples when they are shown: medians, spreads and growth with the chain length.

Raw samples stay what they are; nothing here is ever written into a result file.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log, sqrt
from statistics import fmean, median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from chainlift.results.model import Sample

#: Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the table the normal distribution's is used.
_T_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


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


def summaries(samples: Iterable[Sample], metric: str, key: Callable[[Sample], Hashable]) -> dict[Hashable, Summary]:
    """Summarise one metric of the samples that have it and went well, grouped by ``key``, in order of appearance."""
    groups: dict[Hashable, list[float]] = {}
    for sample in samples:
        value = sample.metrics.get(metric)
        if value is not None and sample.outcome == "ok":
            groups.setdefault(key(sample), []).append(value)
    return {name: Summary(len(v), median(v), min(v), max(v)) for name, v in groups.items()}


@dataclass(frozen=True, slots=True)
class Growth:
    """``cost = floor + factor * length ** exponent``, fitted."""

    exponent: float
    #: Bounds of the 95 % confidence interval; both infinite with two points, which any exponent fits exactly.
    exponent_low: float
    exponent_high: float
    factor: float
    #: What was taken off every value before the fit; 0 for a plain power law.
    floor: float
    #: Share of the variance of log(cost) that the fit explains, 0 to 1.
    r_squared: float
    #: The lengths that took part.
    lengths: tuple[int, ...]

    def __call__(self, length: float) -> float:
        """Return the cost that the fit gives for a length."""
        return float(self.floor + self.factor * length**self.exponent)


def fit_growth(points: Mapping[int, float], *, floor: float = 0.0) -> Growth | None:
    """Fit a power law through (length, median cost) by least squares on both logarithms.

    A read of a short chain is mostly the cost of a read, not of the chain: a plain fit through length 1 therefore
    understates the exponent. With ``floor`` set to the cost at length 1, what the *chain* adds is fitted
    (see :func:`fit_chain_growth`).

    :param points: chain length (at least 1) -> cost, in any unit.
    :param floor: cost without a chain, in the same unit; points at or under it say nothing and are left out.
    :return: None where fewer than two lengths are left.
    """
    kept = [(n, v - floor) for n, v in sorted(points.items()) if n >= 1 and isfinite(v) and v - floor > 0]
    if len(kept) < 2:
        return None
    x = [log(n) for n, _ in kept]
    y = [log(v) for _, v in kept]
    slope, intercept, residual, x_spread, y_spread = _least_squares(x, y)
    degrees = len(kept) - 2
    half = float("inf")
    if degrees > 0:
        quantile = _T_95[degrees - 1] if degrees <= len(_T_95) else 1.96
        half = quantile * sqrt(residual / degrees / x_spread)
    return Growth(
        exponent=slope,
        exponent_low=slope - half,
        exponent_high=slope + half,
        factor=exp(intercept),
        floor=floor,
        r_squared=1.0 - residual / y_spread if y_spread else 1.0,
        lengths=tuple(n for n, _ in kept),
    )


def fit_chain_growth(points: Mapping[int, float]) -> Growth | None:
    """Fit how the cost that the chain *adds* grows: what is over the cost of the shortest chain measured.

    :param points: chain length (at least 1) -> cost; the shortest length is the floor and takes no part itself.
    :return: None where fewer than two longer lengths cost more than the shortest.
    """
    lengths = [n for n in points if n >= 1]
    if not lengths:
        return None
    return fit_growth(points, floor=points[min(lengths)])


def _least_squares(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float, float, float]:
    """Return slope, intercept, sum of squared residuals, and the sums of squares of x and of y about their means."""
    x_mean, y_mean = fmean(x), fmean(y)
    x_spread = sum((a - x_mean) ** 2 for a in x)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / x_spread
    intercept = y_mean - slope * x_mean
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return slope, intercept, residual, x_spread, sum((b - y_mean) ** 2 for b in y)
