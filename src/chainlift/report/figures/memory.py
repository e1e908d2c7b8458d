"""Peak memory by length, with the differences written on the bars and the published differences beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import bar_panel
from chainlift.report.figures.bars import measured_bars, published_bars
from chainlift.report.measures import HOST_MEMORY, MEMORY_BOOT, MEMORY_READ, STREAM_MEMORY
from chainlift.report.reference import published
from chainlift.report.style import FULL, HALF, MUTED, Picture, look, new_figure
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from chainlift.report.data import Results
    from chainlift.report.measures import Measure


def draw_memory(results: Results) -> Picture | None:
    """Draw one row for each memory test that was run; host reads only where no guest was measured."""
    reference = published()
    candidates: list[tuple[Measure, dict[int, float]]] = [
        (MEMORY_BOOT, reference.boot_extra_bytes),
        (MEMORY_READ, reference.boot_read_extra_bytes),
        (STREAM_MEMORY, _extra(reference.stream_peak_rss_bytes)),
    ]
    rows = [(m, r) for m, r in candidates if results.series_with(m, results.plain)]
    if not rows and results.series_with(HOST_MEMORY, results.plain):
        rows = [(HOST_MEMORY, {})]
    if not rows:
        return None
    panels = [measured_bars(results, results.series_with(m, results.plain), m, _difference) for m, _ in rows]
    most = max(map(len, panels))
    wide = len(rows) > 1 or most > 6
    with look():
        figure, axes = new_figure(FULL if wide else HALF, 3.1 * len(rows) + 0.4, len(rows), 2,
                                  width_ratios=[max(most, 3), 3])  # fmt: skip
        for row, ((measure, extra), bars) in enumerate(zip(rows, panels, strict=True)):
            left, right = axes[2 * row], axes[2 * row + 1]
            bar_panel(left, bars, format_bytes)
            left.set_title(measure.title)
            left.set_xlabel("layers")
            if extra:
                bar_panel(right, published_bars(extra, lambda _base, _value: ""), lambda v: f"+{format_bytes(v)}")
                right.set_title("Published, over length 1", color=MUTED)
                right.set_xlabel("layers")
            else:
                right.set_axis_off()
    parts = []
    for measure, _ in rows:
        for series in results.series_with(measure, results.plain):
            values = [f"{n:,} layers {format_bytes(v)}" for n, v in results.medians(series, measure).items()]
            label = results.label(series, among=results.plain)
            parts.append(f"{measure.title}{', ' * bool(label)}{label}: {', '.join(values)}.")
    caption = (
        "Peak resident memory of QEMU, without the guest's RAM where the two can be told apart. Over each bar: what it "
        "is, and the difference to the shortest chain. The published values are differences too, of a disk of "
        f"{format_bytes(reference.disk_bytes)}; what a layer may take (its cache of L2 tables) grows with the disk."
    )
    return Picture("memory", "Memory by chain length", caption, " ".join(parts), figure, wide)


def _difference(base: float, value: float) -> str:
    return f"{'+' if value >= base else ''}{format_bytes(value - base)}"


def _extra(values: dict[int, float]) -> dict[int, float]:
    base = values[min(values)]
    return {n: v - base for n, v in values.items() if v != base}
