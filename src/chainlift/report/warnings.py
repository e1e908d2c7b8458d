"""What a reader must know before quoting a figure, in plain words: noise, few repeats, what the machine cannot show."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chainlift.report.data import plan_of
from chainlift.report.effects import percent
from chainlift.results.statistics import summarise
from chainlift.units import counted, format_seconds

if TYPE_CHECKING:
    from chainlift.report.data import Results, Run

#: A spread from here on, as a share of the median, is worth a word.
NOISY = 0.10
FEW = 3
#: Steal from here on is worth a word.
_STEAL = 0.02
#: Tests in which a guest takes part; a stream without one has the variant ``host``.
_IN_GUEST = ("read", "random", "stream", "memory", "live", "boot", "rocksdb")


def warnings(results: Results) -> list[str]:
    """Return the warnings, the gravest first."""
    found = [*_missing(results), *_noise(results), *_limits(results)]
    return [text[:1].upper() + text[1:] for text in found]


def _missing(results: Results) -> list[str]:
    found = []
    for run in results.runs:
        where = f"{run.label}: " if len(results.runs) > 1 else ""
        if run.environment is None:
            found.append(f"{where}the study stopped before it recorded its environment.")
        if run.state is not None and not run.state.is_complete:
            found.append(
                f"{where}incomplete: {run.state.done} of {run.state.cells} measurements are made. Run the study again "
                "with the same --out and it goes on where it was."
            )
        versions = sorted({s.chainlift for s in run.samples if s.chainlift})
        if len(versions) > 1:
            found.append(f"{where}the samples were taken by different versions of chainlift: {', '.join(versions)}.")
        missing = [test for test in planned_tests(run) if not any(s.test == test for s in run.samples)]
        if missing:
            found.append(
                f"{where}planned and not in these results: {', '.join(missing)}. The study was stopped, or is still "
                "running; run it again with the same --out and it goes on where it was."
            )
    return found


def _noise(results: Results) -> list[str]:
    found = []
    spreads = []
    few = 0
    for measure in results.measures():
        for series in results.series:
            for length, cell in results.cells(series, measure).items():
                if not cell.values:
                    continue
                few += len(cell.values) < FEW
                if len(cell.values) > 1:
                    spreads.append((cell.summary.spread, f"{measure.title} at length {length:,}"))
    noisy = [s for s in spreads if s[0] > NOISY]
    if noisy:
        widest, where = max(noisy)
        found.append(
            f"In {len(noisy)} of {len(spreads)} cells the samples spread by more than {percent(NOISY)} of their "
            f"median; the widest is {where} with {percent(widest)}. Quote ratios, and look at the dots."
        )
    if few:
        cells = "1 cell has" if few == 1 else f"{few} cells have"
        found.append(f"{cells} fewer than {FEW} samples; their spread says little. More repeats would tell.")
    found += _partly_failed(results)
    for run in results.runs:
        if any(s.conditions is not None for s in run.samples):
            found += _disturbed(run, f"{run.label}: " if len(results.runs) > 1 else "")
            continue
        loads = [s.load_1m for s in run.samples if s.load_1m is not None]
        cpus = run.environment.cpus if run.environment else 1
        if loads and max(loads) > cpus:
            busy = sum(load > cpus for load in loads)
            where = f"{run.label}: " if len(results.runs) > 1 else ""
            found.append(
                f"{where}the machine was busy: in {busy} of {len(loads)} samples the load average was over its "
                f"{cpus} CPUs (up to {max(loads):.1f}). Times are too long by what others took; CPU times suffer less."
            )
    return found


def _disturbed(run: Run, where: str) -> list[str]:
    """Say how many samples were disturbed, and what was done about it."""
    seen = [s.conditions for s in run.samples if s.conditions is not None]
    disturbed = [c for c in seen if c.is_disturbed]
    if not disturbed:
        return []
    others = summarise(c.others_share for c in seen)
    assert others is not None
    text = (
        f"{where}the machine was not quiet: others ran beside {len(disturbed)} of {len(seen)} samples "
        f"(they took {percent(others.median)} of the CPUs in the median, up to {percent(others.high)}). "
        "Times are too long by what others took; CPU times suffer less."
    )
    steal = max(c.steal_share for c in seen)
    if steal >= _STEAL:
        text += f" The hypervisor gave up to {percent(steal)} of the CPUs to others."
    again, waited = sum(c.runs > 1 for c in seen), sum({c.waited_s for c in seen})
    if again or waited:
        text += f" The study waited {format_seconds(waited)} and measured {counted(again, 'sample')} again."
    return [text]


def _partly_failed(results: Results) -> list[str]:
    """Name the lengths at which some repeats failed: the median is of those that did not."""
    cells = [
        (measure.title, length, cell)
        for measure in results.measures()
        for series in results.series
        for length, cell in results.cells(series, measure).items()
        if cell.values and cell.failures
    ]
    return [
        f"{title}: at length {length:,} {len(cell.failures)} of {len(cell.failures) + len(cell.values)} repeats "
        f"{cell.failures[0].outcome}; what is shown is of the others."
        for title, length, cell in cells
    ]


def _limits(results: Results) -> list[str]:
    found = []
    for run in results.runs:
        if run.environment is None:
            continue
        where = f"{run.label}: " if len(results.runs) > 1 else ""
        found += [where + in_short(limit).rstrip(".") + "." for limit in run.environment.limits if limit]
        emulated = [q for q in run.environment.qemus if q.accelerator == "tcg"]
        guest = any(s.test in _IN_GUEST and s.variant != "host" for s in run.samples)
        if emulated and guest and not any("KVM" in limit for limit in run.environment.limits):
            why = in_short(emulated[0].accelerator_reason).rstrip(". ")
            found.append(
                f"{where}the guest was emulated (TCG), not run under KVM{': ' + why if why else ''}. Its own reads are "
                "bound by the emulated CPU."
            )
        places = {(file.file_system, file.device) for file in run.environment.files}
        if len(places) > 1:
            named = ", ".join(f"{fs} on {device}" for fs, device in sorted(places))
            found.append(
                f"{where}the files lie on different file systems ({named}); the storage takes part in the figures."
            )
    return list(dict.fromkeys(found))


def in_short(reason: str) -> str:
    """Cut a reason behind the signal that ended a program: what it printed then stands in the environment's table."""
    found = re.match(r".*?signal \d+ \(\w+\)", reason)
    return found[0] if found else reason


def planned_tests(run: Run) -> list[str]:
    """Return the tests that the run's plan names; none where the plan cannot be read."""
    tests = plan_of(run).get("tests", [])
    return [t for t in tests if isinstance(t, str)] if isinstance(tests, list) else []
