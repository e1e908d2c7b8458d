"""What a function causes, by taking it out: the same work on a QEMU and on a copy of it without that function.

A share of samples in a function says where the time goes; what would be gained without it is another question, since
the rest of the work may have waited for it or suffered from it. The copy answers it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.report.effects import capital, host_measures, in_brackets, layers, percent, times, within
from chainlift.report.growths import common_lengths, growth_of
from chainlift.report.measures import LATENCIES, READ, STREAM, STREAM_HOST, cpu_time
from chainlift.report.table import Column, Entry, Table
from chainlift.results.intervals import Interval, ratio_interval, ratio_of_differences
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from chainlift.report.data import Cell, Results, Series
    from chainlift.report.measures import Measure


@dataclass(frozen=True)
class Cause:
    """A measure at one length, with a function and without it.

    :ivar share: the share of what the chain adds that is gone without the function; None where the samples do not tell
        that the chain adds anything.
    :ivar left: how many times its own shortest chain's cost the copy's is.
    """

    series: Series
    without: Series
    function: str
    measure: Measure
    shortest: int
    length: int
    with_it: Cell
    without_it: Cell
    share: Interval | None
    left: Interval | None


def pairs(results: Results) -> list[tuple[Series, Series, str]]:
    """Return each plain series of a QEMU with that of its copy, and the function that the copy lacks."""
    there = [s for s in results.series if s.is_plain]
    found = [(results.original(series), series) for series in there]
    return [(copy[0], series, copy[1]) for copy, series in found if copy is not None and copy[0] in there]


def cause_measures(results: Results) -> list[Measure]:
    """Return what is set beside each other: CPU time where it is known."""
    found = [cpu_time(m) for m in (*host_measures(results), READ, STREAM, STREAM_HOST)]
    return [m for m in (*found, LATENCIES[0]) if any(results.medians(s, m) for _, s, _ in pairs(results))]


def causes(results: Results) -> list[Cause]:
    """Return what each function causes: by measure, QEMU and length."""
    found = []
    for measure in cause_measures(results):
        for series, without, function in pairs(results):
            one = {n: c for n, c in results.cells(series, measure).items() if c.values}
            other = {n: c for n, c in results.cells(without, measure).items() if c.values}
            common = sorted(one.keys() & other.keys())
            for length in common[1:]:
                least = common[0]
                rest = ratio_of_differences(
                    (other[length].values, other[least].values), (one[length].values, one[least].values)
                )
                found.append(
                    Cause(
                        series,
                        without,
                        function,
                        measure,
                        least,
                        length,
                        one[length],
                        other[length],
                        None if rest is None else Interval(1 - rest.value, 1 - rest.high, 1 - rest.low),
                        ratio_interval(other[length].values, other[least].values),
                    )
                )
    return found


def cause_sentences(results: Results) -> list[str]:
    """Say for each QEMU what the function causes of the first measure's cost at the longest chain, and what is left."""
    found = causes(results)
    sentences = []
    for series, without, function in pairs(results):
        own = [c for c in found if (c.series, c.function) == (series, function)]
        if not own:
            continue
        last = max((c for c in own if c.measure == own[0].measure), key=lambda c: c.length)
        subject = last.measure.subject
        if last.share is None:
            text = f"what {function} causes of {subject} cannot be told from these samples"
        else:
            text = f"{function} causes {percent(last.share.value)} {within(last.share, percent)} of what "
            text += f"{layers(last.length)} add to {subject}"
        short = results.cells(without, last.measure)[last.shortest]
        beside = last.without_it.median / short.median
        text += (
            f"; without it {layers(last.length)} take {times(beside)} as much as {last.shortest:,} {within(last.left)}"
        )
        growth = growth_of(results, without, last.measure)
        if growth.is_told:
            text += f", which grows as length^{growth.exponent:.1f} "
            text += f"(95 %: {growth.exponent_low:.1f} to {growth.exponent_high:.1f})"
        sentences.append(capital(f"On {results.qemu_name(series)}, {text}."))
    return sentences


def cause_tables(results: Results) -> list[Table]:
    """Return what the function causes, the growth with it and without, and what lifts reach beside that."""
    return [t for t in (_share_table(results), _growth_table(results), _rest_table(results)) if t.rows]


