"""Quantiles of Student's t and tails of F, of degrees of freedom that need not be whole.

Both are the regularised incomplete beta function (DLMF 8.17), by its continued fraction (DLMF 8.17.22).
"""

from __future__ import annotations

from functools import cache
from math import exp, inf, lgamma, log, log1p, sqrt

#: Of 95 %, two-sided, with ever more degrees of freedom.
_NORMAL_95 = 1.959963984540054


def t_95(degrees: float) -> float:
    """Return the two-sided 95 % quantile of Student's t: a t of that many degrees exceeds it in 5 % of cases.

    :param degrees: degrees of freedom, at least a half; whole or not.
    """
    return _NORMAL_95 if degrees == inf else _t_95(round(max(degrees, 0.5), 2))


@cache
def _t_95(degrees: float) -> float:
    low, high = 1.9, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        tail = incomplete_beta(degrees / 2, 0.5, degrees / (degrees + middle * middle))
        low, high = (middle, high) if tail > 0.05 else (low, middle)
    return (low + high) / 2


def f_tail(value: float, between: float, within: float) -> float:
    """Return the probability that an F of that many degrees of freedom exceeds the value.

    :param value: at least 0.
    :param between: degrees of freedom of the numerator.
    :param within: degrees of freedom of the denominator.
    """
    if value <= 0:
        return 1.0
    return incomplete_beta(within / 2, between / 2, within / (within + between * value))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), of 0 <= x <= 1.

    :param a: more than 0.
    :param b: more than 0.
    :param x: from 0 to 1.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    # Lentz's method for 1 / (1 + d1 / (1 + d2 / ...)).
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d or tiny)
    product = d
    for m in range(1, 400):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / ((1.0 + term * d) or tiny)
            c = (1.0 + term / c) or tiny
            product *= c * d
        if abs(c * d - 1.0) < 1e-14:
            break
    return front * product


def welch(variances: list[float], degrees: list[int]) -> tuple[float, float]:
    """Return the standard error of a sum of independent means and its degrees of freedom (Welch, Satterthwaite).

    :param variances: estimated variance of each mean.
    :param degrees: degrees of freedom of each estimate.
    """
    total = sum(variances)
    if total <= 0:
        return 0.0, inf
    spread = sum(v * v / d for v, d in zip(variances, degrees, strict=True) if v > 0)
    return sqrt(total), total * total / spread
