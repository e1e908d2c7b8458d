"""Bars of one measure by length, for the series of a run, and beside them what the experiment published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Bar
from chainlift.report.findings import describe_failure
from chainlift.report.style import CYCLE, LIFT_COLOURS, PUBLISHED
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def colours(series: Sequence[Series]) -> dict[Series, str]:
    """Give each series its colour: lifts always the same one, else in order."""
    if len({s.lift for s in series}) > 1 and len({(s.run, s.qemu) for s in series}) == 1:
        return {s: LIFT_COLOURS.get(s.lift, CYCLE[-1]) for s in series}
    return {s: CYCLE[number % len(CYCLE)] for number, s in enumerate(series)}


def measured_bars(
    results: Results,
    series: Sequence[Series],
    measure: Measure,
    note: Callable[[float, float], str] | None = None,
) -> list[Bar]:
    """Return bars grouped by length, one a series.

    :param note: what is written over a bar, from the median at the shortest length and its own; a ratio if not given.
    """
    note = note or (lambda base, value: format_ratio(value / base) if base else "")
    colour = colours(series)
    lengths = results.lengths([measure], series)
    bars: list[Bar] = []
    for length in lengths:
        first = True
        for one in series:
            cell = results.cells(one, measure).get(length)
            if cell is None:
                continue
            medians = results.medians(one, measure)
            base = next(iter(medians.items()), None)
            bars.append(
                Bar(
                    label=f"{length:,}",
                    values=cell.values,
                    median=cell.median if cell.values else None,
                    colour=colour[one],
                    note=note(base[1], cell.median) if cell.values and base and base[0] != length else "",
                    failure=describe_failure(cell.failures[0]) if cell.failures else "",
                    gap=0.35 if first and bars and len(series) > 1 else 0.0,
                )
            )
            first = False
    return bars


def published_bars(values: Mapping[int, float], note: Callable[[float, float], str] | None = None) -> list[Bar]:
    """Return the experiment's bars for a measure."""
    note = note or (lambda base, value: format_ratio(value / base) if base else "")
    base = values[min(values)]
    return [
        Bar(f"{n:,}", (), value, PUBLISHED, "" if value == base else note(base, value), published=True)
        for n, value in sorted(values.items())
    ]
