"""Execution time of reading and streaming by length, and random reads, beside the experiment's published values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import Line, bar_panel, log_panel
from chainlift.report.effects import layers
from chainlift.report.figures.bars import draw_measured, measured_bars, published_bars
from chainlift.report.later import later
from chainlift.report.measures import BOOT, LATENCIES, RANDOM, READ, STREAM, STREAM_HOST
from chainlift.report.reference import published
from chainlift.report.style import CYCLE, FULL, HALF, MARKERS, MUTED, Picture, drawing_style, new_figure
from chainlift.units import format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results
    from chainlift.report.measures import Measure

#: Where more was published, only what can be set beside a length here is drawn, and the ends.
_MOST_PUBLISHED = 4


def draw_read(results: Results) -> Picture | None:
    """Draw the time of the measured ``dd`` in the guest."""
    return _beside_published(
        results, READ, published().read_s, "read", "Reading the whole disk from the guest",
        "The experiment's dd if=/dev/sda of=/dev/null bs=4M, second pass, guest page cache dropped.",
    )  # fmt: skip


def draw_stream(results: Results) -> Picture | None:
    """Draw the time of block-stream."""
    return _beside_published(
        results, STREAM, published().stream_s, "stream", "Streaming all layers into the active one",
        "block-stream from its start to QEMU's completion event.",
    )  # fmt: skip


def draw_stream_host(results: Results) -> Picture | None:
    """Draw the time of block-stream without a guest."""
    return _beside_published(
        results, STREAM_HOST, published().stream_s, "stream-host", "Streaming all layers without a guest",
        "block-stream in a storage daemon, from its start to QEMU's completion event.",
    )  # fmt: skip


def draw_boot(results: Results) -> Picture | None:
    """Draw how long the guest takes to boot, beside what the authors measured later."""
    return _beside_published(
        results, BOOT, later().boot_s, "boot", "Booting the guest",
        "From the start of QEMU until the guest answers.", (later().host, later().disk_bytes),
    )  # fmt: skip


def _beside_published(
    results: Results,
    measure: Measure,
    reference: dict[int, float],
    name: str,
    title: str,
    what: str,
    there: tuple[str, int] | None = None,
) -> Picture | None:
    """Draw a measure by length and the published values.

    :param there: the machine and the size of the disk, in bytes, that they are of; the experiment's if not given.
    """
    host, disk_bytes = there or (published().host, published().disk_bytes)
    shown = results.series_with(measure, results.shown)
    if not shown:
        return None
    bars = measured_bars(results, shown, measure)
    if len(reference) > _MOST_PUBLISHED:
        here = {length for series in shown for length in results.cells(series, measure)}
        reference = {n: value for n, value in reference.items() if n in {*here, min(reference), max(reference)}}
    with drawing_style():
        wide = len(bars) > 6 or len(reference) > _MOST_PUBLISHED
        share = [min(max(len(bars), 3), 7), min(max(len(reference), 2.2), 7)]
        figure, (left, right) = new_figure(FULL if wide else HALF, 3.5, 1, 2, width_ratios=share)
        draw_measured(results, left, shown, measure)
        bar_panel(right, published_bars(reference), format_seconds)
        right.set_title("Published", color=MUTED)
        right.set_xlabel("layers")
    size = {format_bytes(run.chain.virtual_size_bytes) for run in results.runs if run.chain}
    caption = (
        f"{what} Bars are medians, dots the single samples. The published values are the experiment's, of another "
        f"machine ({host}) and a disk of {format_bytes(disk_bytes)}"
        + (f"; the disk here has {' and '.join(sorted(size))}" if size else "")
        + ". Compare the ratios, not the seconds."
    )
    return Picture(name, title, caption, _alt(results, measure, reference), figure, wide)


def draw_random(results: Results) -> Picture | None:
    """Draw requests a second and latency percentiles of random reads in the guest."""
    shown = results.series_with(RANDOM)
    if not shown:
        return None
    latencies = [m for m in LATENCIES if results.series_with(m, shown[:1])]
    with drawing_style():
        figure, axes = new_figure(FULL, 3.6, 1, 2 if latencies else 1)
        draw_measured(results, axes[0], shown, RANDOM, title="Requests a second")
        if latencies:
            lines = [
                Line(f"{m.variant or m.key[8:-2]}", {n: c.values for n, c in results.cells(shown[0], m).items()},
                     CYCLE[i], MARKERS[i])
                for i, m in enumerate(latencies)
            ]  # fmt: skip
            log_panel(axes[1], lines, format_seconds, label_room=1.6)
            label = results.label(shown[0], among=shown)
            axes[1].set_title("Latency percentiles" + (f", {label}" if label else ""))
            axes[1].set_xlabel("layers")
    caption = (
        "Random direct reads of the disk by fio in the guest for a fixed time, 16 KiB each unless the plan says "
        "otherwise. Bars are medians, dots the single samples; on the right, how long a request takes (logarithmic "
        "axes)."
    )
    return Picture("random", "Random reads in the guest", caption, _alt(results, RANDOM, {}), figure, wide=True)


def _alt(results: Results, measure: Measure, reference: dict[int, float]) -> str:
    """Say in words what the bars show."""
    parts = []
    shown = results.series_with(measure)
    for series in shown:
        label = results.label(series, among=shown)
        values = [f"{layers(n)} {measure.format(v)}" for n, v in results.medians(series, measure).items()]
        parts.append(f"{label}: " * bool(label) + ", ".join(values) + ".")
    if reference:
        values = [f"{layers(n)} {format_seconds(v)}" for n, v in reference.items()]
        ratio = reference[max(reference)] / reference[min(reference)]
        parts.append(f"Published: {', '.join(values)} ({format_ratio(ratio)}).")
    return f"{measure.title}. " + " ".join(parts)
