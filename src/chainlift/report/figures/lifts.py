"""Before and after a lift: each test at the shortest chain, at the longest, and at the longest behind each lift."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Bar, bar_panel
from chainlift.report.effects import host_measures, steady
from chainlift.report.findings import describe_failure
from chainlift.report.measures import (
    MEMORY_READ,
    RANDOM,
    READ,
    STREAM,
    STREAM_HOST,
    STREAM_MEMORY,
)
from chainlift.report.style import ALERT, FULL, HALF, LIFT_COLOURS, PLAIN, SKY, Picture, drawing_style, new_figure
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from chainlift.report.data import Results, Series
    from chainlift.report.measures import Measure


def draw_lifts(results: Results) -> Picture | None:
    """Draw one panel a test, for the first run and QEMU that were measured with a lift."""
    lifted = [s for s in results.series if not s.is_plain]
    if not lifted:
        return None
    family = [s for s in results.series if (s.run, s.qemu) == (lifted[0].run, lifted[0].qemu)]
    # The same quantity as the sentences: on a busy machine, CPU time.
    reads = host_measures(results)
    small, large = reads[:1], [m for m in reads if m.variant.startswith("64k-")][:1]
    memory = [m for m in results.measures() if m.key == "memory_bytes" and m.test == "host"]
    candidates = [steady(results, family[0], m) for m in (*small, *large)]
    candidates += [RANDOM, READ, STREAM, STREAM_HOST, MEMORY_READ, STREAM_MEMORY, *memory]
    measures = [m for m in candidates if any(results.medians(s, m) for s in family if not s.is_plain)][:6]
    panels = [(m, bars) for m in measures if (bars := _bars(results, family, m))]
    if not panels:
        return None
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    with drawing_style():
        figure, axes = new_figure(FULL, 3.4 * -(-len(panels) // columns), -(-len(panels) // columns), columns)
        for panel, (measure, bars) in zip(axes, panels, strict=False):
            _draw(panel, measure, bars)
        for panel in axes[len(panels) :]:
            panel.set_axis_off()
        single = tuple(_single(n, measure, bars, FULL / columns) for n, (measure, bars) in enumerate(panels))
    name = results.label(family[0], lift=False)
    caption = (
        "The same tests at the shortest chain, at the longest, and at the longest behind each lift. Bars are medians "
        "from zero, dots the single samples; the ratio is to the shortest chain." + (f" Shown: {name}." if name else "")
    )
    alt = " ".join(panel.alt for panel in single)
    return Picture("lift", "The same chain, lifted", caption, alt, figure, wide=True, panels=single)


def _single(number: int, measure: Measure, bars: list[Bar], width: float) -> Picture:
    figure, (axes,) = new_figure(min(width, HALF), 3.2)
    _draw(axes, measure, bars)
    values = [
        f"{bar.label.replace(chr(10), ' ')} {bar.failure if bar.median is None else measure.format(bar.median)}"
        for bar in bars
    ]
    return Picture(f"lift-{number}", _title(measure), "", f"{_title(measure)}: {', '.join(values)}.", figure)


def _draw(axes: Axes, measure: Measure, bars: list[Bar]) -> None:
    bar_panel(axes, bars, measure.format)
    axes.set_title(_title(measure))


def _title(measure: Measure) -> str:
    return f"Host, {measure.title.replace(', depth 1', '')}" if "request_s" in measure.key else measure.title


def _bars(results: Results, family: list[Series], measure: Measure) -> list[Bar]:
    plain = next((s for s in family if s.is_plain), None)
    cells = results.cells(plain, measure) if plain else {}
    lifted = {n for s in family if not s.is_plain for n, c in results.cells(s, measure).items()}
    if not lifted:
        return []
    longest = max(lifted & set(cells)) if lifted & set(cells) else max(lifted)
    bars = []
    base = None
    if cells and min(cells) != longest and cells[min(cells)].values:
        shortest = min(cells)
        base = cells[shortest].median
        unit = "layer" if shortest == 1 else "layers"
        bars.append(Bar(f"{shortest:,}\n{unit}", cells[shortest].values, base, SKY))
    for series in family:
        cell = results.cells(series, measure).get(longest)
        if cell is None:
            continue
        label = f"{longest:,}\nlayers" if series.is_plain else f"{series.lift}\nof {longest:,}"
        median = cell.median if cell.values else None
        bars.append(
            Bar(
                label,
                cell.values,
                median,
                {**LIFT_COLOURS, "none": ALERT}.get(series.lift, PLAIN),
                note=format_ratio(median / base) if base and median is not None else "",
                failure=describe_failure(cell.failures[0]) if cell.failures else "",
            )
        )
    return bars