def _share_table(results: Results) -> Table:
    rows = []
    for cause in causes(results):
        share, left = cause.share, cause.left
        rows.append(
            (
                _what(cause.measure),
                Entry(results.qemu_name(cause.series), results.qemu_name(cause.series)),
                Entry(cause.length, f"{cause.length:,}"),
                Entry(cause.with_it.median, cause.measure.format(cause.with_it.median)),
                Entry(cause.without_it.median, cause.measure.format(cause.without_it.median)),
                Entry(
                    None if share is None else share.value,
                    "not told" if share is None else in_brackets(percent(share.value), share, _hundredths),
                ),
                *_ends(share),
                Entry(
                    None if left is None else left.value,
                    "" if left is None else in_brackets(format_ratio(left.value), left),
                ),
                *_ends(left),
            )
        )
    functions = ", ".join(dict.fromkeys(function for _, _, function in pairs(results)))
    columns = (
        Column("what", "What", numeric=False),
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
        Column("with", "With it"),
        Column("without", "Without"),
        Column("share", "It causes (95 %)"),
        Column("share_low", "", shown=False),
        Column("share_high", "", shown=False),
        Column("left", f"Without, times {'one layer' if _from_one(results) else 'the shortest'} (95 %)"),
        Column("left_low", "", shown=False),
        Column("left_high", "", shown=False),
    )
    note = (
        "The slowdown is what a length costs more than the shortest one; its share is what is gone of it in a copy of "
        "the same QEMU in which the function returns at once."
    )
    return Table(f"What {functions} causes", columns, tuple(rows), note)


def _from_one(results: Results) -> bool:
    return all(cause.shortest == 1 for cause in causes(results))


def _what(measure: Measure) -> Entry:
    return Entry(measure.title, measure.title.replace(", depth 1", ""))


def _hundredths(share: float) -> str:
    return f"{share * 100:.0f}"


def _ends(interval: Interval | None) -> tuple[Entry, Entry]:
    return (
        Entry(None if interval is None else interval.low, ""),
        Entry(None if interval is None else interval.high, ""),
    )


def _growth_table(results: Results) -> Table:
    rows = []
    for measure in cause_measures(results):
        for series, without, _ in pairs(results):
            lengths = common_lengths(results, (series, without), measure)
            growths = [growth_of(results, s, measure, lengths=lengths) for s in (series, without)]
            if not any(growth.is_told for growth in growths):
                continue
            row = [_what(measure), Entry(results.qemu_name(series), results.qemu_name(series))]
            for growth in growths:
                told = growth.is_told
                ends = f"{growth.exponent_low:.2f} to {growth.exponent_high:.2f}"
                out = ", ".join(shape.name for shape in growth.shapes if shape.ruled_out)
                row += [
                    Entry(
                        growth.exponent if told else None,
                        f"{growth.exponent:.2f} ({ends})" if told else growth.untold,
                    ),
                    Entry(growth.exponent_low if told else None, ""),
                    Entry(growth.exponent_high if told else None, ""),
                    Entry(out, out),
                ]
            rows.append(tuple(row))
    columns = [Column("what", "What the chain adds to", numeric=False), Column("series", "Of", numeric=False)]
    for key, title in (("with", "With it"), ("without", "Without")):
        columns += [
            Column(f"{key}_exponent", f"{title} (95 %)"),
            Column(f"{key}_exponent_low", "", shown=False),
            Column(f"{key}_exponent_high", "", shown=False),
            Column(f"{key}_ruled_out", "Ruled out", numeric=False),
        ]
    note = "The power of the length with which the cost grows, with the function and without it."
    return Table("Growth that is left without it", tuple(columns), tuple(rows), note)


def _rest_table(results: Results) -> Table:
    """Return the longest chain beside the shortest: as it is, without the function, and behind each lift."""
    rows = []
    lifts = list(dict.fromkeys(s.lift for s in results.series if not s.is_plain))
    for measure in cause_measures(results):
        for series, without, _ in pairs(results):
            there_are = [n for n, c in results.cells(series, measure).items() if c.values]
            shortest, length = min(there_are, default=0), max(there_are, default=0)
            if shortest == length:
                continue
            base = results.cells(series, measure)[shortest]
            own = results.cells(without, measure).get(shortest)
            family = {s.lift: s for s in results.series if (s.run, s.qemu) == (series.run, series.qemu)}
            columns = [(series, base), (without, own), *((family.get(lift), base) for lift in lifts)]
            row = [
                _what(measure),
                Entry(results.qemu_name(series), results.qemu_name(series)),
                Entry(length, f"{length:,}"),
            ]
            for there, least in columns:
                cell = results.cells(there, measure).get(length) if there is not None else None
                ratio = cell.median / least.median if cell and cell.values and least and least.median else None
                ends = ratio_interval(cell.values, least.values) if cell and least else None
                row += [
                    Entry(ratio, "" if ratio is None else in_brackets(format_ratio(ratio), ends)),
                    *_ends(ends),
                ]
            rows.append(tuple(row))
    columns_ = [
        Column("what", "What", numeric=False),
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
    ]
    names = [("chain", "The chain"), ("without", "Without it"), *((lift, f"Behind the {lift}") for lift in lifts)]
    for key, title in names:
        columns_ += [
            Column(key, f"{title} (95 %)"),
            Column(f"{key}_low", "", shown=False),
            Column(f"{key}_high", "", shown=False),
        ]
    note = "Times the shortest chain on the same QEMU; lifts are of the QEMU as it is, with the function."
    return Table("What is left of the cost, and what a lift leaves", tuple(columns_), tuple(rows), note)
