"""Self time by function over the chain length, stacked to the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.report.effects import layers
from chainlift.report.profiles import KERNEL, REST, UNNAMED, groups_of, hot_functions, profiled, share_by_function
from chainlift.report.style import (
    ALERT,
    CYCLE,
    FULL,
    GRID,
    HALF,
    INK,
    MUTED,
    PAPER,
    PUBLISHED,
    Picture,
    drawing_style,
    new_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from chainlift.report.data import Results
    from chainlift.report.profiles import Profiled

#: Functions with a colour of their own.
_SHOWN = 4
_INSERTED = "bdrv_is_inserted"


def draw_hot_functions(results: Results) -> Picture | None:
    """Draw a panel for each series of the first kind of work that was profiled at more than one length."""
    groups = [group for group in groups_of(profiled(results)) if len(group) > 1]
    if not groups:
        return None
    variant = groups[0][0].variant
    groups = [group for group in groups if group[0].variant == variant][:4]
    # One name for the function that was renamed in QEMU 8.0, so that it has one colour.
    functions = [_INSERTED, *(f for f in hot_functions([p for g in groups for p in g], 8) if not _is_inserted(f))][
        :_SHOWN
    ]
    kinds = [*functions, KERNEL, UNNAMED, REST]
    colours = dict(zip(kinds, [ALERT, *(c for c in CYCLE if c != ALERT)][: len(functions)], strict=False))
    colours |= {KERNEL: PUBLISHED, UNNAMED: GRID, REST: PAPER}
    with drawing_style():
        columns = min(2, len(groups))
        rows = -(-len(groups) // columns)
        figure, panels = new_figure(FULL if columns > 1 else HALF, 3.2 * rows, rows, columns)
        for axes, group in zip(panels, groups, strict=False):
            _panel(axes, group, kinds, colours)
            axes.set_title(results.qemu_name(group[0].series))
        for axes in panels[len(groups) :]:
            axes.set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        # As many columns as the longest name leaves room for: a legend is not made narrower by the figure.
        room = int((FULL if columns > 1 else HALF) * 72 / (5.4 * max(map(len, labels)) + 40))
        ncols = min(max(room, 1), len(labels))
        figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(labels) // ncols))
        figure.legend(handles, labels, loc="outside lower center", ncols=ncols, frameon=False, fontsize=9)
    alt = " ".join(
        f"{results.qemu_name(group[0].series)}: "
        + ", ".join(f"{layers(p.length)} {100 * _shares(p, kinds)[_INSERTED]:.0f} %" for p in group)
        + f" in {_INSERTED}."
        for group in groups
    )
    caption = (
        f"Share of samples by the function that was running, work {variant}. bdrv_is_inserted is bdrv_co_is_inserted "
        "since QEMU 8.0. Functions that the build has no name for are counted together, never under another's name."
    )
    return Picture("hot-functions", "Hot functions by chain length", caption, alt, figure, wide=columns > 1)


def _panel(axes: Axes, group: list[Profiled], kinds: list[str], colours: dict[str, str]) -> None:
    shares = [_shares(one, kinds) for one in group]
    below = [0.0] * len(group)
    for kind in kinds:
        values = [100 * share[kind] for share in shares]
        bars = axes.bar(range(len(group)), values, bottom=below, width=0.72, color=colours[kind], label=kind)
        for bar in bars:
            bar.set(edgecolor=MUTED, linewidth=0.5)
        if kind == _INSERTED:
            for place, value in enumerate(values):
                if value >= 8:
                    axes.text(place, value / 2, f"{value:.0f} %", ha="center", va="center", fontsize=9, color=INK)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_xticks(range(len(group)), [f"{one.length:,}" for one in group])
    axes.set_xlabel("layers")
    axes.set_ylim(0, 100)
    axes.set_ylabel("% of samples")


def _shares(one: Profiled, kinds: list[str]) -> dict[str, float]:
    functions = kinds[:-3]
    shares = share_by_function(one.stacks, [*functions, "bdrv_co_is_inserted"])
    shares[_INSERTED] += shares.pop("bdrv_co_is_inserted")
    return shares


def _is_inserted(name: str) -> bool:
    return name in (_INSERTED, "bdrv_co_is_inserted")
