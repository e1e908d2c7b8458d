"""Host reads by length on logarithmic axes: a straight line is a power of the length, its slope the exponent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Line, log_panel
from chainlift.report.figures.bars import colours
from chainlift.report.findings import growth_of
from chainlift.report.style import CYCLE, FULL, LIFT_COLOURS, MARKERS, Picture, look, new_figure
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def draw_hosts(results: Results) -> Picture | None:
    """Draw time a request by length: one panel for one series, else one panel for each kind of read."""
    measures = [m for m in results.measures() if m.test == "host" and m.key == "request_s"]
    shown = [s for s in results.series if any(results.cells(s, m) for m in measures)]
    if not measures or not shown:
        return None
    plain = [s for s in shown if s.is_plain] or shown
    with look():
        if len(plain) == 1:
            figure, axes = new_figure(FULL, 5.2)
            lines = [
                _line(results, plain[0], m, m.title, CYCLE[i % len(CYCLE)], MARKERS[i % len(MARKERS)])
                for i, m in enumerate(measures)
            ]
            log_panel(axes[0], lines, format_seconds, label_room=4.2)
            axes[0].set_ylabel("time a request")
            axes[0].set_xlabel("layers")
        else:
            rows = (len(measures) + 1) // 2
            figure, axes = new_figure(FULL, 4.2 * rows, rows, 2)
            colour = colours(plain)
            for panel, measure in zip(axes, measures, strict=False):
                lines = [
                    _line(results, s, measure, results.label(s, among=plain), colour[s], MARKERS[i % len(MARKERS)],
                          exponent=True)
                    for i, s in enumerate(plain)
                    if results.cells(s, measure)
                ]  # fmt: skip
                log_panel(panel, lines, format_seconds, label_room=5.5)
                panel.set_title(measure.title)
                panel.set_xlabel("layers")
            for panel in axes[len(measures) :]:
                panel.set_axis_off()
    parts = []
    for measure in measures:
        for series in plain:
            values = [f"{n:,} layers {format_seconds(v)}" for n, v in results.medians(series, measure).items()]
            label = results.label(series, among=plain)
            parts.append(f"{measure.title}{', ' * bool(label)}{label}: {', '.join(values)}.")
    caption = (
        "Time of one read through QEMU's block layer, without a guest. Both axes are logarithmic: a power of the "
        "length is a straight line there. Dots are single samples, lines go through the medians; dashed is what the "
        "shortest chain costs plus the fitted power of the length, which is written at the line's end."
    )
    return Picture("host-reads", "Host reads by chain length", caption, " ".join(parts), figure, wide=True)


def _line(
    results: Results, series: Series, measure: Measure, label: str, colour: str, marker: str, *, exponent: bool = True
) -> Line:
    cells = results.cells(series, measure)
    growth = growth_of(results, series, measure)
    if exponent and growth is not None and len(growth.lengths) > 2:
        half = (growth.exponent_high - growth.exponent_low) / 2
        label += f"\nlength^{growth.exponent:.1f} ± {half:.1f}"
    return Line(
        label=label,
        points={n: c.values for n, c in cells.items() if c.values},
        colour=LIFT_COLOURS.get(series.lift, colour) if not series.is_plain else colour,
        marker=marker,
        fit=growth if growth is not None and len(growth.lengths) > 2 else None,
        crashes=tuple(n for n, c in cells.items() if not c.values and any(f.outcome == "crashed" for f in c.failures)),
    )
