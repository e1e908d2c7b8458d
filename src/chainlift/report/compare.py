"""Two runs of a study beside each other: which figures agree, as far as their samples tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from chainlift.report.data import Results
from chainlift.report.effects import Verdict, bounds, verdict_of
from chainlift.report.measures import host_cpu
from chainlift.report.table import Column, Entry, Table
from chainlift.results.intervals import ratio_interval
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.report.data import Cell
    from chainlift.report.measures import Measure

_SAID = {
    Verdict.MORE: "differs: more here",
    Verdict.LESS: "differs: less here",
    Verdict.UNTOLD: "agrees",
    Verdict.ONCE: "measured once",
}


def compare_runs(mine: Path, theirs: Path) -> list[Table]:
    """Return the cells that both runs have, and their growth with the length, each with the interval of the ratio.

    Machines differ, so that times may too: the second table has the ratios to the shortest chain, which should not.
    ``agrees`` means that the interval holds 1: with wide intervals that says little.

    :raise InputError: if one is no result directory or does not hold what it should.
    """
    results = Results.load([mine, theirs])
    labels = [run.label for run in results.runs]
    values, ratios = [], []
    for measure in (both for m in results.measures() for both in ((m, host_cpu(m)) if m.key == "request_s" else (m,))):
        for series in results.series:
            if series.run != labels[0]:
                continue
            ours = results.cells(series, measure)
            others = results.cells(replace(series, run=labels[1]), measure)
            common = [n for n in ours if n in others and ours[n].values and others[n].values]
            name = ", ".join(
                part for part in (results.qemu_name(series), series.lift, series.setting) if part not in ("none", "")
            )
            values += [_row(measure, name, n, ours[n], others[n]) for n in common]
            if len(common) > 1:
                short, long = common[0], common[-1]
                ratios.append(
                    _ratio_row(measure, name, (short, long), (ours[short], ours[long]), (others[short], others[long]))
                )
    columns = (
        Column("measure", "What", numeric=False),
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
        Column("mine", labels[0]),
        Column("theirs", labels[1]),
        Column("ratio", "Ratio"),
        Column("ratio_95", "95 %", numeric=False),
        Column("verdict", "", numeric=False),
    )
    return [
        Table("The same cells", columns, tuple(values), _in_all(values)),
        Table("What the longest chain is of the shortest", columns, tuple(ratios), _in_all(ratios)),
    ]


def _in_all(rows: Sequence[tuple[Entry, ...]]) -> str:
    """Count the verdicts of a table."""
    counts = Counter("differ" if row[-1].text.startswith("differs") else row[-1].text for row in rows)
    agree, differ = counts[_SAID[Verdict.UNTOLD]], counts["differ"]
    once = counts[_SAID[Verdict.ONCE]]
    told = f"{agree} of {agree + differ} agree, {differ} differ" if agree + differ else ""
    return "; ".join(part for part in (told, f"of {once} a run has one sample" if once else "") if part)


def _row(measure: Measure, name: str, length: int, ours: Cell, others: Cell) -> tuple[Entry, ...]:
    interval = ratio_interval(ours.values, others.values)
    ratio = ours.median / others.median if others.median else None
    verdict = _SAID[verdict_of(interval, 1.0)]
    return (
        Entry(measure.title, measure.title),
        Entry(name, name),
        Entry(length, f"{length:,}"),
        Entry(ours.median, measure.format(ours.median)),
        Entry(others.median, measure.format(others.median)),
        Entry(ratio, "" if ratio is None else format_ratio(ratio)),
        Entry(bounds(interval), bounds(interval)),
        Entry(verdict, verdict),
    )


def _ratio_row(
    measure: Measure, name: str, lengths: tuple[int, int], ours: Sequence[Cell], others: Sequence[Cell]
) -> tuple[Entry, ...]:
    mine, theirs = (ends[1].median / ends[0].median if ends[0].median else None for ends in (ours, others))
    # A ratio of ratios has four groups of samples: Welch's t on logarithms over all of them.
    interval = ratio_interval(ours[1].values, ours[0].values, others[0].values, others[1].values)
    ratio = mine / theirs if mine and theirs else None
    verdict = _SAID[verdict_of(interval, 1.0)]
    over = f"{lengths[1]:,} over {lengths[0]:,}"
    return (
        Entry(measure.title, measure.title),
        Entry(name, name),
        Entry(over, over),
        Entry(mine, "" if mine is None else format_ratio(mine)),
        Entry(theirs, "" if theirs is None else format_ratio(theirs)),
        Entry(ratio, "" if ratio is None else format_ratio(ratio)),
        Entry(bounds(interval), bounds(interval)),
        Entry(verdict, verdict),
    )
