"""Result directories, loaded: which series there are, and every sample of a measure at a length."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.errors import InputError
from chainlift.report.measures import HOST_MEMORY, MEASURES, Measure, host_parts
from chainlift.results.statistics import Summary, summarise
from chainlift.results.store import ENVIRONMENT, ResultDirectory
from chainlift.units import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from chainlift.results.model import ChainShape, Environment, LimitAttempt, Sample, State

#: The order in which lifts are shown.
LIFTS = ("none", "index", "squash")
_LIFT_NAMES = {"none": "plain chain", "index": "index", "squash": "squash"}


@dataclass(frozen=True)
class Run:
    """One result directory."""

    #: Distinguishes it from the others that are shown with it.
    label: str
    path: Path
    plan_text: str
    #: None where the study was stopped before it knew.
    environment: Environment | None
    chain: ChainShape | None
    samples: tuple[Sample, ...]
    #: What the limits test tried.
    attempts: tuple[LimitAttempt, ...] = ()
    #: How far the study is; None where that was not noted.
    state: State | None = None

    @property
    def title(self) -> str:
        """The plan's name, and where the directory has another one, that too."""
        name = plan_of(self).get("name")
        return self.label if not isinstance(name, str) or name == self.label else f"{name} ({self.label})"


def plan_of(run: Run) -> dict[str, Any]:
    """Return the keys of a run's plan as it ran; nothing where it cannot be read."""
    try:
        return tomllib.loads(run.plan_text)
    except tomllib.TOMLDecodeError:
        return {}


@dataclass(frozen=True)
class Series:
    """What one line of a chart stands for: everything that is not the chain length."""

    run: str
    qemu: str
    lift: str
    #: What the plan varied and had here: ``cache=none``; empty where it varied nothing.
    setting: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the chain was read as it is."""
        return self.lift == "none"


@dataclass(frozen=True)
class Cell:
    """A measure at one length: its samples, raw and summarised, and what went wrong."""

    values: tuple[float, ...]
    failures: tuple[Sample, ...] = ()

    @property
    def summary(self) -> Summary:
        """Median and spread; :raise ValueError: where every sample failed."""
        summary = summarise(self.values)
        if summary is None:
            raise ValueError("no samples")
        return summary

    @property
    def median(self) -> float:
        """The median alone."""
        return self.summary.median


class Results:
    """One or several runs, side by side.

    :param runs: at least one.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = tuple(runs)
        self._samples: dict[tuple[Series, str, str, int], list[Sample]] = {}
        self._versions = {
            (run.label, qemu.label): _version(qemu.version)
            for run in self.runs
            for qemu in (run.environment.qemus if run.environment else [])
        }
        #: Copies without one function: the QEMU that each is a copy of, and the function.
        self._copies = {
            (run.label, qemu.label): (qemu.copy_of, qemu.without)
            for run in self.runs
            for qemu in (run.environment.qemus if run.environment else [])
            if qemu.without
        }
        for run in self.runs:
            for sample in run.samples:
                series = Series(run.label, sample.qemu, sample.lift, sample.setting)
                key = (series, sample.test, sample.variant, sample.length)
                self._samples.setdefault(key, []).append(sample)

    @classmethod
    def load(cls, directories: Sequence[Path]) -> Results:
        """Load result directories.

        :raise InputError: if there is none, or one is no result directory, or does not hold what it should.
        """
        if not directories:
            raise InputError("no result directory was given")
        return cls([_load(path, label) for path, label in zip(directories, _labels(directories), strict=True)])

    @property
    def series(self) -> list[Series]:
        """Every series: runs and QEMUs in the order they come, lifts as in :data:`LIFTS`."""
        found = list(dict.fromkeys(key[0] for key in self._samples))
        order = {run.label: number for number, run in enumerate(self.runs)}
        qemus = {(s.run, s.qemu): number for number, s in enumerate(found)}
        first = {key: min(n for other, n in qemus.items() if other == key) for key in qemus}
        settings = list(dict.fromkeys(s.setting for s in sorted(found, key=lambda s: natural(s.setting))))
        return sorted(
            found,
            key=lambda s: (order[s.run], first[s.run, s.qemu], settings.index(s.setting), _lift_order(s.lift)),
        )

    @property
    def shown(self) -> list[Series]:
        """The series that figures and sentences of the chain show: unlifted ones; all of them where there is none."""
        return [s for s in self.series if s.is_plain] or self.series

    def cells(self, series: Series, measure: Measure) -> dict[int, Cell]:
        """Return the measure by chain length, ascending; a length without a value or a failure is left out."""
        found = {}
        for (other, test, variant, length), samples in sorted(self._samples.items(), key=lambda item: item[0][3]):
            if (other, test, variant) != (series, measure.test, measure.variant):
                continue
            values = [v for s in samples if s.outcome == "ok" and (v := measure.value(s)) is not None]
            failures = [s for s in samples if s.outcome != "ok"]
            if values or failures:
                found[length] = Cell(tuple(values), tuple(failures))
        return found

    def medians(self, series: Series, measure: Measure) -> dict[int, float]:
        """Return the measure's median by chain length, ascending, where there is one."""
        return {length: cell.median for length, cell in self.cells(series, measure).items() if cell.values}

    def series_with(self, measure: Measure, among: Iterable[Series] | None = None) -> list[Series]:
        """Return the series that have anything to say about a measure."""
        return [s for s in (self.series if among is None else among) if self.cells(s, measure)]

    def measures(self) -> list[Measure]:
        """Return the measures that occur, known ones in their order, then host variants that only this run knows."""
        found = {(key[1], key[2]) for key in self._samples}
        known = [m for m in MEASURES if (m.test, m.variant) in found and self.series_with(m)]
        covered = {(m.test, m.variant) for m in MEASURES}
        extra = sorted((v for t, v in found - covered if t == "host"), key=host_parts)
        small = [] if HOST_MEMORY in known else [v for v in extra if v.startswith("4k-")][:1]
        memory = [replace(HOST_MEMORY, variant=v) for v in small]
        return [*known, *(Measure.host(v) for v in extra), *(m for m in memory if self.series_with(m))]

    def lengths(self, measures: Iterable[Measure], among: Iterable[Series]) -> list[int]:
        """Return every length at which one of the series has one of the measures."""
        chosen = list(among)
        return sorted({n for m in measures for s in chosen for n in self.cells(s, m)})

    def failures(self) -> list[tuple[Series, Sample]]:
        """Return every sample that is no measurement: crashes first of all."""
        return [(key[0], s) for key, samples in self._samples.items() for s in samples if s.outcome != "ok"]

    def samples(self, test: str) -> list[tuple[Series, Sample]]:
        """Return every sample of a test."""
        return [(key[0], s) for key, samples in self._samples.items() if key[1] == test for s in samples]

    def label(self, series: Series, *, among: Iterable[Series] | None = None, lift: bool = True) -> str:
        """Name a series by what sets it apart from those that it is shown with; ``""`` where it is the only one.

        A lifted one is always named so.

        :param series: the one that gets a name.
        :param among: those that it is shown with; None: all.
        :param lift: say the lift, too.
        """
        others = list(self.series if among is None else among)
        parts = []
        if len({s.run for s in others}) > 1:
            parts.append(series.run)
        if len({s.qemu for s in others}) > 1:
            parts.append(self.qemu_name(series))
        if len({s.setting for s in others}) > 1 and series.setting:
            parts.append(series.setting)
        if lift and (len({s.lift for s in others}) > 1 or not series.is_plain):
            parts.append(_LIFT_NAMES.get(series.lift, series.lift))
        return ", ".join(parts)

    def original(self, series: Series) -> tuple[Series, str] | None:
        """Return what a series was measured on a copy of, and the function that the copy lacks; None of any other."""
        copy = self._copies.get((series.run, series.qemu))
        return None if copy is None else (replace(series, qemu=copy[0]), copy[1])

    def qemu_name(self, series: Series) -> str:
        """Name the QEMU of a series by its version, and by its label where another has the same version."""
        if copy := self._copies.get((series.run, series.qemu)):
            original, function = copy
            return f"{self.qemu_name(replace(series, qemu=original))} without {function}"
        version = self._versions.get((series.run, series.qemu), "")
        if not version:
            return f"QEMU {series.qemu}"
        others = {key[1] for key, other in self._versions.items() if other == version and key not in self._copies}
        return f"QEMU {version} ({series.qemu})" if len(others) > 1 else f"QEMU {version}"


