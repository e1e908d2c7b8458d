"""Peak memory by length, with the differences written on the bars and the published differences beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import bar_panel
from chainlift.report.effects import layers
from chainlift.report.figures.bars import draw_measured, measured_bars, published_bars
from chainlift.report.measures import MEMORY_BOOT, MEMORY_READ, STREAM_HOST_MEMORY, STREAM_MEMORY
from chainlift.report.reference import published
from chainlift.report.style import FULL, HALF, MUTED, Picture, drawing_style, new_figure
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from chainlift.report.data import Results
    from chainlift.report.measures import Measure


def draw_memory(results: Results) -> list[Picture]:
    """Draw each memory test that was run; host reads only where no guest was measured."""
    reference = published()
    candidates: list[tuple[str, str, Measure, dict[int, float]]] = [
        ("memory-boot", "Boot and halt", MEMORY_BOOT, reference.boot_extra_bytes),
        ("memory-read", "Boot, read the whole disk, halt", MEMORY_READ, reference.boot_read_extra_bytes),
        ("memory-stream", "Streaming all layers", STREAM_MEMORY, _extra(reference.stream_peak_rss_bytes)),
        ("memory-stream-host", "Streaming without a guest", STREAM_HOST_MEMORY, {}),
    ]
    chosen = [c for c in candidates if results.series_with(c[2], results.shown)]
    host = [m for m in results.measures() if m.key == "memory_bytes" and m.test == "host"]
    if not any(c[2].test == "memory" for c in chosen):
        chosen += [("memory-host", "4 KiB reads without a guest", m, {}) for m in host]
    return [_draw(results, *one) for one in chosen]


def _draw(results: Results, name: str, title: str, measure: Measure, extra: dict[int, float]) -> Picture:
    shown = results.series_with(measure, results.shown)
    bars = measured_bars(results, shown, measure, _difference)
    wide = len(bars) > 6
    with drawing_style():
        share = [min(max(len(bars), 3), 7), 2.2] if extra else None
        figure, axes = new_figure(FULL if wide else HALF, 3.5, 1, 2 if extra else 1, width_ratios=share)
        draw_measured(results, axes[0], shown, measure, _difference)
        if extra:
            bar_panel(axes[1], published_bars(extra, lambda _base, _value: ""), lambda v: f"+{format_bytes(v)}")
            axes[1].set_title("Published extra", color=MUTED)
            axes[1].set_xlabel("layers")
    parts = []
    for series in shown:
        values = [f"{layers(n)} {format_bytes(v)}" for n, v in results.medians(series, measure).items()]
        label = results.label(series, among=shown)
        parts.append(f"{label}{': ' * bool(label)}{', '.join(values)}.")
    caption = "Peak resident memory of QEMU, without the guest's RAM where the two can be told apart, and over it the "
    caption += "difference to the shortest chain."
    if extra:
        caption += (
            f" The published values are such differences, of a disk of {format_bytes(published().disk_bytes)}; a "
            "layer's cache of L2 tables grows with the disk."
        )
    return Picture(name, f"Memory: {title[0].lower()}{title[1:]}", caption, " ".join(parts), figure, wide)


def _difference(base: float, value: float) -> str:
    return f"{'+' if value >= base else ''}{format_bytes(value - base)}"


def _extra(values: dict[int, float]) -> dict[int, float]:
    base = values[min(values)]
    return {n: v - base for n, v in values.items() if v != base}
