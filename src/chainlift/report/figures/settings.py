"""What a plan varied beside the length: bars of the cost at the longest chain, one a setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Bar, bar_panel
from chainlift.report.effects import capital, cost_measures, layers, steady, within
from chainlift.report.style import FULL, HALF, LIFT_COLOURS, PLAIN, Picture, drawing_style, new_figure
from chainlift.results.intervals import median_interval

if TYPE_CHECKING:
    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def draw_settings(results: Results) -> Picture | None:
    """Draw the measures that show the cost best, against what the first run with several settings varied."""
    run = next((s.run for s in results.series if s.setting), None)
    among = [s for s in results.series if s.run == run and s.qemu == results.series[0].qemu]
    if len({s.setting for s in among}) < 2:
        return None
    found = []
    for measure in cost_measures(results):
        chosen = steady(results, among[0], measure)
        having = [s for s in among if results.medians(s, chosen)]
        if len({s.setting for s in having}) > 1:
            found.append((chosen, having, max(max(results.medians(s, chosen)) for s in having)))
    # One of the block layer and one of the guest say most.
    shown = [f for f in found if f[0].test == "host"][:1] + [f for f in found if f[0].test != "host"][:1]
    if not shown:
        return None
    wide = len(shown) > 1 or len(shown[0][1]) > 5
    with drawing_style():
        figure, axes = new_figure(FULL if wide else HALF, 3.7, 1, len(shown))
        for panel, (measure, series, length) in zip(axes, shown, strict=True):
            panel.set_title(f"{measure.title}, {layers(length)}")
            bar_panel(panel, _bars(results, series, measure, length), measure.format)
    alt = " ".join(_words(results, *one) for one in shown)
    caption = "The same chain with other settings; bars of one colour are of one lift."
    return Picture("settings", "Against what was varied", caption, alt, figure, wide=wide)


def _bars(results: Results, series: list[Series], measure: Measure, length: int) -> list[Bar]:
    bars: list[Bar] = []
    for one in series:
        cell = results.cells(one, measure).get(length)
        if cell is None or not cell.values:
            continue
        lift = "" if one.is_plain else f"\n{one.lift}"
        colour = LIFT_COLOURS.get(one.lift, PLAIN)
        # A dimension's name is longer than a bar is wide.
        label = one.setting.replace(", ", "\n").replace("=", "\n") + lift
        bars.append(Bar(label, cell.values, cell.median, colour, gap=0.3 if bars else 0.0))
    return bars


def _words(results: Results, measure: Measure, series: list[Series], length: int) -> str:
    parts = []
    for one in series:
        cell = results.cells(one, measure).get(length)
        if cell is not None and cell.values:
            name = ", ".join(p for p in (one.setting, one.lift) if p != "none")
            parts.append(
                f"{name}: {measure.format(cell.median)} {within(median_interval(cell.values), measure.format)}"
            )
    return f"{capital(measure.subject)} through {layers(length)}: {'; '.join(parts)}."
