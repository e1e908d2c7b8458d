"""Throughput over time while a running VM's disk is switched from the chain to a lift and back.

A study leaves ``live/NAME.csv`` in its result directory: a header ``time_s,bytes_per_s,event``, one row an interval,
and in ``event`` a word where something was done (``pivot begins``, and where it had ended ``pivot``; so for
``restore``), else nothing. A row with an event alone has no rate. Recordings before 2026-11-26 have the ends alone.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.report.draw import byte_ticks, tidy
from chainlift.report.style import ALERT, FULL, GRID, PLAIN, Picture, drawing_style, new_figure
from chainlift.results.statistics import summarise
from chainlift.results.store import LIVE
from chainlift.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from chainlift.report.data import Results


_BEGINS = " begins"


@dataclass(frozen=True)
class Throughput:
    """One recording: seconds since its start, bytes a second, and what was done when."""

    name: str
    times_s: tuple[float, ...]
    rates: tuple[float, ...]
    events: tuple[tuple[float, str], ...]


def read_throughput(path: Path) -> Throughput:
    """Read a recording; :raise InputError: if it does not hold what it should."""
    times, rates, events = [], [], []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                time_s = float(row["time_s"])
                if row.get("bytes_per_s"):
                    times.append(time_s)
                    rates.append(float(row["bytes_per_s"]))
                if row.get("event"):
                    events.append((time_s, row["event"]))
    except (KeyError, ValueError, OSError) as error:
        raise InputError(f"is no recording of throughput: {error}", path=path) from error
    return Throughput(path.stem, tuple(times), tuple(rates), tuple(events))


def draw_live(results: Results) -> Picture | None:
    """Draw every recording of every run, one below the other."""
    found = []
    for run in results.runs:
        for path in sorted((run.path / LIVE).glob("*.csv")):
            recording = read_throughput(path)
            if recording.times_s:
                found.append((f"{run.label}: " * (len(results.runs) > 1) + recording.name, recording))
    if not found:
        return None
    with drawing_style():
        figure, axes = new_figure(FULL, 2.9 * len(found) + 0.2, len(found), 1)
        for panel, (title, recording) in zip(axes, found, strict=True):
            _draw(panel, title, recording)
    alt = " ".join(_words(title, recording) for title, recording in found)
    caption = "What is read while the VM runs, by time. Lines: when a switch began; shaded until it ended."
    return Picture("live", "Throughput while the chain is lifted", caption, alt, figure, wide=True)


def _draw(axes: Axes, title: str, recording: Throughput) -> None:
    from matplotlib.ticker import FuncFormatter

    top = max(recording.rates) or 1
    axes.fill_between(recording.times_s, recording.rates, color=PLAIN, alpha=0.18, linewidth=0)
    axes.plot(recording.times_s, recording.rates, color=PLAIN, linewidth=1.6)
    for began_s, ended_s, event in switches_of(recording):
        if began_s is not None:
            axes.axvspan(began_s, ended_s, ymax=0.86, color=ALERT, alpha=0.25, linewidth=0)
        time_s = ended_s if began_s is None else began_s
        axes.axvline(time_s, ymax=0.86, color=ALERT, linewidth=1.4)
        name = event if began_s is not None else f"{event} ended"
        axes.annotate(name, (time_s, top * 1.12), (4, 0), textcoords="offset points", color=ALERT, fontsize=9.5,
                      fontweight="bold", va="center")  # fmt: skip
    axes.set_ylim(0, top * 1.25)
    axes.set_xlim(min(recording.times_s), max(recording.times_s))
    axes.set_yticks(byte_ticks(top, 4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{tidy(format_bytes(v))}/s" if v else "0"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} s"))
    axes.grid(visible=True, axis="y", color=GRID)
    axes.spines["left"].set_visible(False)
    axes.set_title(title)


def switches_of(recording: Throughput) -> list[tuple[float | None, float, str]]:
    """Return each switch: when it began, where that was recorded, when it ended, and its name."""
    began = {event.removesuffix(_BEGINS): t for t, event in recording.events if event.endswith(_BEGINS)}
    return [(began.get(event), t, event) for t, event in recording.events if not event.endswith(_BEGINS)]


def _words(title: str, recording: Throughput) -> str:
    """Say the median rate before and after each event."""
    ends = [(ended_s, event) for _, ended_s, event in switches_of(recording)]
    edges = [*(t for t, _ in ends), float("inf")]
    names = ["at first", *(f"after {event}" for _, event in ends)]
    parts, start = [], float("-inf")
    for name, end in zip(names, edges, strict=True):
        between = [r for t, r in zip(recording.times_s, recording.rates, strict=True) if start <= t < end]
        summary = summarise(between)
        if summary is not None:
            parts.append(f"{name} {format_bytes(summary.median)}/s")
        start = end
    last = format_seconds(recording.times_s[-1] - recording.times_s[0])
    return f"{title}, over {last}: median {', '.join(parts)}."
