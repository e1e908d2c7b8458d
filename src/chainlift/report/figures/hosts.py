"""Host reads by length on logarithmic axes: a straight line is a power of the length, its slope the exponent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chainlift.report.draw import Line, log_panel
from chainlift.report.figures.bars import colours
from chainlift.report.findings import growth_of, is_determined
from chainlift.report.measures import host_cpu
from chainlift.report.style import CYCLE, FULL, MARKERS, Picture, look, new_figure
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def draw_hosts(results: Results) -> Picture | None:
    """Draw time a request by length: one panel for one series, else one panel for each kind of read."""
    measures = [m for m in results.measures() if m.test == "host" and m.key == "request_s"]
    what = "Time of one read through QEMU's block layer, without a guest."
    return _draw_reads(results, measures, "host-reads", "Host reads by chain length", what)


def draw_host_cpu(results: Results) -> Picture | None:
    """Draw CPU time a request by length, likewise; nothing where it was not measured."""
    times = [m for m in results.measures() if m.test == "host" and m.key == "request_s"]
    measures = [cpu for m in times if any(results.medians(s, cpu := host_cpu(m)) for s in results.plain)]
    what = "CPU time that QEMU takes for one of these reads, user and system. What else runs on the machine hardly "
    what += "changes it: where the samples of the times spread, this is the figure to quote."
    return _draw_reads(results, measures, "host-cpu", "CPU time of host reads by chain length", what)


def _draw_reads(results: Results, measures: list[Measure], name: str, title: str, what: str) -> Picture | None:
    shown = [s for s in results.series if any(results.cells(s, m) for m in measures)]
    if not measures or not shown:
        return None
    plain = [s for s in shown if s.is_plain] or shown
    panels: list[Picture] = []
    with look():
        if len(plain) == 1:
            figure, axes = new_figure(FULL, 5.2)
            lines = [
                _line(
                    results,
                    plain[0],
                    m,
                    m.title.removesuffix(", CPU time"),
                    CYCLE[i % len(CYCLE)],
                    MARKERS[i % len(MARKERS)],
                )
                for i, m in enumerate(measures)
            ]
            _draw(axes[0], lines, 4.2)
        else:
            colour = colours(plain)
            rows = (len(measures) + 1) // 2
            figure, axes = new_figure(FULL, 4.4 * rows, rows, 2)
            for number, (panel, measure) in enumerate(zip(axes, measures, strict=False)):
                lines = [
                    replace(
                        _line(results, s, measure, results.label(s, among=plain), colour[s], MARKERS[i % len(MARKERS)]),
                        fit=None,
                    )
                    for i, s in enumerate(plain)
                    if results.cells(s, measure)
                ]
                single, (alone,) = new_figure(FULL / 2, 4.4)
                for one in (panel, alone):
                    _draw(one, lines, 7)
                    one.set_title(_kind(measure))
                alt = _words(results, plain, measure)
                panels.append(Picture(f"{name}-{number}", measure.title, "", alt, single))
            for panel in axes[len(measures) :]:
                panel.set_axis_off()
    fitted = "" if panels else "; dashed is what the shortest chain costs plus the fitted power of the length"
    caption = (
        f"{what} Both axes are logarithmic: a power of the "
        f"length is a straight line there. Dots are single samples, lines go through the medians{fitted}. At a line's "
        "end stands the exponent of what the chain adds to the shortest one's cost, where the samples "
        "determine it; a cross marks where QEMU crashed."
    )
    alt = " ".join(_words(results, plain, measure) for measure in measures)
    return Picture(name, title, caption, alt, figure, wide=True, panels=tuple(panels))


def _kind(measure: Measure) -> str:
    return measure.title.removesuffix(", CPU time")


def _draw(axes: Axes, lines: list[Line], room: float) -> None:
    log_panel(axes, lines, format_seconds, label_room=room)
    axes.set_ylabel("a request")
    axes.set_xlabel("layers")


def _words(results: Results, shown: list[Series], measure: Measure) -> str:
    parts = []
    for series in shown:
        values = [f"{n:,} layers {format_seconds(v)}" for n, v in results.medians(series, measure).items()]
        label = results.label(series, among=shown)
        parts.append(f"{measure.title}{', ' * bool(label)}{label}: {', '.join(values)}.")
    return " ".join(parts)


def _line(results: Results, series: Series, measure: Measure, label: str, colour: str, marker: str) -> Line:
    cells = results.cells(series, measure)
    growth = growth_of(results, series, measure)
    if growth is not None and len(growth.lengths) < 3:
        growth = None
    crashes = tuple(n for n, c in cells.items() if not c.values and any(f.outcome == "crashed" for f in c.failures))
    if growth is not None and is_determined(growth):
        half = (growth.exponent_high - growth.exponent_low) / 2
        label += f"\nlength^{growth.exponent:.1f} ± {half:.1f}"
    if crashes:
        label += f"\ncrashed at {min(crashes):,}"
    points = {n: c.values for n, c in cells.items() if c.values}
    return Line(label.strip(), points, colour, marker, growth, crashes)
