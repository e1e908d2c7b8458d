"""How single host requests are distributed over their latency, by length.

A study leaves ``latencies/NAME.csv`` in its result directory: ``at_most_s,requests``, a row a bucket, where NAME is
``VARIANT--QEMU--N-layers``, then a lift and a setting, where there are, and the repeat.
"""

from __future__ import annotations

import csv
from collections import Counter
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.report.effects import layers
from chainlift.report.style import CYCLE, GRID, HALF, Picture, drawing_style, new_figure
from chainlift.results.store import LATENCIES
from chainlift.units import format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from chainlift.report.data import Results

#: More lines than that cannot be told apart.
_MOST = 6
_TITLES = {"4k-single-d1": "Single 4 KiB reads"}


def read_histogram(path: Path) -> Counter[float]:
    """Read a histogram: requests by the latency that they did not pass, seconds.

    :raise InputError: if it does not hold what it should.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            return Counter({float(row["at_most_s"]): int(row["requests"]) for row in csv.DictReader(stream)})
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise InputError(f"is no histogram of latencies: {error}", path=path) from error


def histograms_of(results: Results) -> dict[str, dict[int, Counter[float]]]:
    """Return the histograms of the first run that has some, by variant and length, all repeats together.

    They are of the chain itself, of one QEMU (the host's, where it was measured) and of one setting.

    :raise InputError: if one does not hold what it should.
    """
    for run in results.runs:
        series: dict[tuple[str, str], dict[str, dict[int, Counter[float]]]] = {}
        for path in sorted((run.path / LATENCIES).glob("*.csv")):
            variant, qemu, length, *rest = [*path.stem.split("--"), "", ""]
            more = rest[: len(path.stem.split("--")) - 4]
            if not length.removesuffix("-layers").isdecimal() or any("=" not in part for part in more):
                continue
            by_length = series.setdefault((qemu, "".join(more)), {}).setdefault(variant, {})
            by_length.setdefault(int(length.removesuffix("-layers")), Counter()).update(read_histogram(path))
        if series:
            return series[min(series, key=lambda name: (name[0] != "host", name))]
    return {}


def draw_latencies(results: Results) -> Picture | None:
    """Draw which share of the requests took at most how long, a line a length."""
    found = histograms_of(results)
    if not found:
        return None
    with drawing_style():
        figure, axes = new_figure(HALF * len(found), 3.6, 1, len(found))
        for panel, (variant, by_length) in zip(axes, found.items(), strict=True):
            _draw(panel, _TITLES.get(variant, "Single 4 KiB reads and writes"), by_length)
    alt = " ".join(
        f"{variant}, {layers(length)}: half took at most {format_seconds(_percentile(histogram, 50))}, "
        f"99 % at most {format_seconds(_percentile(histogram, 99))}."
        for variant, by_length in found.items()
        for length, histogram in sorted(by_length.items())
    )
    caption = "Which share of the requests was answered within a time, without a guest; all repeats together."
    return Picture("latencies", "Latency of single requests", caption, alt, figure, wide=len(found) > 1)


def _draw(axes: Axes, title: str, by_length: dict[int, Counter[float]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    lengths = sorted(by_length)
    if len(lengths) > _MOST:
        step = (len(lengths) - 1) / (_MOST - 1)
        lengths = [lengths[round(step * number)] for number in range(_MOST)]
    for number, length in enumerate(lengths):
        bounds, shares, seen = [], [], 0
        for bound, count in sorted(by_length[length].items()):
            seen += count
            bounds.append(bound)
            shares.append(seen / by_length[length].total())
        axes.step(bounds, shares, where="post", color=CYCLE[number % len(CYCLE)], linewidth=1.8, label=layers(length))
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v * 100:.0f} %"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: format_seconds(v)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, axis="both", which="major", color=GRID)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_title(title)


def _percentile(histogram: Counter[float], percent: int) -> float:
    left = histogram.total() * percent / 100
    for bound, count in sorted(histogram.items()):
        left -= count
        if left <= 0:
            return bound
    return max(histogram)
