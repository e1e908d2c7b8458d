"""The two kinds of panels that figures are made of: bars from zero, and lines on logarithmic axes.

Both keep every raw sample visible as a dot, write values where they stand instead of in a legend, and mark a length at
which QEMU crashed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor as floor_of
from math import log, log10
from typing import TYPE_CHECKING

from chainlift.report.style import ALERT, GRID, INK, MUTED, PAPER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from chainlift.results.growth import Growth


@dataclass(frozen=True)
class Bar:
    """One bar: the median of its samples, or a value from elsewhere."""

    #: What stands under it.
    label: str
    #: The samples; empty where it crashed or is a published value alone.
    values: tuple[float, ...]
    median: float | None
    colour: str
    #: Second line over the bar: a ratio, a difference.
    note: str = ""
    #: What stands in its place where there is no value: ``crashed``.
    failure: str = ""
    #: Drawn as an outline: not measured here.
    published: bool = False
    #: Empty places left before it.
    gap: float = 0.0
    #: How far right of the bar its label stands, in bars; None where a neighbour has the label.
    shift: float | None = 0.0


def bar_panel(axes: Axes, bars: Sequence[Bar], write: Callable[[float], str], *, top: float | None = None) -> None:
    """Draw bars from zero with their values on them, samples as dots and the range as a line.

    :param axes: where they are drawn.
    :param bars: from left to right.
    :param write: says a value in words.
    :param top: value at the upper end; None: the largest.
    """
    highest = max([max(b.values, default=b.median or 0) for b in bars], default=0)
    top = top or highest or 1
    place = 0.0
    places = []
    for bar in bars:
        place += bar.gap
        places.append(place)
        if bar.median is None:
            axes.text(place, top * 0.02, bar.failure or "not run", rotation=90, ha="center", va="bottom", color=ALERT,
                      fontsize=9)  # fmt: skip
            place += 1
            continue
        if bar.published:
            axes.bar(place, bar.median, width=0.72, facecolor="none", edgecolor=bar.colour, hatch="////", linewidth=1)
        else:
            axes.bar(place, bar.median, width=0.72, color=bar.colour, linewidth=0)
        _samples(axes, place, bar.values)
        high = max([*bar.values, bar.median])
        axes.annotate(write(bar.median), (place, high), (0, 16 if bar.note else 4), textcoords="offset points",
                      ha="center", va="bottom", fontsize=10, color=INK)  # fmt: skip
        if bar.note:
            axes.annotate(bar.note, (place, high), (0, 4), textcoords="offset points", ha="center", va="bottom",
                          fontsize=9, color=MUTED)  # fmt: skip
        place += 1
    labels = [(place + bar.shift, bar.label) for place, bar in zip(places, bars, strict=True) if bar.shift is not None]
    axes.set_xticks([place for place, _ in labels], [label for _, label in labels])
    # One bar alone does not fill the panel.
    last = max(places, default=0)
    room = max(0.0, (2 - last) / 2)
    axes.set_xlim(-0.6 - room, last + 0.6 + room)
    axes.set_ylim(0, top * 1.24)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)


def _samples(axes: Axes, place: float, values: Sequence[float]) -> None:
    if len(values) < 2:
        return
    axes.plot([place, place], [min(values), max(values)], color=INK, linewidth=1.2, solid_capstyle="butt")
    # Spread sideways in the order they were taken, so that equal ones do not hide each other.
    width = min(0.36, 0.09 * len(values))
    for number, value in enumerate(values):
        offset = (number / (len(values) - 1) - 0.5) * width
        axes.plot(
            place + offset, value, marker="o", markersize=4, color=PAPER, markeredgecolor=INK, markeredgewidth=0.8
        )


@dataclass(frozen=True)
class Line:
    """A measure over the chain length."""

    label: str
    #: Chain length -> samples, in the unit of the axis.
    points: dict[int, tuple[float, ...]]
    colour: str
    marker: str = "o"
    #: Drawn dashed through the points, from its shortest to its longest length.
    fit: Growth | None = None
    #: Lengths at which there is no value because QEMU crashed.
    crashes: tuple[int, ...] = ()
    #: Chain length -> what was foreseen, and between what it should be; drawn dotted, in a band.
    foreseen: dict[int, tuple[float, float, float]] = field(default_factory=dict)


def log_panel(
    axes: Axes, lines: Sequence[Line], write: Callable[[float], str], *, label_room: float = 3.2, base: int = 10
) -> None:
    """Draw lines on two logarithmic axes, each named at its end.

    :param write: writes a value, with its unit.
    :param label_room: how many times the longest length the axis reaches, for the names.
    :param base: values stand at the powers of this: 10, or 8 where the unit is binary.
    """
    from statistics import median

    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    lengths = sorted({n for line in lines for n in (*line.points, *line.crashes) if n > 0})
    values = [v for line in lines for p in line.points.values() for v in p if v > 0]
    if not lengths or not values:
        return
    low, high = min(values), max(values)
    ends: list[tuple[float, float, Line]] = []
    for line in lines:
        kept = {n: p for n, p in line.points.items() if n > 0 and p}
        if not kept:
            continue
        medians = {n: median(p) for n, p in kept.items()}
        for length, samples in kept.items():
            axes.plot([length] * len(samples), samples, linestyle="none", marker=line.marker, markersize=4.5,
                      color="none", markeredgecolor=line.colour, markeredgewidth=0.9, alpha=0.75)  # fmt: skip
        axes.plot(list(medians), list(medians.values()), color=line.colour, linewidth=2, marker=line.marker,
                  markersize=5.5 if len(kept) == 1 else 4)  # fmt: skip
        if line.fit is not None:
            reach = _between(min(medians), max(medians))
            axes.plot(reach, [line.fit(n) for n in reach], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1.5)
        if line.foreseen:
            value, least, most = zip(*line.foreseen.values(), strict=True)
            axes.plot(list(line.foreseen), value, color=line.colour, linewidth=1.4, linestyle=(0, (1, 1.6)), zorder=1.6)
            axes.fill_between(list(line.foreseen), least, most, color=line.colour, alpha=0.09, linewidth=0, zorder=1)
        last = max(medians)
        end = (float(last), medians[last])
        for crash in line.crashes:
            axes.plot([end[0], crash], [end[1], high], color=line.colour, linewidth=1, linestyle=(0, (1, 2)))
            axes.plot(crash, high, marker="x", markersize=8, markeredgewidth=2, color=ALERT)
            end = (float(crash), high)
        ends.append((*end, line))
    floor, ceiling = low / 1.7, high * 1.9
    # A line of a label as a share of the panel's height, which its title and axis leave.
    share = 12.5 / (axes.get_window_extent().height / axes.figure.dpi * 72)
    decades = log10(ceiling / floor) * share
    levels = _apart([e[1] for e in ends], [1 + e[2].label.count("\n") for e in ends], decades, ceiling)
    for (place, _, line), level in zip(ends, levels, strict=True):
        if line.label:
            axes.annotate(line.label, (place, level), (9, 0), textcoords="offset points", ha="left", va="center",
                          fontsize=9.5, color=line.colour, fontweight="bold", linespacing=1.15,
                          annotation_clip=False)  # fmt: skip
    right = max(lengths) * (label_room if any(e[2].label for e in ends) else 1.3)
    axes.set_xlim(min(lengths) / 1.25, right)
    axes.set_ylim(floor, ceiling)
    width = axes.get_window_extent().width / axes.figure.dpi * 72 * 0.85
    axes.xaxis.set_major_locator(FixedLocator(_thinned(lengths, width / log10(right / min(lengths) * 1.25))))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    # Less than two powers of the base in sight are no axis: then their multiples, too.
    powers = floor_of(log(ceiling, base)) - floor_of(log(floor, base))
    multiples = (1.0, 2.0, 5.0) if base == 10 else (1.0, 2.0, 4.0)
    # Where even these are too far apart, round numbers, as on any axis.
    log_ticks = LogLocator(base, subs=(1.0,) if powers > 1 else multiples, numticks=12)
    axes.yaxis.set_major_locator(MaxNLocator(5) if ceiling / floor < 4 else log_ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: tidy(write(v))))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="y", which="major", color=GRID)
    axes.spines["left"].set_visible(False)


def tidy(text: str) -> str:
    """Write an axis' value without the noughts behind its point: ``10.0 µs`` is ``10 µs``."""
    number, _, unit = text.partition(" ")
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}".strip()


