"""Running a study: every probe at every length, with every QEMU and lift, as often as the plan says.

Repeats are interleaved over lengths, so that a slow hour of the machine falls on all of them alike. Every sample is on
disk before the next is taken; a study that continues skips what it has. What QEMU has crashed of once is not tried in
later repeats: it crashes again, and may take minutes to come to that.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, OperationError, PlanError, QemuCrashed, one_line
from chainlift.qemu.bench import require_terminal
from chainlift.results.model import GuestFacts, Sample
from chainlift.results.store import ENVIRONMENT, PLAN, ResultDirectory
from chainlift.study.active_layer import ActiveLayers, keep_cached, read_through, scratch_directory
from chainlift.study.build import Bench, built_chain
from chainlift.study.environment import describe_environment, places_of, require_same_machine
from chainlift.study.lifts import check_lifts, makes_sense
from chainlift.study.plan import parse_plan
from chainlift.study.plan_text import plan_text
from chainlift.study.probe import Probe, Reading, Setup, boots_guest, lifts_itself, probes_of, repeats_of
from chainlift.study.space import measuring_bytes, require_space

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.results.model import Lift
    from chainlift.study.chain_store import ChainDirectory
    from chainlift.study.plan import Plan
    from chainlift.study.progress import Progress

#: Modes in which host reads come from the page cache, so that it has to hold the same for every length.
_CACHED_MODES = frozenset({"writeback", "writethrough", "unsafe"})
#: Tests that hold QEMU by a pseudo-terminal.
_HELD_BY_A_TERMINAL = frozenset({"host", "limits", "profile"})
#: Outcomes that are results; what failed otherwise is tried again when the study continues.
_SETTLED = frozenset({"ok", "crashed", "timed out"})


@dataclass(frozen=True)
class Cell:
    """One run of a probe."""

    repeat: int
    length: int
    qemu: str
    lift: Lift
    probe: Probe

    @property
    def sample_names(self) -> list[tuple[str, str, str, str, int, int]]:
        """The names of the samples that it gives, as :attr:`chainlift.results.model.Sample.name` has them."""
        return [(*name, self.repeat) for name in self.work]

    @property
    def work(self) -> list[tuple[str, str, str, str, int]]:
        """What is measured, whichever repeat this is."""
        return [(test, variant, self.qemu, self.lift, self.length) for test, variant in self.probe.names]

    def __str__(self) -> str:
        parts = [f"{self.probe.title} at length {self.length}"]
        parts += [f"QEMU {self.qemu}"] if self.qemu != "host" else []
        parts += [self.lift] if self.lift != "none" else []
        return ", ".join(parts)


def cells_of(plan: Plan, probes: Sequence[Probe]) -> list[Cell]:
    """Return every run of a study in the order in which they are made."""
    found = []
    lifted_at = plan.lift_lengths or plan.lengths
    for repeat in range(plan.repeats):
        wanted = [
            (n, p)
            for n in _all_lengths(plan, probes)
            for p in probes
            if n in p.lengths(plan) and repeat < repeats_of(p, plan)
        ]
        # Up and down in turns: a drift of the machine does not look like growth with the length.
        lengths = sorted({n for n, _ in wanted}, reverse=repeat % 2 == 1)
        found += [
            Cell(repeat, length, qemu, lift, probe)
            for length in lengths
            for qemu in plan.qemu
            for lift in plan.lift
            if lift == "none" or (length in lifted_at and makes_sense(lift, length))
            for n, probe in wanted
            if n == length and (lift == "none" or not lifts_itself(probe))
        ]
    return found


def run_study(plan: Plan, out: Path, progress: Progress) -> ResultDirectory:
    """Run a study, or what is left of it.

    :param out: the result directory; made, or continued where it holds the same plan.
    :raise InputError: for anything that can be known before something is made: an unknown test, another plan's results,
        too little space, no QEMU, no pseudo-terminal for the tests that need one.
    """
    probes = probes_of(plan)
    check_lifts(plan)
    bench = Bench.find(plan)
    if not _HELD_BY_A_TERMINAL.isdisjoint(plan.tests):
        require_terminal()
    require_space(bench.chains, bench.bytes_to_build() + measuring_bytes(plan), f"the plan {plan.name}")
    results = ResultDirectory.create(out, _text_of(plan.model_copy(update={"chains": ""}), out))
    cells = cells_of(plan, probes)
    done = {sample.name for sample in results.samples() if sample.outcome in _SETTLED}
    left = [cell for cell in cells if not done.issuperset(cell.sample_names)]
    if left:
        _measure(plan, bench, results, left, len(cells), progress)
    results.write_csv(results.samples())
    return results


def _text_of(plan: Plan, out: Path) -> str:
    """Return the plan's text: what the directory has where it means the same, lacking keys that came later."""
    try:
        text = (out / PLAN).read_text(encoding="utf-8")
        return text if parse_plan(text) == plan else plan_text(plan)
    except (OSError, UnicodeDecodeError, PlanError):
        return plan_text(plan)


