"""The sections of the page: which figures, sentences and tables stand together, and in which order."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chainlift.report.causes import cause_sentences, cause_tables
from chainlift.report.effects import bounds, percent
from chainlift.report.explain import effects, explanation
from chainlift.report.findings import comparison_sentence, lift_sentences, memory_sentence
from chainlift.report.growths import growth_sentence
from chainlift.report.later import later_table
from chainlift.report.measures import HOST
from chainlift.report.method import chain_facts, environment_facts, how_it_was_measured
from chainlift.report.profiles import PUBLISHED_AS, calls_sentence, hot_tables, share_sentence
from chainlift.report.reference import published
from chainlift.report.table import Column, Entry, Table
from chainlift.report.tables import (
    attempts_table,
    failure_table,
    growth_table,
    limits_table,
    live_table,
    measure_table,
    tables_of,
)
from chainlift.results.store import PROFILES
from chainlift.units import format_ratio

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.report.data import Results
    from chainlift.report.method import Facts
    from chainlift.report.style import Picture


@dataclass(frozen=True)
class Profile:
    """One flame graph, to be shown in a frame of its own where its script can reach nothing else."""

    title: str
    #: Where it lies in the result directory.
    file: str
    #: The SVG as a ``data:`` address.
    source: str
    height: int


@dataclass(frozen=True)
class Fold:
    """Something long that is opened with a click."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    facts: tuple[Facts, ...] = ()
    #: Tables that stand beside the figures.
    beside: tuple[Facts, ...] = ()
    profiles: tuple[Profile, ...] = ()
    folds: tuple[Fold, ...] = field(default=())

    @property
    def is_empty(self) -> bool:
        """Whether nothing stands in it."""
        return not (
            self.paragraphs
            or self.items
            or self.pictures
            or self.tables
            or self.facts
            or self.beside
            or self.profiles
            or self.folds
        )


def sections_of(results: Results, pictures: list[Picture]) -> list[Section]:
    """Return the sections that have something in them."""
    drawn = {picture.name: picture for picture in pictures}
    growth = growth_sentence(results)
    memory = memory_sentence(results)
    reads_on_host = any(results.series_with(measure) for measure in HOST)
    everything = [
        Section("lift", "Before and after a lift", _lift_paragraphs(results, drawn), pictures=_of(drawn, "lift")),
        Section(
            "host",
            "Reads without a guest" if reads_on_host else "By length and setting",
            tuple(s for s in (growth, comparison_sentence(results)) if s),
            pictures=_of(drawn, "host-reads", "host-cpu", "settings", "latencies"),
            tables=tuple(t for t in (growth_table(results),) if t.rows and t.shown),
        ),
        Section(
            "cause",
            "What the chain costs without the function",
            tuple(cause_sentences(results)),
            tables=tuple(cause_tables(results)),
        ),
        Section("guest", "The experiment's own tests", pictures=_of(drawn, "read", "stream", "stream-host", "random")),
        Section(
            "later",
            "The authors' later tests",
            pictures=_of(drawn, "boot"),
            tables=tuple(t for t in (later_table(results),) if t.rows),
        ),
        Section("why", "Which test shows it, and why", tuple(explanation(results)), tables=verdict_tables(results)),
        Section(
            "memory",
            "Memory",
            (memory,) if memory else (),
            pictures=tuple(p for p in pictures if p.name.startswith("memory-")),
        ),
        Section(
            "profiles",
            "Where the time goes",
            tuple(s for s in (share_sentence(results), calls_sentence(results)) if s),
            pictures=_of(drawn, "hot-functions"),
            tables=tuple(t for t in (share_table(results), *hot_tables(results)) if t.rows),
            profiles=tuple(profiles_of(results)),
        ),
        Section(
            "limits",
            "Limits and crashes",
            tables=tuple(t for t in (limits_table(results), attempts_table(results), failure_table(results)) if t.rows),
        ),
        Section(
            "live",
            "Throughput while the chain is lifted",
            pictures=_of(drawn, "live"),
            tables=tuple(t for t in (live_table(results),) if t.rows),
        ),
        Section(
            "chain", "The chain that was measured", pictures=_of(drawn, "chain"), beside=tuple(chain_facts(results))
        ),
        Section("method", "How it was measured", items=tuple(how_it_was_measured(results))),
        Section("environment", "Environment", facts=tuple(environment_facts(results))),
        Section(
            "numbers",
            "All figures as numbers",
            folds=(
                Fold("Tables of every test", tables=tuple(measure_table(results, m) for m in results.measures())),
                *(Fold(f"The plan as it ran: {run.label}", text=run.plan_text) for run in results.runs),
            )
            if tables_of(results)
            else (),
        ),
    ]
    return [section for section in everything if not section.is_empty]


def _of(drawn: dict[str, Picture], *names: str) -> tuple[Picture, ...]:
    return tuple(drawn[name] for name in names if name in drawn)