def natural(setting: str) -> list[tuple[str, float, str]]:
    """Return a key that sorts settings by their values: sizes by size, everything else by name."""
    keys = []
    for part in setting.split(", "):
        name, _, value = part.partition("=")
        try:
            size = float(parse_size(value))
        except ValueError:
            size = 0.0
        keys.append((name, size, value))
    return keys


def _version(text: str) -> str:
    """Pick ``7.2.22`` out of what ``-version`` prints."""
    for word in text.replace("(", " ").split():
        if word[:1].isdigit() and "." in word:
            return word.rstrip(",)")
    return ""


def _load(path: Path, label: str) -> Run:
    directory = ResultDirectory.open(path)
    environment = directory.environment() if (path / ENVIRONMENT).exists() else None
    return Run(
        label=label,
        path=path,
        plan_text=directory.plan_text(),
        environment=environment,
        chain=directory.chain(),
        samples=tuple(directory.samples()),
        attempts=tuple(directory.attempts()),
        state=directory.state(),
    )


def _labels(directories: Sequence[Path]) -> list[str]:
    """Name each directory by the shortest end of its path that no other has."""
    parts = [path.resolve().parts for path in directories]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [str(Path(*p[-depth:])) for p in parts]
        if len(set(labels)) == len(labels):
            return labels
    counts: Counter[str] = Counter()
    labels = []
    for path in directories:
        counts[str(path)] += 1
        labels.append(str(path) if counts[str(path)] == 1 else f"{path} ({counts[str(path)]})")
    return labels


def _lift_order(lift: str) -> int:
    return LIFTS.index(lift) if lift in LIFTS else len(LIFTS)
