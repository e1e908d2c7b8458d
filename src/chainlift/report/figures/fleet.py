"""The distributions of a survey: how long chains are, and how far reads fall."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chainlift.report.style import FULL, GRID, HALF, INDEX, INK, MUTED, PLAIN, Picture, new_figure
from chainlift.results.survey.records import bin_label
from chainlift.units import counted, format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from chainlift.results.survey.overview import Overview
    from chainlift.results.survey.trend import Trend

_HEIGHT = 3.4
#: Lines of single chains; of more only those that are nearest to a limit.
_MOST_LINES = 6
#: Labels that have room side by side.
_MOST_LABELS = 8
_GIB = 1 << 30


def draw_lengths(whole: Overview) -> Picture:
    """Draw how many chains have which length."""
    figure, (axes,) = new_figure(HALF, _HEIGHT)
    counts = whole.lengths or (0,)
    running = [*whole.running_lengths, *([0] * len(counts))][: len(counts)]
    places = range(len(counts))
    axes.bar(places, counts, color=PLAIN, width=0.78, label="at rest")
    if any(running):
        axes.bar(places, running, color=INDEX, width=0.78, hatch="///", edgecolor=INK, linewidth=0, label="in use")
        axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    _label(axes, counts, [f"{count:,}" if count else "" for count in counts])
    axes.set_xlabel("layers over the base")
    axes.set_ylabel("chains")
    longest = max((number for number, count in enumerate(counts) if count), default=0)
    alt = f"Bars: {counted(whole.chains, 'chain')}; the longest have {bin_label(longest)} layers over the base."
    caption = "Each chain is an active layer with all that it stands on."
    return Picture("lengths", "How long the chains are", caption, alt, figure)


def draw_falls(whole: Overview) -> Picture:
    """Draw how many bytes are found after how many layers."""
    figure, (axes,) = new_figure(HALF, _HEIGHT)
    counts = whole.fall_bytes or (0,)
    total = max(1, sum(counts))
    axes.bar(range(len(counts)), [count / _GIB for count in counts], color=PLAIN, width=0.78)
    shares = [100 * count / total for count in counts]
    heights = [count / _GIB for count in counts]
    _label(axes, heights, ["" if not share else "<1 %" if share < 0.5 else f"{share:.0f} %" for share in shares])
    axes.set_xlabel("layers that a read passes before it finds the data")
    axes.set_ylabel("content, GiB")
    alt = f"Bars: of {format_bytes(total)} of content, how many bytes are found after how many layers."
    caption = "Of all content that can be read, each chain for itself: a base that ten chains share counts ten times."
    return Picture("falls", "How far reads fall", caption, alt, figure)


def draw_growth(trends: Sequence[Trend]) -> Picture:
    """Draw the lengths of the chains that reach a limit next, day by day."""
    figure, (axes,) = new_figure(FULL, _HEIGHT)
    for number, trend in enumerate(trends[:_MOST_LINES]):
        name = "/".join(trend.chain.path.rsplit("/", 2)[-2:])
        times: Any = [time for time, _ in trend.points]
        colour = (PLAIN, INDEX)[number % 2]
        axes.plot(times, [length for _, length in trend.points], color=colour, marker="osD^vP"[number], label=name)
    axes.set_ylabel("layers over the base")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    axes.legend(frameon=False, fontsize=9, labelcolor=MUTED)
    alt = f"Lines: the lengths of {counted(min(len(trends), _MOST_LINES), 'chain')} in each survey."
    caption = "The chains that reach a limit next, if they go on as they did."
    return Picture("growth", "Growing towards a limit", caption, alt, figure, wide=True)


def _label(axes: Axes, counts: Sequence[float], notes: Sequence[str]) -> None:
    labels = [bin_label(number) for number in range(len(counts))]
    turned: Any = {"rotation": 32, "ha": "right", "rotation_mode": "anchor"} if len(labels) > _MOST_LABELS else {}
    axes.set_xticks(range(len(counts)), labels, fontsize=9, **turned)
    axes.grid(axis="y", color=GRID)
    for number, (count, note) in enumerate(zip(counts, notes, strict=True)):
        if note:
            axes.annotate(note, (number, count), ha="center", va="bottom", fontsize=8.5, color=INK, xytext=(0, 1.5),
                          textcoords="offset points")  # fmt: skip
    axes.margins(y=0.14)
