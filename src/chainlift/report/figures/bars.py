"""Bars of one measure by length, for the series of a run, and beside them what the experiment published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Bar, Line, bar_panel, log_panel
from chainlift.report.findings import describe_failure
from chainlift.report.style import CYCLE, LIFT_COLOURS, MARKERS, PUBLISHED
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from matplotlib.axes import Axes

    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


#: More bars than that are drawn as lines.
MOST_BARS = 12


def colours(results: Results, series: Sequence[Series]) -> dict[Series, str]:
    """Give each series its colour: lifts always the same one, a copy of a QEMU that of the QEMU, else in order."""
    if len({s.lift for s in series}) > 1 and len({(s.run, s.qemu) for s in series}) == 1:
        return {s: LIFT_COLOURS.get(s.lift, CYCLE[-1]) for s in series}
    of = {s: copy[0] if (copy := results.original(s)) is not None and copy[0] in series else s for s in series}
    order = list(dict.fromkeys(of.values()))
    return {s: CYCLE[order.index(of[s]) % len(CYCLE)] for s in series}


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
    colour = colours(results, series)
    lengths = results.lengths([measure], series)
    bars: list[Bar] = []
    for length in lengths:
        present = [one for one in series if length in results.cells(one, measure)]
        for number, one in enumerate(present):
            cell = results.cells(one, measure)[length]
            medians = results.medians(one, measure)
            base = next(iter(medians.items()), None)
            bars.append(
                Bar(
                    # One label under the middle of a group.
                    label=f"{length:,}",
                    shift=(len(present) - 1) / 2 if number == 0 else None,
                    values=cell.values,
                    median=cell.median if cell.values else None,
                    colour=colour[one],
                    note=note(base[1], cell.median) if cell.values and base and base[0] != length else "",
                    failure=describe_failure(cell.failures[0]) if cell.failures else "",
                    gap=0.45 if number == 0 and bars and len(series) > 1 else 0.0,
                )
            )
    return bars


def draw_measured(
    results: Results,
    axes: Axes,
    series: Sequence[Series],
    measure: Measure,
    note: Callable[[float, float], str] | None = None,
    *,
    title: str = "Measured here",
) -> None:
    """Draw a measure by length: bars, or lines on logarithmic axes where there would be too many bars.

    :param results: what was measured.
    :param axes: where it is drawn.
    :param series: those that are shown.
    :param measure: what is drawn.
    :param note: says a value against its baseline's, over a bar.
    :param title: of the panel.
    """
    axes.set_title(title)
    axes.set_xlabel("layers")
    bars = measured_bars(results, series, measure, note)
    if len(bars) <= MOST_BARS:
        bar_panel(axes, bars, measure.format)
        name_series(results, axes, series)
        return
    colour = colours(results, series)
    lines = []
    for number, one in enumerate(series):
        cells = results.cells(one, measure)
        crashes = tuple(n for n, c in cells.items() if not c.values and c.failures)
        label = results.label(one, among=series)
        if crashes:
            label += "\n" + describe_failure(cells[crashes[0]].failures[0])
        points = {n: c.values for n, c in cells.items() if c.values}
        lines.append(Line(label, points, colour[one], MARKERS[number % len(MARKERS)], None, crashes))
    log_panel(axes, lines, measure.format, label_room=4, base=8 if measure.unit == "bytes" else 10)


def published_bars(values: Mapping[int, float], note: Callable[[float, float], str] | None = None) -> list[Bar]:
    """Return the experiment's bars for a measure."""
    note = note or (lambda base, value: format_ratio(value / base) if base else "")
    base = values[min(values)]
    return [
        Bar(f"{n:,}", (), value, PUBLISHED, "" if value == base else note(base, value), published=True)
        for n, value in sorted(values.items())
    ]


def name_series(results: Results, axes: Axes, shown: Sequence[Series]) -> None:
    """Name the colours in one line under the panel's title, where there are several.

    :param results: what was measured.
    :param axes: the panel.
    :param shown: those that are in it.
    """
    if len(shown) < 2:
        return
    title = axes.get_title(loc="left")
    axes.set_title(title, pad=24)
    place = 0.0
    for series, colour in colours(results, shown).items():
        label = results.label(series, among=shown)
        axes.annotate(f"■ {label}", (0, 1), (place, 6), xycoords="axes fraction", textcoords="offset points",
                      color=colour, fontsize=9, fontweight="bold", va="bottom")  # fmt: skip
        place += 6.4 * len(label) + 22
