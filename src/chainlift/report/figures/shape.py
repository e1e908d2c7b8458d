"""The chain that was measured: how large its layers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.draw import byte_ticks, tidy
from chainlift.report.reference import published
from chainlift.report.style import HALF, INK, MUTED, PLAIN, PUBLISHED, Picture, drawing_style, new_figure
from chainlift.results.statistics import summarise
from chainlift.units import counted, format_bytes

if TYPE_CHECKING:
    from chainlift.report.data import Results


def draw_shape(results: Results) -> Picture | None:
    """Draw the histogram of the snapshots' sizes of the first run that has a chain."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    run = next((r for r in results.runs if r.chain and r.chain.length > 0), None)
    if run is None or run.chain is None:
        return None
    sizes = run.chain.layer_bytes[1:]
    summary = summarise(sizes)
    assert summary is not None
    mean = sum(sizes) / len(sizes)
    theirs = published().mean_snapshot_bytes
    with drawing_style():
        figure, (axes,) = new_figure(HALF, 3.4)
        right = max(*sizes, theirs) * 1.08
        axes.hist(sizes, bins=min(40, max(8, len(sizes) // 6)), range=(0, right), color=PLAIN, linewidth=0)
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * 1.32)
        axes.axvline(mean, ymax=0.80, color=INK, linewidth=1.4)
        axes.axvline(theirs, ymax=0.80, color=PUBLISHED, linewidth=1.4, linestyle=(0, (4, 3)))
        # The names stand outside of the two lines, or between them where these are far apart.
        apart = abs(theirs - mean) > 0.45 * right
        for value, name, colour in ((mean, f"mean {format_bytes(mean)}", INK), (theirs, "published 4.9 MB", MUTED)):
            on_left = (value == min(mean, theirs)) != apart
            axes.annotate(name, (value, top * 1.06), (-4 if on_left else 4, 0), textcoords="offset points",
                          ha="right" if on_left else "left", va="bottom", fontsize=9.5, color=colour)  # fmt: skip
        axes.set_xlim(0, right)
        axes.set_xticks(byte_ticks(right, 5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: tidy(format_bytes(v)) if v else "0"))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_ylabel("snapshots")
        axes.set_xlabel("size of a snapshot on disk")
    text = (
        f"{counted(len(sizes), 'snapshot')} over a base of {format_bytes(run.chain.layer_bytes[0])}: "
        f"mean {format_bytes(mean)}, median {format_bytes(summary.median)}, "
        f"from {format_bytes(summary.low)} to {format_bytes(summary.high)}."
    )
    caption = f"{text} The experiment's snapshots had about 4.9 MB. A snapshot is a layer; the base is not counted."
    return Picture("chain", "The chain", caption, text, figure)