def _lift_paragraphs(results: Results, drawn: dict[str, Picture]) -> tuple[str, ...]:
    if "lift" not in drawn:
        return ()
    what = {
        "index": "An index is one merged table that points into the untouched layers: nothing is copied, and QEMU "
        "looks a cluster up once instead of once a layer.",
        "squash": "A squash makes one layer of everything between the base and the active layer.",
    }
    lifts = dict.fromkeys(s.lift for s in results.series if s.lift in what)
    text = " ".join([what[lift] for lift in lifts] + ["No snapshot is lost, and a restore takes a lift off again."])
    return (text, *lift_sentences(results))


def verdict_tables(results: Results) -> tuple[Table, ...]:
    """Return what each test shows of the chain, where there are two tests or more."""
    rows = []
    for effect in effects(results):
        name = f"Host, {effect.measure.title}" if effect.measure.test == "host" else effect.measure.title
        rows.append(
            (
                Entry(name, name),
                Entry(effect.before, f"{effect.measure.format(effect.before)} at {effect.shortest:,}"),
                Entry(effect.after, f"{effect.measure.format(effect.after)} at {effect.longest:,}"),
                Entry(effect.ratio, format_ratio(effect.ratio)),
                Entry(bounds(effect.interval), bounds(effect.interval)),
                Entry(effect.verdict.value, effect.verdict.value),
            )
        )
    columns = (
        Column("test", "Test", numeric=False),
        Column("shortest", "Shortest chain"),
        Column("longest", "Longest chain"),
        Column("ratio", "Times worse"),
        Column("ratio_95", "95 %"),
        Column("verdict", "The longest chain costs", numeric=False),
    )
    table = Table("What each test shows of the chain", columns, tuple(rows))
    return (table,) if len(rows) > 1 else ()


def share_table(results: Results) -> Table:
    """Return the share of samples in ``bdrv_is_inserted`` beside the published shares."""
    rows = []
    found = results.samples("profile")
    shown = list(dict.fromkeys(s for s, _ in found))
    for series, sample in sorted(found, key=lambda item: (item[1].variant, shown.index(item[0]), item[1].length)):
        share, unknown = sample.metrics.get("share_is_inserted"), sample.metrics.get("unknown_share")
        rest = sample.metrics.get("share_is_inserted_without_vcpus")
        theirs = published().inserted_share.get(PUBLISHED_AS.get(sample.variant, sample.variant), {}).get(sample.length)
        label = results.label(series) or results.qemu_name(series)
        rows.append(
            (
                Entry(sample.variant, sample.variant),
                Entry(label, label),
                Entry(sample.length, f"{sample.length:,}"),
                Entry(share, "" if share is None else percent(share, 2)),
                Entry(rest, "" if rest is None else percent(rest, 2)),
                Entry(theirs, "" if theirs is None else percent(theirs, 2)),
                Entry(unknown, "" if unknown is None else percent(unknown, 1)),
                Entry(sample.metrics.get("samples"), f"{sample.metrics.get('samples', 0):,.0f}"),
            )
        )
    columns = (
        Column("workload", "Workload", numeric=False),
        Column("series", "Of", numeric=False),
        Column("length", "Length"),
        Column("share_is_inserted", "In bdrv_is_inserted"),
        Column("share_is_inserted_without_vcpus", "Without vCPU threads"),
        Column("published_share", "Published"),
        Column("unknown_share", "Without a name"),
        Column("samples", "Samples"),
    )
    note = "Published shares are of a guest's dd (beside host reads too) and of a stream under a guest, with KVM: "
    note += "an emulated guest's own work is in QEMU's, hence the share without its vCPUs' threads."
    table = Table("Share of samples in bdrv_is_inserted", columns, tuple(rows), note)
    return table if any(entry[4].value is not None for entry in rows) else _without_column(table, 4)


def _without_column(table: Table, index: int) -> Table:
    rows = tuple(row[:index] + row[index + 1 :] for row in table.rows)
    return replace(table, columns=table.columns[:index] + table.columns[index + 1 :], rows=rows)


def profiles_of(results: Results) -> list[Profile]:
    """Return every flame graph of every run."""
    found: list[Profile] = []
    for run in results.runs:
        for path in sorted((run.path / PROFILES).glob("*.svg"), key=_by_numbers):
            title = path.stem if len(results.runs) == 1 else f"{run.label}: {path.stem}"
            found.append(_profile(path, title))
    return found


def _by_numbers(path: Path) -> tuple[bool, list[tuple[int, str]]]:
    """Sort names by the numbers in them, what is drawn against another one last."""
    parts = re.findall(r"(\d+)|(\D+)", path.stem)
    return "--against--" in path.stem, [(int(number or -1), text) for number, text in parts]


def _profile(path: Path, title: str) -> Profile:
    content = path.read_bytes()
    head = content[:4096].decode("utf-8", "replace")
    height = re.search(r'<svg[^>]*\sheight="(\d+)', head) or re.search(r'viewBox="\S+ \S+ \S+ (\d+)', head)
    pixels = min(max(int(height[1]), 200), 2000) + 8 if height else 600
    source = "data:image/svg+xml;base64," + base64.b64encode(content).decode("ascii")
    return Profile(title, f"{PROFILES}/{path.name}", source, pixels)
