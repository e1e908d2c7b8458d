"""The results as plain tables: for the terminal, for ``--json`` and for the page."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from chainlift.report.causes import cause_tables
from chainlift.report.data import Results, Series
from chainlift.report.effects import bounds
from chainlift.report.findings import describe_failure
from chainlift.report.growths import common_lengths, growth_of
from chainlift.report.later import later_table
from chainlift.report.measures import HOST_VARIANTS, cpu_per_request, cpu_s, host_cpu
from chainlift.report.table import Column, Entry, Table, Value
from chainlift.results.intervals import median_interval, ratio_interval
from chainlift.results.statistics import summarise
from chainlift.units import format_bytes, format_ratio, format_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.report.data import Cell as Samples
    from chainlift.report.measures import Measure
    from chainlift.results.model import LimitAttempt


def result_tables(directories: Sequence[Path]) -> list[Table]:
    """Return the result tables of one or several result directories; tests that were not run have none.

    :raise InputError: if one is no result directory or does not hold what it should.
    """
    return tables_of(Results.load(directories))


def tables_of(results: Results) -> list[Table]:
    """Return the result tables of loaded results."""
    tables = [measure_table(results, measure) for measure in results.measures()]
    tables.append(growth_table(results))
    tables += cause_tables(results)
    tables.append(later_table(results))
    tables.append(failure_table(results))
    tables.append(limits_table(results))
    tables.append(attempts_table(results))
    tables.append(live_table(results))
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
        Column(f"low_{measure.key}", "", shown=False),
        Column(f"high_{measure.key}", "", shown=False),
        Column(f"min_{measure.key}", "Min"),
        Column(f"max_{measure.key}", "Max"),
        Column("ratio", "Ratio"),
        Column("ratio_low", "", shown=False),
        Column("ratio_high", "", shown=False),
        Column("ratio_95", "95 %", numeric=False),
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
    """Return the exponents with which the chain's cost grows; of several series, one column each over the same lengths.

    Where the samples do not tell the exponent, the reason stands there.
    """
    measures = [m for m in results.measures() if m.key in ("request_s", "wall_s", "memory_bytes")]
    measures = [both for m in measures for both in ((m, host_cpu(m)) if m.key == "request_s" else (m,))]
    shown = [s for s in results.series if s.is_plain]
    return _growths_side_by_side(results, measures, shown) if len(shown) > 1 else _growths(results, measures, shown)


_GROWTH_TITLE = "Growth with the chain length"
_GROWTH_NOTE = (
    "Of what the chain adds, as a power of the length: 1 is linear, 2 quadratic; floor, factor and exponent fitted "
    "together to all samples."
)


def _growths(results: Results, measures: Sequence[Measure], shown: Sequence[Series]) -> Table:
    rows, any_told = [], False
    for series, measure in ((s, m) for m in measures for s in shown):
        if len(results.medians(series, measure)) < 2:
            continue
        growth = growth_of(results, series, measure)
        told = growth.is_told
        any_told |= told
        ends = f"{growth.exponent_low:.2f} to {growth.exponent_high:.2f}" if told else growth.untold
        lost = ", ".join(f"{n:,} ({why})" for n, why in growth.left_out)
        lengths = ", ".join(f"{n:,}" for n in growth.lengths)
        out = ", ".join(s.name for s in growth.shapes if s.ruled_out)
        rows.append(
            (
                Entry(measure.title, measure.title),
                Entry(growth.exponent if told else None, f"{growth.exponent:.2f}" if told else ""),
                Entry(growth.exponent_low if told else None, ""),
                Entry(growth.exponent_high if told else None, ""),
                Entry(growth.untold or None, ends),
                Entry(out, out),
                Entry(growth.misfit, "no" if growth.misfit else "yes" if growth.shapes else ""),
                Entry(lengths, lengths),
                Entry(growth.samples, str(growth.samples)),
                Entry(lost, lost),
            )
        )
    columns = (
        Column("what", "What the chain adds to", numeric=False),
        Column("exponent", "Exponent"),
        Column("exponent_low", "", shown=False),
        Column("exponent_high", "", shown=False),
        Column("untold", "95 %, or why it cannot be told", numeric=False),
        Column("ruled_out", "Ruled out", numeric=False),
        Column("misfit", "One power fits", numeric=False),
        Column("lengths", "Lengths", numeric=False),
        Column("samples", "Samples"),
        Column("left_out", "Left out", numeric=False),
    )
    return Table(_GROWTH_TITLE, columns, tuple(rows), _GROWTH_NOTE, shown=any_told)


def _growths_side_by_side(results: Results, measures: Sequence[Measure], shown: Sequence[Series]) -> Table:
    labels = [results.label(s, among=shown) for s in shown]
    rows = []
    for measure in measures:
        having = [s for s in shown if len(results.medians(s, measure)) > 1]
        lengths = sorted(common_lengths(results, having, measure))
        if not having or len(lengths) < 2:
            continue
        growths = {s: growth_of(results, s, measure, lengths=lengths) for s in having}
        if not any(g.is_told for g in growths.values()):
            continue
        over = ", ".join(f"{n:,}" for n in lengths)
        row = [Entry(measure.title, measure.title), Entry(over, over)]
        for series in shown:
            growth = growths.get(series)
            if growth is None or not growth.is_told:
                row += [Entry(None, "" if growth is None else "cannot be told"), Entry(None, ""), Entry(None, "")]
            else:
                ends = f"{growth.exponent:.2f} ({growth.exponent_low:.2f} to {growth.exponent_high:.2f})"
                row += [Entry(growth.exponent, ends), Entry(growth.exponent_low, ""), Entry(growth.exponent_high, "")]
        rows.append(tuple(row))
    columns = [
        Column("what", "What the chain adds to", numeric=False),
        Column("lengths", "Over the lengths", numeric=False),
    ]
    for label in labels:
        columns.append(Column(f"exponent, {label}", label))
        columns += [Column(f"exponent_{end}, {label}", "", shown=False) for end in ("low", "high")]
    return Table(_GROWTH_TITLE, tuple(columns), tuple(rows), _GROWTH_NOTE + " In brackets the 95 % interval.")


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
    # Before 2026-11-26 a plan with lifts wrote the plain chain's limits down for them too.
    for series, sample in ((x, s) for x, s in results.samples("limits") if x.is_plain):
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


_LIVE = {
    "stall_s": "Longest request, switch to the index",
    "restore_stall_s": "Switch back",
    "quiet_stall_s": "Before",
    "bytes_per_s_before": "Read before",
    "bytes_per_s_during": "During",
    "bytes_per_s_after": "After",
    "pivot_s": "The switch took",
    "restore_s": "The way back took",
    "longest_command_s": "Longest command",
    "extents": "Extents",
}


def live_table(results: Results) -> Table:
    """Return what a guest noticed of its disk being switched; what was not measured is left empty."""
    rows = []
    for series, sample in results.samples("live"):
        if sample.outcome != "ok":
            continue
        name = results.label(series) or results.qemu_name(series)
        row = [
            Entry(name, name),
            Entry(sample.length, f"{sample.length:,}"),
            Entry(sample.repeat, f"{sample.repeat + 1}"),
        ]
        for metric in _LIVE:
            value = sample.metrics.get(metric)
            row.append(Entry(value, "" if value is None else _live_text(metric, value)))
        rows.append(tuple(row))
    columns = (
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
        Column("repeat", "Repeat"),
        *(Column(key, title) for key, title in _LIVE.items()),
    )
    return Table("Switching a running disk", columns, tuple(rows))


def _live_text(metric: str, value: float) -> str:
    if metric.startswith("bytes_per_s"):
        return f"{format_bytes(value)}/s"
    return format_seconds(value) if metric.endswith("_s") else f"{value:,.0f}"


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


def baseline(results: Results, series: Series, measure: Measure) -> Samples | None:
    """Return the shortest plain chain of the same run and QEMU: what a ratio is a ratio to.

    :param results: what was measured.
    :param series: of one QEMU and one lift.
    :param measure: what the ratio is of.
    """
    for other in results.series:
        if (other.run, other.qemu, other.setting, other.is_plain) == (series.run, series.qemu, series.setting, True):
            break
    else:
        other = series
    return next((cell for cell in results.cells(other, measure).values() if cell.values), None)


def _figures(measure: Measure, samples: Samples, base: Samples | None) -> list[Entry]:
    if not samples.values:
        text = describe_failure(samples.failures[0])
        return [Entry(None, text), *[Entry(None, "")] * 8]
    summary, interval = samples.summary, median_interval(samples.values)
    ratio = summary.median / base.median if base and base.median else None
    ends = ratio_interval(samples.values, base.values) if base and samples != base else None
    return [
        Entry(summary.median, measure.format(summary.median)),
        Entry(None if interval is None else interval.low, ""),
        Entry(None if interval is None else interval.high, ""),
        Entry(summary.low, measure.format(summary.low)),
        Entry(summary.high, measure.format(summary.high)),
        Entry(ratio, "" if ratio is None else format_ratio(ratio)),
        Entry(None if ends is None else ends.low, ""),
        Entry(None if ends is None else ends.high, ""),
        Entry(bounds(ends), bounds(ends)),
    ]


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