def _measure(
    plan: Plan, bench: Bench, results: ResultDirectory, left: Sequence[Cell], total: int, progress: Progress
) -> None:
    chain, manifest = built_chain(plan, bench, progress)
    # Asked of the whole plan, so that the environment is the same when the study continues.
    bench = replace(bench, boots=any(boots_guest(probe) for probe in probes_of(plan)))
    with ExitStack() as stack:
        stack.enter_context(chain.lock(exclusive=False))
        chain.check_unchanged(manifest)
        scratch = stack.enter_context(scratch_directory(bench.chains))
        _record(plan, bench, results, chain, scratch)
        results.write_chain(manifest.shape)
        files = [chain.layer(n) for n in range(max(cell.length for cell in left) + 1)]
        if plan.cache in _CACHED_MODES:
            progress.stage("reading the chain into the page cache")
            read_through(files)
        layers = ActiveLayers(chain, scratch)
        crashed = {sample.name[:-1] for sample in results.samples() if sample.outcome == "crashed"}
        progress.stage("measuring", total)
        for number, cell in enumerate(left, start=total - len(left)):
            progress.step(number, str(cell))
            if crashed.issuperset(cell.work):
                continue
            if plan.cache in _CACHED_MODES:
                keep_cached(files[: cell.length + 1])
            if _run_cell(plan, bench, results, chain, layers, cell, progress):
                crashed.update(cell.work)
        progress.step(total)
        chain.check_unchanged(manifest)


def _run_cell(
    plan: Plan,
    bench: Bench,
    results: ResultDirectory,
    chain: ChainDirectory,
    layers: ActiveLayers,
    cell: Cell,
    progress: Progress,
) -> bool:
    """Measure one cell; return whether QEMU crashed under every name."""
    qemu = bench.qemus[cell.qemu]
    missing = list(cell.probe.names)
    outcomes = []
    started_at, load = datetime.now(UTC), os.getloadavg()[0]

    def keep(reading: Reading) -> None:
        missing.remove((reading.test, reading.variant))
        outcomes.append(reading.outcome)
        results.append(
            Sample(
                test=reading.test,
                variant=reading.variant,
                length=cell.length,
                qemu=cell.qemu,
                lift=cell.lift,
                repeat=cell.repeat,
                started_at=started_at,
                outcome=reading.outcome,
                signal=reading.signal,
                detail=reading.detail,
                metrics=reading.metrics,
                load_1m=round(load, 2),
            )
        )

    try:
        with layers.copy(qemu, cell.length, cell.lift) as image:
            setup = Setup(
                plan=plan,
                qemu=qemu,
                accelerator=bench.chosen.name,
                kind=bench.kind,
                chain=chain,
                length=cell.length,
                lift=cell.lift,
                repeat=cell.repeat,
                image=image,
                scratch=image.parent,
                results=results.path,
                progress=progress,
            )
            for reading in cell.probe.measure(setup):
                keep(reading)
                if reading.outcome != "ok":
                    progress.note(f"{cell}: {reading.outcome}: {reading.detail}")
    except QemuCrashed as error:
        progress.note(f"{cell}: crashed: {error}")
        for test, variant in list(missing):
            keep(Reading(test, variant, outcome="crashed", signal=error.signal, detail=one_line(error.what)))
    except (OperationError, ImageError) as error:
        # A lift may refuse a chain that is too short for it; anything else is a failure of the study.
        if not (_worked_before(results, cell) or (isinstance(error, ImageError) and cell.lift != "none")):
            raise
        progress.note(f"{cell}: failed: {error}")
        for test, variant in list(missing):
            keep(Reading(test, variant, outcome="failed", detail=one_line(error.what)))
    return set(outcomes) == {"crashed"}


def _worked_before(results: ResultDirectory, cell: Cell) -> bool:
    """Whether the probe has worked in this study: then a failure is the length's, the QEMU's or the lift's."""
    return any(s.outcome == "ok" and (s.test, s.variant) in cell.probe.names for s in results.samples())


def _record(plan: Plan, bench: Bench, results: ResultDirectory, chain: ChainDirectory, scratch: Path) -> None:
    image = bench.kind.prepare() if bench.boots else None
    environment = describe_environment(
        plan,
        list(bench.qemus.values()),
        bench.chosen,
        None
        if image is None
        else GuestFacts(
            kind=plan.guest.kind,
            kernel=image.kernel_release,
            description=image.description,
            memory_bytes=plan.guest.memory,
            vcpus=plan.guest.vcpus,
        ),
        places_of(chain, max(plan.lengths), scratch),
    )
    if (results.path / ENVIRONMENT).exists():
        require_same_machine(results.environment(), environment, results.path)
    else:
        results.write_environment(environment)


def _all_lengths(plan: Plan, probes: Sequence[Probe]) -> list[int]:
    return sorted({n for probe in probes for n in probe.lengths(plan)})
