"""What profiles show: flame graphs drawn from the stacks that a study kept, hot functions by length, a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from chainlift.host.durable import write_atomically
from chainlift.profiling.flamegraph import flame_graph
from chainlift.profiling.stacks import is_unknown, load_stacks, profile_name
from chainlift.report.effects import join, layers
from chainlift.report.measures import cpu_per_request
from chainlift.report.reference import published
from chainlift.report.table import Column, Entry, Table
from chainlift.results.store import PROFILES
from chainlift.units import counted, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from chainlift.profiling.stacks import Stacks
    from chainlift.report.data import Results, Series
    from chainlift.results.model import Sample

#: What a profile of host reads was measured as, where nobody profiled.
TIMED_AS = {"host-4k": "4k-strided-d1", "host-64k": "64k-seq-d1", "host-4m": "4m-seq-d1"}
#: The published profile that work without a guest is set beside.
PUBLISHED_AS = {"host-4k": "read", "host-64k": "read", "host-4m": "read", "host-stream": "stream"}
_SIZES = {"host-4k": "4 KiB", "host-64k": "64 KiB", "host-4m": "4 MiB"}
#: The length at which the published profiles were taken.
PUBLISHED_LENGTH = 300
KERNEL, UNNAMED, REST = "the kernel", "functions without a name", "all others"


@dataclass(frozen=True)
class Profiled:
    """One profile of one series."""

    series: Series
    variant: str
    length: int
    stem: str
    directory: Path
    stacks: Stacks


def profiled(results: Results) -> list[Profiled]:
    """Return the profiles whose stacks are there: of each series and kind of work, by length."""
    paths = {run.label: run.path / PROFILES for run in results.runs}
    found = []
    for series, sample in results.samples("profile"):
        directory = paths[series.run]
        stem = profile_name(sample.variant, sample.qemu, sample.length, sample.lift, sample.repeat)
        if (file := directory / f"{stem}.folded.gz").is_file():
            found.append(Profiled(series, sample.variant, sample.length, stem, directory, load_stacks(file)))
    order = {series: number for number, series in enumerate(results.series)}
    return sorted(found, key=lambda p: (p.variant, order[p.series], p.length, p.stem))


def draw_flame_graphs(results: Results) -> None:
    """Write flame graphs beside the stacks that they are drawn from, few enough that a page can hold them all.

    Of each kind of work: each series at the published length (else its longest); the first series' shortest chain, and
    what grew since; and what differs between the first series and the last at the same length.
    """
    kinds: dict[str, list[list[Profiled]]] = {}
    for group in groups_of(profiled(results)):
        kinds.setdefault(group[0].variant, []).append(group)
    for groups in kinds.values():
        highs = [next((p for p in group if p.length == PUBLISHED_LENGTH), group[-1]) for group in groups]
        low, first, last = groups[0][0], highs[0], highs[-1]
        for one in {p.stem: p for p in (low, *highs)}.values():
            _write(one.directory, one.stem, flame_graph(one.stacks, _title(results, one), _samples(one)))
        if first.length > low.length:
            _write_difference(results, first, low, f"{low.length}-layers", f"at {layers(low.length)}")
        if last.series != first.series and last.length == first.length:
            other = first.stem.split("--")[1]
            _write_difference(results, last, first, other, f"with {results.qemu_name(first.series)}")


def _write_difference(results: Results, one: Profiled, before: Profiled, name: str, what: str) -> None:
    subtitle = f"red: more than {what}, blue: less; {_samples(one)}"
    graph = flame_graph(one.stacks, _title(results, one), subtitle, before=before.stacks)
    _write(one.directory, f"{one.stem}--against--{name}", graph)


def share_by_function(stacks: Stacks, functions: list[str]) -> dict[str, float]:
    """Return each function's self time as a share, and those of the kernel, of the nameless and of the rest."""
    shares = dict.fromkeys([*functions, KERNEL, UNNAMED, REST], 0.0)
    total = stacks.total or 1
    for name, count in stacks.self_samples().items():
        shares[_kind(name, functions)] += count / total
    return shares


def hot_functions(group: list[Profiled], most: int = 5) -> list[str]:
    """Return the functions of QEMU and its libraries that take the most self time at any length of a group."""
    highest: dict[str, float] = {}
    for one in group:
        for name, share in share_by_function(one.stacks, list(one.stacks.self_samples())).items():
            if name not in (KERNEL, UNNAMED, REST) and not name.endswith("_[k]") and not is_unknown(name):
                highest[name] = max(highest.get(name, 0.0), share)
    return sorted(highest, key=lambda name: -highest[name])[:most]


