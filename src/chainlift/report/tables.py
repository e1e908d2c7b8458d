"""The results as plain tables: for the terminal, for ``--json`` and for the page."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.report.data import Results, Series
from chainlift.report.findings import describe_failure, growth_of
from chainlift.report.measures import HOST_VARIANTS, cpu_per_request, cpu_s, host_cpu
from chainlift.results.statistics import summarise
from chainlift.units import format_ratio, format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.report.data import Cell as Samples
    from chainlift.report.measures import Measure
    from chainlift.results.model import LimitAttempt
    from chainlift.results.statistics import Growth

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column: the name of its values in JSON, its heading, and whether figures stand in it."""

    key: str
    title: str
    numeric: bool = True


@dataclass(frozen=True)
class Entry:
    """One field: the value with the unit its column's key names, and how it is written for people."""

    value: Value
    text: str


@dataclass(frozen=True)
class Table:
    """A table with its title; every row has one entry a column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""

    def as_data(self) -> dict[str, object]:
        """Return the table as JSON has it: ``{"title": ..., "rows": [{key: value}]}``."""
        keys = [column.key for column in self.columns]
        return {
            "title": self.title,
            "rows": [dict(zip(keys, [e.value for e in row], strict=True)) for row in self.rows],
        }


def result_tables(directories: Sequence[Path]) -> list[Table]:
    """Return the result tables of one or several result directories; tests that were not run have none.

    :raise InputError: if one is no result directory or does not hold what it should.
    """
    return tables_of(Results.load(directories))


def tables_of(results: Results) -> list[Table]:
    """Return the result tables of loaded results."""
    tables = [measure_table(results, measure) for measure in results.measures()]
    tables.append(growth_table(results))
    tables.append(failure_table(results))
    tables.append(limits_table(results))
    tables.append(attempts_table(results))
    return [table for table in tables if table.rows]


def measure_table(results: Results, measure: Measure) -> Table:
    """Return one measure by length: median, smallest and largest sample, and how many times the shortest chain's."""
    shown = results.series_with(measure)
    named = len(shown) > 1
    with_cpu = measure.key in ("wall_s", "request_s") and any(
        _cpu(results, series, measure, length) is not None
        for series in shown
        for length in results.cells(series, measure)
    )
    per_request = measure.key == "request_s"
    columns = [Column("length", "Length")]
    if named:
        columns.insert(0, Column("series", "Of", numeric=False))
    columns += [
        Column(measure.key, "Median"),
        Column(f"min_{measure.key}", "Min"),
        Column(f"max_{measure.key}", "Max"),
        Column("ratio", "Ratio"),
    ]
    if with_cpu:
        columns.append(Column("cpu_request_s" if per_request else "cpu_s", "CPU"))
    columns.append(Column("repeats", "Repeats"))
    rows = []
    for series in shown:
        base = baseline(results, series, measure)
        for length, samples in results.cells(series, measure).items():
            row = [Entry(length, f"{length:,}")]
            if named:
                row.insert(0, Entry(results.label(series, among=shown), results.label(series, among=shown)))
            row += _figures(measure, samples, base)
            if with_cpu:
                cpu = _cpu(results, series, measure, length)
                row.append(Entry(cpu, "" if cpu is None else format_seconds(cpu)))
            row.append(Entry(len(samples.values), str(len(samples.values))))
            rows.append(tuple(row))
    title = f"Host read: {measure.title}, time a request" if per_request else measure.title
    return Table(title, tuple(columns), tuple(rows))


def growth_table(results: Results) -> Table:
    """Return the exponents with which the chain's cost grows; of several series, one column each."""
    measures = [m for m in results.measures() if m.key in ("request_s", "wall_s", "memory_bytes")]
    measures = [both for m in measures for both in ((m, host_cpu(m)) if m.key == "request_s" else (m,))]
    shown = [s for s in results.series if s.is_plain]
    title = "Growth with the chain length"
    note = "Of the cost over that of the shortest chain, as a power of the length: 1 is linear, 2 quadratic."
    fitted = {m: {s: g for s in shown if (g := _exponent(results, s, m)) is not None} for m in measures}
    rows: list[tuple[Entry, ...]] = []
    if len(shown) > 1:
        labels = [results.label(s, among=shown) for s in shown]
        for measure, growths in fitted.items():
            if growths:
                entries = [
                    Entry(g.exponent, f"{g.exponent:.2f} ± {_half(g):.2f}")
                    if (g := growths.get(s))
                    else Entry(None, "")
                    for s in shown
                ]
                rows.append((Entry(measure.title, measure.title), *entries))
        each = [Column(f"exponent, {label}", label) for label in labels]
        return Table(title, (Column("what", "What the chain adds to", numeric=False), *each), tuple(rows), note)
    rows = [
        (
            Entry(measure.title, measure.title),
            Entry(growth.exponent, f"{growth.exponent:.2f}"),
            Entry(_half(growth), f"± {_half(growth):.2f}"),
            Entry(growth.lengths[0], f"{growth.lengths[0]:,}-{growth.lengths[-1]:,}"),
            Entry(len(growth.lengths), str(len(growth.lengths))),
        )
        for measure, growths in fitted.items()
        for growth in growths.values()
    ]
    columns = (
        Column("what", "What the chain adds to", numeric=False),
        Column("exponent", "Exponent"),
        Column("exponent_95", "95 %"),
        Column("from_length", "Lengths"),
        Column("points", "Points"),
    )
    return Table(title, columns, tuple(rows), note)


