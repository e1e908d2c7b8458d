"""How a cost grows with the chain length: floor, factor and exponent in one fit of all raw samples.

The model is ``cost = floor + factor * length ** exponent`` with noise that is a factor, so it is fitted to logarithms.
A read costs something through one layer too: a floor taken off before the fit, as if it were known, makes the interval
of the exponent too narrow.

The interval is that of a test, inverted: an exponent belongs to it where the samples do not reject it at 5 %. With the
exponent given, floor and factor are fitted, and what is left over is projected on the direction in which the model
moves with the exponent. That projection is a sum over the lengths' means, whose variance the repeats tell, each length
by itself (Welch's t). Where the chain adds nothing, or the lengths are too few, no exponent is rejected, and the
interval says so by having no end. Where no single power fits, as at a step, the exponent is that of the power that
comes nearest over these lengths, and the interval is of that; :attr:`Growth.misfit` tells.

``tests/results/test_growth.py`` simulates the coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Self

import numpy as np

from chainlift.results.intervals import ratio_interval
from chainlift.results.student import f_tail, t_95

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Exponents that are asked for. What reaches an end is not bounded there.
LEAST, MOST = 0.05, 8.0
_GRID = np.geomspace(LEAST, MOST, 64)
#: A fit leaves something over that repeats alone would leave in fewer cases than this: no single power fits.
_MISFIT = 0.01
_ITERATIONS = 60
#: Lengths that a floor, a factor and an exponent take, with one over that could contradict.
_LEAST_LENGTHS = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """One way to grow: ``floor + factor * g(length)``."""

    name: str
    #: Whether the samples reject it at 5 %.
    ruled_out: bool
    #: Akaike's criterion with its correction for few samples, over that of the best of the shapes.
    delta_aicc: float


@dataclass(frozen=True, slots=True)
class Growth:
    """What the samples say about the growth; only where :attr:`is_told` they say an exponent."""

    #: The power that fits best; nan where nothing could be fitted.
    exponent: float
    #: Ends of its 95 % interval; infinite where the samples do not bound it.
    exponent_low: float
    exponent_high: float
    floor: float
    factor: float
    #: The lengths that took part, and those that did not, with the reason.
    lengths: tuple[int, ...]
    left_out: tuple[tuple[int, str], ...] = ()
    #: Samples that took part.
    samples: int = 0
    #: Whether no single power fits within the noise.
    misfit: bool = False
    #: Linear, n log n and quadratic.
    shapes: tuple[Shape, ...] = ()
    #: Why no exponent can be told; empty where it can.
    untold: str = ""

    @property
    def is_told(self) -> bool:
        """Whether the samples bound the exponent."""
        return not self.untold

    def __call__(self, length: float) -> float:
        """Return the cost that the fit gives for a length."""
        return float(self.floor + self.factor * length**self.exponent)


def fit_growth(samples: Mapping[int, Sequence[float]], *, left_out: Mapping[int, str] | None = None) -> Growth:
    """Fit a power law over a floor to raw samples.

    :param samples: chain length -> samples of a cost, all repeats.
    :param left_out: lengths that are known to have none, with the reason.
    """
    dropped = dict(left_out or {})
    kept: dict[int, Sequence[float]] = {}
    for length, values in sorted(samples.items()):
        if length < 1 or not values or not all(isfinite(v) and v > 0 for v in values):
            dropped[length] = "a value that is not positive" if values else "no sample"
        elif len(values) < 2:
            dropped[length] = "one sample"
        else:
            kept[length] = values
    lost = tuple(sorted(dropped.items()))
    if len(kept) < _LEAST_LENGTHS:
        why = f"it takes {_LEAST_LENGTHS} lengths with two repeats or more, there are {len(kept)}"
        return _nothing(kept, lost, why)
    if all(min(values) == max(values) for values in kept.values()):
        return _nothing(kept, lost, "the repeats do not differ at all, so nothing is known of their noise")
    means = _Means.of(kept)
    best, low, high = _interval(means)
    floor, factor = means.power(best)
    return Growth(
        exponent=best,
        exponent_low=low,
        exponent_high=high,
        floor=floor,
        factor=factor,
        lengths=tuple(kept),
        left_out=lost,
        samples=int(means.counts.sum()),
        misfit=means.misfit(best) < _MISFIT,
        shapes=_shapes(means),
        untold=_untold(kept, low, high),
    )


def _nothing(kept: Mapping[int, Sequence[float]], lost: tuple[tuple[int, str], ...], why: str) -> Growth:
    count = sum(len(values) for values in kept.values())
    return Growth(nan, -inf, inf, nan, nan, tuple(kept), lost, count, untold=why)


def _untold(kept: Mapping[int, Sequence[float]], low: float, high: float) -> str:
    grown = ratio_interval(kept[max(kept)], kept[min(kept)])
    if grown is None or grown.low <= 1:
        return "the longest chain costs no more than the shortest, as far as the samples can tell"
    if isfinite(low) and isfinite(high):
        return ""
    if isfinite(low):
        return f"every exponent over {low:.1f} fits the samples"
    return f"every exponent up to {high:.1f} fits the samples" if isfinite(high) else "every exponent fits the samples"


@dataclass(frozen=True)
class _Means:
    """Means of the logarithms by length, with what is known of their noise."""

    lengths: Array
    logs: Array
    counts: Array
    #: Variance of each mean.
    variances: Array
    #: Sum of squares of the samples about their means.
    within: float

    @classmethod
    def of(cls, samples: Mapping[int, Sequence[float]]) -> Self:
        groups = [np.log(np.asarray(values, float)) for values in samples.values()]
        return cls(
            np.array(list(samples), float),
            np.array([g.mean() for g in groups]),
            np.array([float(len(g)) for g in groups]),
            np.array([g.var(ddof=1) / len(g) for g in groups]),
            float(sum(((g - g.mean()) ** 2).sum() for g in groups)),
        )

    def test(self, exponents: Array, shape: Array | float = 1.0) -> tuple[Array, Array]:
        """Test ``floor + factor * shape * length ** exponent`` against its neighbours in the exponent.

        :return: for each exponent how far the test is over its 5 % quantile (0 and less: not rejected), and the sum of
            squares that the fit leaves over.
        """
        relative = np.log(self.lengths / self.lengths[-1])
        g = shape * np.exp(np.outer(exponents, relative))
        h = g * relative
        span, turn = (g[:, -1:] - g[:, :1]), (h[:, -1:] - h[:, :1])
        s = (g - g[:, :1]) / span
        _, _, f, e = self._fit(s)
        direction = ((h - h[:, :1]) * span - (g - g[:, :1]) * turn) / span**2 / f
        # How the projection moves with each mean, floor and factor fitted anew; 1 + e is the fit's own curvature.
        bent = self.counts * np.maximum(1 + e, 0.1)
        v = np.stack([(1 - s) / f, s / f])
        inner = np.einsum("kn,ikn,jkn->kij", bent, v, v)
        across = np.einsum("kn,kn,ikn->ki", bent, direction, v)
        weights = self.counts * (
            direction - np.einsum("ki,ikn->kn", np.linalg.solve(inner, across[..., None])[..., 0], v)
        )
        parts = weights**2 * self.variances
        variance = np.maximum(parts.sum(axis=1), 1e-300)
        degrees = variance**2 / np.maximum((parts**2 / (self.counts - 1)).sum(axis=1), 1e-300)
        projection = (self.counts * direction * e).sum(axis=1)
        quantiles = np.array([t_95(float(d)) for d in np.round(degrees, 1)])
        return np.abs(projection) / np.sqrt(variance) - quantiles, (self.counts * e * e).sum(axis=1)

    def power(self, exponent: float) -> tuple[float, float]:
        """Return floor and factor."""
        g = (self.lengths / self.lengths[-1]) ** exponent
        p, q, _, _ = self._fit(((g - g[0]) / (g[-1] - g[0]))[None, :])
        factor = float((q[0] - p[0]) / (g[-1] - g[0]))
        return float(p[0] - factor * g[0]), factor / float(self.lengths[-1]) ** exponent

    def _fit(self, s: Array) -> tuple[Array, Array, Array, Array]:
        """Fit the costs at the shortest and the longest length, for each row of shares ``s`` of the way between them.

        Newton's method; both costs stay positive.

        :return: the two costs, and by row and length the fitted costs and the residuals of the logarithms.
        """
        p = np.full(len(s), np.exp(self.logs[0]))
        q = np.full(len(s), np.exp(self.logs[-1]))
        for _ in range(_ITERATIONS):
            f = p[:, None] * (1 - s) + q[:, None] * s
            e = self.logs - np.log(f)
            bent = self.counts * np.maximum(1 + e, 0.1) / f**2
            pull = self.counts * e / f
            a, b, d = (bent * (1 - s) ** 2).sum(1), (bent * (1 - s) * s).sum(1), (bent * s * s).sum(1)
            x, y = (pull * (1 - s)).sum(1), (pull * s).sum(1)
            under = a * d - b * b
            p_new = np.clip(p + (d * x - b * y) / under, p / 3, p * 3)
            q_new = np.clip(q + (a * y - b * x) / under, q / 3, q * 3)
            moved = max(np.abs(p_new / p - 1).max(), np.abs(q_new / q - 1).max())
            p, q = p_new, q_new
            if moved < 1e-8:
                break
        f = p[:, None] * (1 - s) + q[:, None] * s
        return p, q, f, self.logs - np.log(f)

    def misfit(self, exponent: float) -> float:
        """Return how likely repeats alone leave over a fitted power law as much as it does.

        The sum of squares is compared with what the lengths' own variances leave one to expect of it; degrees of
        freedom are Box's (1954), for variances that need not be alike.
        """
        g = (self.lengths / self.lengths[-1]) ** exponent
        s = (g - g[0]) / (g[-1] - g[0])
        _, _, f, e = self._fit(s[None, :])
        # The three directions that the fit can follow, each over f: a change of the logarithm.
        follows = np.stack([1 - s, s, g * np.log(self.lengths)]).T / f.T
        basis = np.linalg.qr(np.sqrt(self.counts)[:, None] * follows)[0]
        left = np.eye(len(s)) - basis @ basis.T
        noise = left * (self.counts * self.variances)
        expected = max(float(np.trace(noise)), 1e-300)
        between = expected**2 / float(np.trace(noise @ noise))
        parts = np.diag(left) * self.counts * self.variances
        within = expected**2 / float((parts**2 / (self.counts - 1)).sum())
        return f_tail(float((self.counts * e * e).sum()) / expected, between, within)


def _interval(means: _Means) -> tuple[float, float, float]:
    """Return the exponent that fits best and the ends of its interval."""
    over, rest = means.test(_GRID)
    place = int(rest.argmin())
    low, high = _GRID[max(place - 1, 0)], _GRID[min(place + 1, len(_GRID) - 1)]
    for _ in range(3):
        fine = np.linspace(low, high, 17)
        nearest = int(means.test(fine)[1].argmin())
        low, high = fine[max(nearest - 1, 0)], fine[min(nearest + 1, 16)]
    best = float(fine[nearest])
    accepted = [float(k) for k in _GRID[over <= 0]] + [best]
    first, last = min(accepted), max(accepted)
    return best, _edge(means, first, _GRID[first > _GRID][-1:]), _edge(means, last, _GRID[last < _GRID][:1])


def _edge(means: _Means, inside: float, outside: Array) -> float:
    """Return where between the two exponents the test begins to reject; infinite where no one is outside."""
    if not len(outside):
        return -inf if inside < 1 else inf
    end = float(outside[0])
    for _ in range(2):
        between = np.linspace(inside, end, 17)
        rejects = means.test(between)[0] > 0
        rejects[0], rejects[-1] = False, True
        first = int(rejects.argmax())
        inside, end = float(between[first - 1]), float(between[first])
    return end


def _shapes(means: _Means) -> tuple[Shape, ...]:
    one = np.array([1.0])
    tried = [
        ("linear", means.test(one)),
        ("n log n", means.test(one, np.log(means.lengths))),
        ("quadratic", means.test(one * 2)),
    ]
    count = float(means.counts.sum())
    # Each has a floor, a factor and a variance, so that the correction for few samples is the same and drops out.
    scores = [count * np.log(float(rest[0]) + means.within) for _, (_, rest) in tried]
    return tuple(
        Shape(name, bool(over[0] > 0), float(score - min(scores)))
        for (name, (over, _)), score in zip(tried, scores, strict=True)
    )
