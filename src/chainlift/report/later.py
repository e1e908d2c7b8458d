"""What the experiment's authors measured later, beside the same tests here: boot time, dd, RocksDB.

Machines, disks and guests differ, so only ratios stand beside each other: how many times a length costs what the
shortest one that both have costs. A rate counts by its inverse.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import median
from typing import TYPE_CHECKING

from chainlift.report.effects import in_brackets
from chainlift.report.measures import BOOT, READ, ROCKSDB
from chainlift.report.reference import MEGABYTE
from chainlift.report.table import Column, Entry, Table
from chainlift.results.intervals import ratio_interval
from chainlift.units import format_bytes, format_ratio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chainlift.report.data import Cell, Results, Series
    from chainlift.report.measures import Measure
    from chainlift.results.intervals import Interval

Values = dict[int, list[float]]


@dataclass(frozen=True)
class Later:
    """The authors' later values, test -> build -> length -> samples; ``stock`` is QEMU, ``svd`` their patched one."""

    values: Mapping[str, Mapping[str, Values]]
    #: The tests whose published values are rates, whatever they are here: the authors give bytes a second of a dd.
    rates: frozenset[str]
    disk_bytes: int
    host: str

    @property
    def boot_s(self) -> dict[int, float]:
        """Boot time by length, with stock QEMU."""
        return {length: median(values) / 1000 for length, values in self.values["boot"]["stock"].items()}


#: The tests that a plan has only in order to be set beside these: a dd alone is the experiment's own.
_ASKED_BY = (BOOT, ROCKSDB)
_MEASURES = (BOOT, READ, ROCKSDB)
_LIFTS = ("none", "index", "squash")


@cache
def later() -> Later:
    """Return what the authors published later (``followup.json`` in this package)."""
    data = json.loads(files("chainlift.report").joinpath("followup.json").read_text(encoding="utf-8"))
    values = {
        measure.test: {
            build: {int(length): values for length, values in data[measure.test].get(build, {}).items()}
            for build in ("stock", "svd")
        }
        for measure in _MEASURES
    }
    host = data["host"]
    return Later(
        values,
        frozenset(measure.test for measure in _MEASURES if "/s" in data[measure.test]["unit"]),
        host["disk_gb"] * 1000 * MEGABYTE,
        f"{host['os']}, {host['accelerator'].upper()}, QEMU {host['qemu']}",
    )


def later_table(results: Results) -> Table:
    """Return the ratios here and there of every length here, and of their longest where it lies between two of them."""
    rows = []
    asked = any(results.series_with(measure) for measure in _ASKED_BY)
    for measure in _MEASURES if asked else ():
        theirs = later().values[measure.test]
        for series in results.series_with(measure, [s for s in results.series if s.is_plain]):
            family = _family(results, series)
            cells = {lift: results.cells(one, measure) for lift, one in family.items()}
            plain = {n: c for n, c in cells["none"].items() if c.values}
            base = next((n for n in sorted(theirs["stock"]) if n in plain), None)
            if base is None:
                continue
            label = results.label(series, among=[s for s in results.series if s.is_plain])
            longest = max(theirs["stock"])
            between = {longest} if longest < max(cells["none"]) else set()
            for length in sorted({n for n in cells["none"] if n > base} | between):
                row = [
                    Entry(measure.title, f"{measure.title}{', ' * bool(label)}{label}"),
                    Entry(length, f"{length:,} over {base:,}"),
                ]
                for lift in _LIFTS:
                    row += _here(measure, cells.get(lift, {}).get(length), plain[base])
                for build in ("stock", "svd"):
                    row += _there(measure, theirs[build], length, base)
                rows.append(tuple(row))
    columns = [Column("what", "What", numeric=False), Column("length", "Length")]
    for key, title in (
        *(("chain", "The chain"), ("index", "An index"), ("squash", "A squash")),
        *(("published_stock", "Published: QEMU 4.2"), ("published_svd", "Published: SVD")),
    ):
        columns += [
            Column(key, f"{title} (95 %)"),
            Column(f"{key}_low", "", shown=False),
            Column(f"{key}_high", "", shown=False),
        ]
    note = (
        "Times the cost of the shorter chain; of a rate its inverse. Published are the authors' later values "
        f"({later().host}, a disk of {format_bytes(later().disk_bytes)} with data spread evenly over the layers): SVD "
        "is a QEMU that they patched, with an image format of its own; a lift leaves QEMU as it is."
        f"{_differences(results)}"
    )
    return Table("The authors' later tests", tuple(columns), tuple(rows), note)


def _family(results: Results, series: Series) -> dict[str, Series]:
    return {s.lift: s for s in results.series if (s.run, s.qemu) == (series.run, series.qemu)}


def _here(measure: Measure, cell: Cell | None, base: Cell) -> list[Entry]:
    if cell is None:
        return [Entry(None, "")] * 3
    if not cell.values:
        return [Entry(None, cell.failures[0].outcome), *[Entry(None, "")] * 2]
    return _ratio(cell.values, base.values, is_rate=measure.larger_is_better)


def _there(measure: Measure, theirs: Values, length: int, base: int) -> list[Entry]:
    if length not in theirs or base not in theirs:
        return [Entry(None, "")] * 3
    return _ratio(theirs[length], theirs[base], is_rate=measure.test in later().rates)


def _ratio(values: Sequence[float], base: Sequence[float], *, is_rate: bool) -> list[Entry]:
    over, under = (base, values) if is_rate else (values, base)
    value = median(over) / median(under)
    ends: Interval | None = ratio_interval(over, under)
    return [
        Entry(value, in_brackets(format_ratio(value), ends)),
        Entry(None if ends is None else ends.low, ""),
        Entry(None if ends is None else ends.high, ""),
    ]


def _differences(results: Results) -> str:
    """Say how what was measured here differs from what they did, as far as the results tell."""
    sizes = sorted({run.chain.virtual_size_bytes for run in results.runs if run.chain})
    emulated = any(q.accelerator == "tcg" for run in results.runs if run.environment for q in run.environment.qemus)
    said = f" Here: a disk of {', '.join(map(format_bytes, sizes))}" if sizes else ""
    if emulated:
        said += f"{',' if said else ' Here:'} an emulated guest, whose own work hides much of what the chain adds"
    if results.series_with(ROCKSDB):
        said += f"{',' if said else ' Here:'} a database in the base, under all of the layers, read by db_bench"
    return f"{said}." if said else ""