def _exponent(results: Results, series: Series, measure: Measure) -> Growth | None:
    growth = growth_of(results, series, measure)
    return growth if growth is not None and len(growth.lengths) > 2 else None


def _growth_entry(growth: Growth | None) -> Entry:
    return Entry(None, "") if growth is None else Entry(growth.exponent, f"{growth.exponent:.2f} ± {_half(growth):.2f}")


def _half(growth: Growth) -> float:
    return (growth.exponent_high - growth.exponent_low) / 2


def failure_table(results: Results) -> Table:
    """Return what crashed or did not end: a result like any other."""
    counted: dict[tuple[Value, ...], int] = {}
    for series, sample in results.failures():
        what = f"{sample.test} {sample.variant}".strip()
        key = (what, results.label(series), sample.length, describe_failure(sample), sample.detail or "")
        counted[key] = counted.get(key, 0) + 1
    rows = [
        (*(Entry(v, f"{v:,}" if isinstance(v, int) else str(v)) for v in key), Entry(n, str(n)))
        for key, n in sorted(counted.items(), key=lambda item: [str(v) for v in item[0]])
    ]
    columns = (
        Column("test", "Test", numeric=False),
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
        Column("outcome", "Outcome", numeric=False),
        Column("detail", "Detail", numeric=False),
        Column("times", "Times"),
    )
    return Table("Crashes and failures", columns, tuple(rows))


def limits_table(results: Results) -> Table:
    """Return the longest chains that were opened and read, and what stopped the next one."""
    rows = []
    for series, sample in results.samples("limits"):
        name = results.label(series) or results.qemu_name(series)
        longest, open_s, files = (sample.metrics.get(m) for m in ("longest", "open_s", "file_descriptors"))
        beyond = sample.detail or describe_failure(sample)
        rows.append(
            (
                Entry(name, name),
                Entry(sample.variant, sample.variant),
                Entry(longest, "" if longest is None else f"{longest:,.0f}"),
                Entry(open_s, "" if open_s is None else format_seconds(open_s)),
                Entry(files, "" if files is None else f"{files:,.0f}"),
                Entry(beyond, beyond),
            )
        )
    columns = (
        Column("series", "Of", numeric=False),
        Column("variant", "To", numeric=False),
        Column("longest", "Longest"),
        Column("open_s", "Opens in"),
        Column("file_descriptors", "Descriptors"),
        Column("beyond", "Beyond that", numeric=False),
    )
    return Table("The longest chain", columns, tuple(rows))


def attempts_table(results: Results) -> Table:
    """Return every length that the limits test tried: how long the chain took to open, and what ended QEMU."""
    tried: dict[int, dict[str, LimitAttempt]] = {}
    names: list[str] = []
    for run in results.runs:
        for attempt in run.attempts:
            name = results.qemu_name(Series(run.label, attempt.qemu, "none"))
            name = name if len(results.runs) == 1 else f"{run.label}, {name}"
            names.append(name)
            tried.setdefault(attempt.length, {})[name] = attempt
    names = list(dict.fromkeys(names))
    rows = [
        (Entry(length, f"{length:,}"), *(_attempt(tried[length].get(name)) for name in names))
        for length in sorted(tried)
    ]
    columns = (Column("length", "Length"), *(Column(f"open_s, {name}", name) for name in names))
    return Table("Opening a chain, and whether it can be read then", columns, tuple(rows))


def _attempt(found: LimitAttempt | None) -> Entry:
    if found is None:
        return Entry(None, "")
    opened = "not opened" if found.open_s is None else format_seconds(found.open_s)
    if found.signal is None:
        return Entry(found.open_s, opened)
    # The study itself ends what takes too long, by no signal of QEMU's own.
    ended = "took too long" if found.signal == signal.SIGALRM else f"signal {found.signal}"
    return Entry(found.open_s, f"{opened}, {ended}")


def baseline(results: Results, series: Series, measure: Measure) -> float | None:
    """Return the median at the shortest plain chain of the same run and QEMU: what a ratio is a ratio to."""
    for other in results.series:
        if (other.run, other.qemu, other.is_plain) == (series.run, series.qemu, True):
            medians = results.medians(other, measure)
            return next(iter(medians.values()), None)
    return next(iter(results.medians(series, measure).values()), None)


def _figures(measure: Measure, samples: Samples, base: float | None) -> list[Entry]:
    if not samples.values:
        text = describe_failure(samples.failures[0])
        return [Entry(None, text), Entry(None, ""), Entry(None, ""), Entry(None, "")]
    summary = samples.summary
    ratio = summary.median / base if base else None
    values = (summary.median, summary.low, summary.high)
    figures = [Entry(value, measure.format(value)) for value in values]
    return [*figures, Entry(ratio, "" if ratio is None else format_ratio(ratio))]


def _cpu(results: Results, series: Series, measure: Measure, length: int) -> float | None:
    function = cpu_per_request if measure.variant in HOST_VARIANTS or measure.key == "request_s" else cpu_s
    cpu = [
        v
        for other, s in results.samples(measure.test)
        if other == series and s.variant == measure.variant and s.length == length and s.outcome == "ok"
        if (v := function(s)) is not None
    ]
    summary = summarise(cpu)
    return None if summary is None else summary.median
