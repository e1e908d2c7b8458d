"""How the cost grows with the chain length: linear, quadratic or by which power, as far as the samples tell."""

from __future__ import annotations

from math import lgamma, log
from typing import TYPE_CHECKING

from chainlift.report.effects import behind, capital, host_measures, join, steady, subject_series, within
from chainlift.results.growth import Growth, fit_growth
from chainlift.results.intervals import ratio_interval
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Collection

    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def growth_of(results: Results, series: Series, measure: Measure, *, lengths: Collection[int] | None = None) -> Growth:
    """Fit how a measure grows, from all samples of a series.

    :param lengths: fit over these alone, so that series can stand side by side.
    """
    cells = results.cells(series, measure)
    chosen = {n: c for n, c in cells.items() if lengths is None or n in lengths}
    lost = {n: c.failures[0].outcome if c.failures else "no sample" for n, c in chosen.items() if not c.values}
    return fit_growth({n: c.values for n, c in chosen.items() if c.values}, left_out=lost)


def common_lengths(results: Results, series: Collection[Series], measure: Measure) -> set[int]:
    """Return the lengths at which each of the series has two samples of a measure or more.

    :param results: what was measured.
    :param series: those that must have it.
    :param measure: of which there must be samples.
    """
    each = [{n for n, c in results.cells(s, measure).items() if len(c.values) > 1} for s in series]
    return set.intersection(*each) if each else set()


def main_growth(results: Results) -> tuple[Series, Measure, Growth] | None:
    """Return how the cost of the smallest host read grows: of its CPU time where the headline is of that."""
    series = subject_series(results)
    for measure in host_measures(results) if series else []:
        assert series is not None
        chosen = steady(results, series, measure)
        if len(results.medians(series, chosen)) > 1:
            return series, chosen, growth_of(results, series, chosen)
    return None


def growth_sentence(results: Results) -> str | None:
    """Return the answer to the experiment's question of how the cost grows, linear or factorial."""
    found = main_growth(results)
    if found is None:
        return None
    series, measure, growth = found
    lost = ", ".join(f"{n:,} ({why})" for n, why in growth.left_out)
    left_out = f" Left out: {lost}." if lost and growth.lengths else ""
    if not growth.is_told:
        text = capital(f"{behind(series)}how what the chain adds to {measure.subject} grows cannot be told: ")
        return f"{text}{growth.untold}.{left_out}"
    text = capital(f"{behind(series)}what the chain adds to {measure.subject} grows as length^{growth.exponent:.1f} ")
    text += f"({_between(growth)}; {counted(growth.samples, 'sample')} at {len(growth.lengths)} lengths, "
    text += f"{growth.lengths[0]:,} to {growth.lengths[-1]:,})."
    if growth.misfit:
        text += " No single power fits all of these lengths: it is the one that comes nearest."
    return text + _shapes_sentence(growth) + _factorial_sentence(results, series, measure, growth) + left_out


def _between(growth: Growth) -> str:
    low, high = f"{growth.exponent_low:.1f}", f"{growth.exponent_high:.1f}"
    return f"95 %: {low} to {high}" if low != high else f"95 %: {growth.exponent_low:.2f} to {growth.exponent_high:.2f}"


def _shapes_sentence(growth: Growth) -> str:
    out = [shape.name for shape in growth.shapes if shape.ruled_out]
    kept = [shape.name for shape in growth.shapes if not shape.ruled_out]
    if not out:
        return f" The samples do not tell {join([s.name for s in growth.shapes])} growth apart."
    told = f" The samples rule {join(out)} growth out"
    return f"{told}, but not {join(kept)}." if kept else f"{told}."


def _factorial_sentence(results: Results, series: Series, measure: Measure, growth: Growth) -> str:
    """Set the last step beside what a linear cost and a factorial one would do there."""
    before, last = growth.lengths[-2:]
    cells = results.cells(series, measure)
    grown = ratio_interval(cells[last].values, cells[before].values)
    if grown is None:
        return ""
    factorial = (lgamma(last + 1) - lgamma(before + 1)) / log(10)
    return (
        f" From {before:,} to {last:,} layers the whole cost grows {fold(grown.value)} {within(grown)}; a linear one "
        f"would grow {fold(last / before)} at most, a factorial one 10^{factorial:,.0f}-fold."
    )


def growth_label(growth: Growth) -> str:
    """Write an exponent at the end of its line: ``length^1.8 (1.5-2.3)``; nothing where it is not told."""
    if not growth.is_told:
        return ""
    return f"length^{growth.exponent:.1f} ({growth.exponent_low:.1f}-{growth.exponent_high:.1f})"


def fold(ratio: float) -> str:
    """Write a growth for a sentence: ``12-fold``, ``3-fold``, ``1.5-fold``."""
    return f"{ratio:.0f}-fold" if ratio >= 9.5 or abs(ratio - round(ratio)) < 0.05 else f"{ratio:.1f}-fold"