def hot_tables(results: Results) -> list[Table]:
    """Return self time by function and length, a table for each kind of work."""
    tables = []
    everything = profiled(results)
    for variant in dict.fromkeys(p.variant for p in everything):
        rows = []
        lengths = sorted({p.length for p in everything if p.variant == variant})
        for group in groups_of([p for p in everything if p.variant == variant]):
            functions = hot_functions(group)
            shares = {p.length: share_by_function(p.stacks, functions) for p in group}
            label = results.label(group[0].series) or results.qemu_name(group[0].series)
            for function in [*functions, KERNEL, UNNAMED, REST]:
                entries = [_percent(shares[n][function] if n in shares else None) for n in lengths]
                rows.append((Entry(label, label), Entry(function, function), *entries))
        columns = (
            Column("series", "Of", numeric=False),
            Column("function", "Function", numeric=False),
            *(Column(f"share_{n}", layers(n)) for n in lengths),
        )
        tables.append(Table(f"Self time by function: {variant}", columns, tuple(rows)))
    return tables


def share_sentence(results: Results) -> str | None:
    """Say which share of samples lies in ``bdrv_is_inserted`` at the published length, beside the published one."""
    found: dict[str, list[str]] = {}
    for series, sample in results.samples("profile"):
        share, rest = (sample.metrics.get(f"share_is_inserted{part}") for part in ("", "_without_vcpus"))
        if sample.length == PUBLISHED_LENGTH and share is not None and series.is_plain:
            name = results.qemu_name(series)
            outside = "" if rest is None else f" ({100 * rest:.0f} % without the vCPUs' threads)"
            found.setdefault(sample.variant, []).append(f"{100 * share:.0f} % with {name}{outside}")
    if not found:
        return None
    parts = []
    for variant, shares in found.items():
        theirs = published().inserted_share.get(PUBLISHED_AS.get(variant, variant), {}).get(PUBLISHED_LENGTH)
        beside = "" if theirs is None else f" (published: {100 * theirs:.0f} %)"
        parts.append(f"{variant}: {', '.join(dict.fromkeys(shares))}{beside}")
    return f"Share of samples in bdrv_is_inserted at {PUBLISHED_LENGTH} layers, by work: {'; '.join(parts)}."


def calls_sentence(results: Results) -> str | None:
    """Say what ``bdrv_is_inserted`` takes by length: its share of a profile times the median CPU time of a request."""
    sentences = []
    for variant, timed in TIMED_AS.items():
        for series in results.shown:
            costs = _inserted_cost(results, series, variant, timed)
            if len(costs) < 2:
                continue
            label = results.label(series)
            each = [f"{format_seconds(cost)} at {layers(length)}" for length, cost in costs.items()]
            sentences.append(
                f"{label + ': a' if label else 'A'} {_SIZES[variant]} read spends {join(each)} of CPU time in "
                "bdrv_is_inserted."
            )
        if sentences:
            break
    if not sentences:
        return None
    return " ".join(sentences) + (
        " One call walks the chain below it (linear); a read makes one at every level it falls through (quadratic)."
    )


def _inserted_cost(results: Results, series: Series, variant: str, timed: str) -> dict[int, float]:
    """Return CPU seconds a request in ``bdrv_is_inserted`` by length, where both the profile and the time are there."""

    def of(test: str, wanted: str) -> Iterator[Sample]:
        return (s for other, s in results.samples(test) if (other, s.variant, s.outcome) == (series, wanted, "ok"))

    each: dict[int, list[float]] = {}
    for sample in of("host", timed):
        if seconds := cpu_per_request(sample):
            each.setdefault(sample.length, []).append(seconds)
    cpu = {n: median(values) for n, values in each.items()}
    shares = {s.length: share for s in of("profile", variant) if (share := s.metrics.get("share_is_inserted"))}
    return {n: shares[n] * cpu[n] for n in sorted(shares) if n in cpu}


def groups_of(found: list[Profiled]) -> list[list[Profiled]]:
    """Split profiles, already in order, by series and kind of work; a repeat after the first is left out."""
    groups: dict[tuple[str, Series], dict[int, Profiled]] = {}
    for one in found:
        groups.setdefault((one.variant, one.series), {}).setdefault(one.length, one)
    return [list(group.values()) for group in groups.values()]


def _kind(name: str, functions: list[str]) -> str:
    if name in functions:
        return name
    if name.endswith("_[k]") or name == "[kernel]":
        return KERNEL
    return UNNAMED if is_unknown(name) else REST


def _title(results: Results, one: Profiled) -> str:
    return f"{one.variant}, {layers(one.length)}, {results.qemu_name(one.series)}"


def _samples(one: Profiled) -> str:
    return counted(one.stacks.total, "sample")


def _percent(share: float | None) -> Entry:
    return Entry(share, "" if share is None else f"{100 * share:.1f} %")


def _write(directory: Path, stem: str, graph: str) -> None:
    write_atomically(directory / f"{stem}.svg", graph)
