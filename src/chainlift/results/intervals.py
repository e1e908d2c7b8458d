"""95 % intervals of medians, ratios and differences, from raw samples.

With few repeats an interval is Student's t on logarithms: the noise of a time is a factor. A bootstrap of three samples
has ten different resamples, and what it calls 95 % covers 75 %. From :data:`MANY` samples on it holds what it says, and
needs no assumption about the noise: there the medians themselves are resampled. Which of the two it is, is decided by
the number of samples alone, never by what comes out. ``tests/results/test_intervals.py`` simulates the coverage of
both.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log, prod, sqrt
from statistics import fmean, median, variance
from typing import TYPE_CHECKING

import numpy as np

from chainlift.results.student import t_95, welch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

#: From here on medians are resampled.
MANY = 12
_RESAMPLES = 4000


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, or what is made of two, and its 95 % interval, which holds it.

    Where all samples are alike, the interval is the value.
    """

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Say whether the samples allow this value."""
        return self.low <= value <= self.high

    @property
    def is_point(self) -> bool:
        """Whether the samples did not differ."""
        return self.low == self.high

    def inverse(self) -> Interval:
        """Return the interval of one over the value, which is positive."""
        return Interval(1 / self.value, 1 / self.high, 1 / self.low)


def median_interval(values: Sequence[float]) -> Interval | None:
    """Return the median with its interval; None for fewer than two samples, or times that are not positive."""
    if not _usable(values):
        return None
    if len(values) >= MANY:
        return _resampled([values], lambda medians: medians[0])
    mean, error, degrees = _log_mean(values)
    if not error:
        return Interval(values[0], values[0], values[0])
    half = t_95(degrees) * error
    return _around(median(values), exp(mean - half), exp(mean + half))


def ratio_interval(over: Sequence[float], under: Sequence[float], *more: Sequence[float]) -> Interval | None:
    """Return the ratio of two medians with its interval; None where one of them has no interval.

    :param more: two further groups, whose ratio the first one is multiplied with: a ratio of ratios is
        ``ratio_interval(a, b, d, c)`` for ``(a / b) / (c / d)``.
    """
    groups = [over, under, *more]
    if not all(map(_usable, groups)):
        return None
    signs = [1 if number % 2 == 0 else -1 for number in range(len(groups))]
    if min(map(len, groups)) >= MANY:
        return _resampled(groups, lambda medians: np.prod([m**s for m, s in zip(medians, signs, strict=True)], axis=0))
    value = prod(median(values) ** sign for values, sign in zip(groups, signs, strict=True))
    found = [_log_mean(values) for values in groups]
    error, degrees = welch([e**2 for _, e, _ in found], [d for _, _, d in found])
    if not error:
        return Interval(value, value, value)
    middle, half = sum(sign * mean for sign, (mean, _, _) in zip(signs, found, strict=True)), t_95(degrees) * error
    return _around(value, exp(middle - half), exp(middle + half))


def difference_interval(more: Sequence[float], less: Sequence[float]) -> Interval | None:
    """Return the difference of two medians with its interval, for noise that is added; None below two samples each."""
    if min(len(more), len(less)) < 2 or not all(map(isfinite, (*more, *less))):
        return None
    if min(len(more), len(less)) >= MANY:
        return _resampled([more, less], lambda medians: medians[0] - medians[1])
    error, degrees = welch([variance(more) / len(more), variance(less) / len(less)], [len(more) - 1, len(less) - 1])
    middle, half = fmean(more) - fmean(less), t_95(degrees) * error
    return _around(median(more) - median(less), middle - half, middle + half)


def ratio_of_differences(
    over: tuple[Sequence[float], Sequence[float]], under: tuple[Sequence[float], Sequence[float]]
) -> Interval | None:
    """Return the ratio of two differences of medians with its interval, each ``(more, less)``.

    The interval is that of a test, inverted (Fieller): a ratio belongs to it where the samples do not reject, by
    Welch's t, that the first difference is that multiple of the second. So it holds where the first one is nothing.

    :return: None below two samples each, or where the second difference may be nothing.
    """
    groups = (*over, *under)
    below = difference_interval(*under)
    if min(map(len, groups)) < 2 or below is None or below.low <= 0 or not all(isfinite(v) for g in groups for v in g):
        return None
    value = (median(over[0]) - median(over[1])) / below.value
    if min(map(len, groups)) >= MANY:
        return _resampled(groups, lambda medians: (medians[0] - medians[1]) / (medians[2] - medians[3]))
    top, bottom = fmean(over[0]) - fmean(over[1]), fmean(under[0]) - fmean(under[1])
    weights = [1.0, 1.0, value**2, value**2]
    variances, degrees = [variance(g) / len(g) for g in groups], [len(g) - 1 for g in groups]
    error, freedom = welch([w * v for w, v in zip(weights, variances, strict=True)], degrees)
    if not error:
        return Interval(value, value, value)
    # (top - ratio * bottom)**2 = t**2 * (variance of top + ratio**2 * variance of bottom), solved for the ratio.
    square = t_95(freedom) ** 2
    a = bottom**2 - square * sum(variances[2:])
    b, c = top * bottom, top**2 - square * sum(variances[:2])
    if a <= 0 or b * b < a * c:
        return None
    root = sqrt(b * b - a * c)
    return _around(value, (b - root) / a, (b + root) / a)


def _around(value: float, low: float, high: float) -> Interval:
    """Return the interval of a mean as one that holds the median too, which is what is shown."""
    return Interval(value, min(low, value), max(high, value))


def _usable(values: Sequence[float]) -> bool:
    return len(values) > 1 and all(isfinite(v) and v > 0 for v in values)


def _log_mean(values: Sequence[float]) -> tuple[float, float, int]:
    """Return mean of the logarithms, its standard error, and the degrees of freedom of that."""
    logs = [log(v) for v in values]
    if min(values) == max(values):  # no rounding error for a spread
        return logs[0], 0.0, len(logs) - 1
    return fmean(logs), sqrt(variance(logs) / len(logs)), len(logs) - 1


def _resampled(
    groups: Sequence[Sequence[float]],
    combine: Callable[[list[NDArray]], NDArray],  # type: ignore[type-arg]
) -> Interval:
    """Resample each group by itself; the seed is fixed, so that the same samples give the same interval."""
    rng = np.random.default_rng(0)
    medians = []
    for values in groups:
        array = np.asarray(values, float)
        medians.append(np.median(array[rng.integers(0, len(array), (_RESAMPLES, len(array)))], axis=1))
    low, high = np.quantile(combine(medians), (0.025, 0.975))
    value = combine([np.array([median(values)]) for values in groups])[0]
    return Interval(float(value), float(low), float(high))