def byte_ticks(top: float, count: int) -> list[int]:
    """Return at most about ``count`` round numbers of bytes up to ``top``: 0, 2 MiB, 4 MiB ..."""
    unit = 1
    while top / count / unit >= 1000:
        unit *= 1024
    step = next(unit * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1024) if unit * n >= top / count)
    return list(range(0, int(top) + 1, step))


def _thinned(lengths: Sequence[int], points_a_decade: float) -> list[int]:
    """Leave out lengths whose labels would touch on a logarithmic axis; the ends stay."""
    kept = [lengths[-1]]
    for length in reversed(lengths[:-1]):
        room = log10(kept[-1] / length) * points_a_decade
        # Digits of the tick labels' size, half of each label, and a gap.
        if room >= 6.5 * (len(f"{length:,}") + len(f"{kept[-1]:,}")) / 2 + 5:
            kept.append(length)
    return kept


def _between(first: float, last: float, count: int = 60) -> list[float]:
    return [first * (last / first) ** (i / (count - 1)) for i in range(count)]


def _apart(levels: Sequence[float], lines: Sequence[int], decades: float, ceiling: float) -> list[float]:
    """Move labels down until none touches another or the panel's top; a line of a label takes so many decades."""
    placed = list(levels)
    bound = ceiling
    for label in sorted(range(len(levels)), key=lambda i: -levels[i]):
        half = 10 ** (decades * lines[label] / 2)
        placed[label] = min(levels[label], bound / half)
        bound = placed[label] / half
    return placed
