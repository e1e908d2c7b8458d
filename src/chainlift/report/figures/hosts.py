"""Host reads by length on logarithmic axes: a straight line is a power of the length, its slope the exponent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from chainlift.report.draw import Line, log_panel
from chainlift.report.effects import layers
from chainlift.report.figures.bars import colours
from chainlift.report.foreseen import foresee
from chainlift.report.growths import growth_label, growth_of
from chainlift.report.measures import HOST_CPU, host_cpu
from chainlift.report.style import CYCLE, FULL, LIFT_COLOURS, MARKERS, MUTED, Picture, drawing_style, new_figure
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from chainlift.report.data import Results, Series
    from chainlift.report.foreseen import Foreseen
    from chainlift.report.measures import Measure

    Known = Mapping[tuple[Series, Measure], Foreseen]


def draw_hosts(results: Results) -> Picture | None:
    """Draw time a request by length: one panel for one series, else one panel for each kind of read."""
    measures = [m for m in results.measures() if m.test == "host" and m.key == "request_s"]
    what = "Time of one read through QEMU's block layer, without a guest."
    return _draw_reads(results, measures, "host-reads", "Host reads by chain length", what)


def draw_host_cpu(results: Results) -> Picture | None:
    """Draw CPU time a request by length, likewise; nothing where it was not measured."""
    times = [m for m in results.measures() if m.test == "host" and m.key == "request_s"]
    measures = [cpu for m in times if any(results.medians(s, cpu := host_cpu(m)) for s in results.shown)]
    what = "CPU time that QEMU takes for one of these reads, user and system. What else runs on the machine hardly "
    what += "changes it: where the samples of the times spread, this is the figure to quote."
    return _draw_reads(results, measures, "host-cpu", "CPU time of host reads by chain length", what)


def _draw_reads(results: Results, measures: list[Measure], name: str, title: str, what: str) -> Picture | None:
    shown = [s for s in results.series if any(results.cells(s, m) for m in measures)]
    if not measures or not shown:
        return None
    plain = [s for s in shown if s.is_plain] or shown
    asked = [(s, m) for s in plain for m in measures if m.key == HOST_CPU]
    known = {(s, m): found for s, m in asked if (found := foresee(results, s, m)) is not None}
    panels: list[Picture] = []
    with drawing_style():
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
                    known,
                )
                for i, m in enumerate(measures)
            ]
            # A lift that was measured at several lengths has a line, too: of the smallest read.
            first = measures[0]
            for lifted in (s for s in shown if not s.is_plain and plain[0].is_plain):
                if len(results.medians(lifted, first)) > 1:
                    label = f"{first.title.removesuffix(', CPU time')}\nbehind the {lifted.lift}"
                    shade, marker = LIFT_COLOURS.get(lifted.lift, MUTED), MARKERS[len(lines) % len(MARKERS)]
                    lines.append(replace(_line(results, lifted, first, label, shade, marker, known), fit=None))
            _draw(axes[0], lines, 4.2)
        else:
            colour = colours(results, plain)
            rows = (len(measures) + 1) // 2
            figure, axes = new_figure(FULL, 4.4 * rows, rows, 2)
            for number, (panel, measure) in enumerate(zip(axes, measures, strict=False)):
                lines = [
                    replace(
                        _line(
                            results,
                            s,
                            measure,
                            results.label(s, among=plain),
                            colour[s],
                            MARKERS[i % len(MARKERS)],
                            known,
                        ),
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
    fitted = "" if panels else "; dashed is the fit, a floor plus a power of the length"
    caption = (
        f"{what} Both axes are logarithmic: a power of the "
        f"length is a straight line there. Dots are single samples, lines go through the medians{fitted}. At a line's "
        "end stands the exponent of what the chain adds, with its 95 % interval, where the samples tell it; a cross "
        "marks where QEMU crashed."
    )
    caption += _model_sentence(results, known)
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
        values = [f"{layers(n)} {format_seconds(v)}" for n, v in results.medians(series, measure).items()]
        label = results.label(series, among=shown)
        parts.append(f"{measure.title}{', ' * bool(label)}{label}: {', '.join(values)}.")
    return " ".join(parts)


def _line(
    results: Results, series: Series, measure: Measure, label: str, colour: str, marker: str, known: Known
) -> Line:
    cells = results.cells(series, measure)
    growth = growth_of(results, series, measure)
    crashes = tuple(n for n, c in cells.items() if not c.values and any(f.outcome == "crashed" for f in c.failures))
    if growth.is_told:
        label += f"\n{growth_label(growth)}"
    if crashes:
        label += f"\ncrashed at {min(crashes):,}"
    points = {n: c.values for n, c in cells.items() if c.values}
    fit = growth if growth.is_told else None
    foreseen = known[series, measure].points if (series, measure) in known else {}
    dotted = {n: (figure.value, figure.low, figure.high) for n, figure in foreseen.items()}
    return Line(label.strip(), points, colour, marker, fit, crashes, dotted)


def _model_sentence(results: Results, known: Known) -> str:
    """Say what the dotted lines are, where there are any: whose parameters, and how far off each may be."""
    if not known:
        return ""
    origins = dict.fromkeys(f"{results.qemu_name(series)}: {one.origin}" for (series, _), one in known.items())
    return (
        " Dotted is what the model of costs foresees, from the number of clusters in each layer alone; in nine of ten "
        f"cases the cost lies in the band. Its parameters: {'; '.join(origins)}."
    )
