"""Running a study: every probe at every length, with every QEMU and lift, as often as the plan says.

Repeats are interleaved, so that a slow hour of the machine falls on all cells alike. Every sample is on disk before the
next cell is measured; a study that continues skips what it has. What QEMU has crashed of once is not tried in
later repeats: it crashes again, and may take minutes to come to that.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from chainlift.cost.store import find_parameters, read_parameters, write_parameters
from chainlift.errors import PlanError
from chainlift.qemu.bench import require_terminal
from chainlift.results.model import GuestFacts, State
from chainlift.results.store import ENVIRONMENT, PARAMETERS, PLAN, ResultDirectory
from chainlift.study.active_layer import ActiveLayers, keep_cached, read_through, scratch_directory
from chainlift.study.build import Bench, built_chain
from chainlift.study.cells import Cell, cells_of
from chainlift.study.environment import describe_environment, extended_environment, places_of, require_same_machine
from chainlift.study.extend import extends
from chainlift.study.fingerprint import checksum_of_chain, checksums_of
from chainlift.study.host_aio import choose_host_aio
from chainlift.study.host_read import CACHED_MODES
from chainlift.study.measure_cell import Floor, measure_cell
from chainlift.study.pin import pinned, require_cpus
from chainlift.study.plan_file import parse_plan
from chainlift.study.plan_text import plan_text
from chainlift.study.probe import boots_guest
from chainlift.study.quiet import Watch
from chainlift.study.settings import settings_of
from chainlift.study.space import measuring_bytes, require_space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from chainlift.study.chain_store import ChainDirectory
    from chainlift.study.plan import Plan
    from chainlift.study.progress import Progress

#: Tests that hold QEMU by a pseudo-terminal.
_HELD_BY_A_TERMINAL = frozenset({"host", "limits", "profile"})
#: Outcomes that are results; what failed otherwise is tried again when the study continues.
_SETTLED = frozenset({"ok", "crashed", "timed out"})


def run_study(plan: Plan, out: Path, progress: Progress) -> ResultDirectory:
    """Run a study, or what is left of it.

    :param out: the result directory; made, or continued where it holds the same plan.
    :raise InputError: for anything that can be known before something is made: an unknown test, another plan's results,
        too little space, no QEMU, no pseudo-terminal for the tests that need one.
    """
    cells = cells_of(plan)
    require_cpus(plan.pin)
    benches = {setting: Bench.find(one) for setting, one in settings_of(plan).items()}
    if not _HELD_BY_A_TERMINAL.isdisjoint(plan.tests):
        require_terminal()
    # Settings may share a chain.
    built = {bench.chain.path: bench for bench in benches.values()}.values()
    needed = sum(bench.bytes_to_build() + measuring_bytes(bench.plan) for bench in built)
    require_space(next(iter(built)).chains, needed, f"the plan {plan.name}")
    text, before = _text_of(plan.model_copy(update={"chains": ""}), out)
    results = ResultDirectory.create(out, text, before=before)
    with results.lock():
        if results.plan_text() != text:
            results.write_plan(text)
        try:
            left = _left(results, cells)
            results.write_state(State(cells=len(cells), done=len(cells) - len(left)))
            if left:
                _measure(plan, benches, results, left, len(cells), progress)
        finally:
            results.write_state(State(cells=len(cells), done=len(cells) - len(_left(results, cells))))
            results.write_csv(results.samples())
    return results


def _left(results: ResultDirectory, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that are still to be measured; what has crashed once is not tried in later repeats."""
    samples = results.samples()
    done = {sample.name for sample in samples if sample.outcome in _SETTLED}
    crashed = {sample.name[:-1] for sample in samples if sample.outcome == "crashed"}
    return [cell for cell in cells if not done.issuperset(cell.sample_names) and not crashed.issuperset(cell.work)]


def _text_of(plan: Plan, out: Path) -> tuple[str, str | None]:
    """Return the plan's text, and that of the plan in the directory which it extends, if it does.

    Where the directory's means the same, lacking keys that came later, it stays.
    """
    try:
        text = (out / PLAN).read_text(encoding="utf-8")
        earlier = parse_plan(text)
    except (OSError, UnicodeDecodeError, PlanError):
        return plan_text(plan), None
    if earlier == plan:
        return text, None
    return plan_text(plan), text if extends(plan, earlier) else None


def _measure(
    plan: Plan,
    benches: Mapping[str, Bench],
    results: ResultDirectory,
    left: Sequence[Cell],
    total: int,
    progress: Progress,
) -> None:
    # Asked of all cells, so that the environment is the same when the study continues.
    boots = any(boots_guest(cell.probe) for cell in cells_of(plan))
    chosen = replace(next(iter(benches.values())), boots=boots).chosen
    benches = {setting: replace(bench, boots=boots, known=chosen) for setting, bench in benches.items()}
    with ExitStack() as stack:
        chains: dict[Path, ActiveLayers] = {}
        floors: dict[str, partial[Floor]] = {}
        for setting, bench in benches.items():
            chain, manifest = built_chain(bench.plan, bench, progress)
            files = [chain.layer(n) for n in range(max(cell.length for cell in left) + 1)]
            host_aio = {label: choose_host_aio(bench.plan, qemu, files) for label, qemu in bench.qemus.items()}
            if chain.path not in chains:
                stack.enter_context(chain.lock(exclusive=False))
                chain.check_unchanged(manifest)
                scratch = stack.enter_context(scratch_directory(bench.chains))
                if not chains:
                    _record(bench.plan, bench, results, chain, scratch, host_aio)
                    results.write_chain(manifest.shape)
                if bench.plan.cache in CACHED_MODES:
                    progress.stage("reading the chain into the page cache")
                    read_through(files)
                chains[chain.path] = ActiveLayers(chain, scratch)
                # When all is measured.
                stack.callback(chain.check_unchanged, manifest)
            floors[setting] = partial(
                Floor,
                plan=bench.plan,
                bench=bench,
                results=results,
                chain=chain,
                layers=chains[chain.path],
                host_aio={label: aio for label, (aio, _) in host_aio.items()},
                progress=progress,
            )
        stack.enter_context(pinned(plan.pin))
        # Of the CPUs that are left, hence now.
        watch = Watch(plan.quiet)
        crashed = {sample.name[:-1] for sample in results.samples() if sample.outcome == "crashed"}
        progress.stage("measuring", total)
        for number, cell in enumerate(left, start=total - len(left)):
            progress.step(number, str(cell))
            if crashed.issuperset(cell.work):
                continue
            floor = floors[cell.setting](watch=watch)
            # A host read sees itself what the page cache has lost.
            if floor.plan.cache in CACHED_MODES and boots_guest(cell.probe):
                keep_cached([floor.chain.layer(n) for n in range(cell.length + 1)])
            if measure_cell(floor, cell):
                crashed.update(cell.work)
            results.write_state(State(cells=total, done=number + 1))
            results.write_csv(results.samples())
        progress.step(total)


def _record(
    plan: Plan,
    bench: Bench,
    results: ResultDirectory,
    chain: ChainDirectory,
    scratch: Path,
    host_aio: Mapping[str, tuple[str, str]],
) -> None:
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
            sha256=checksums_of([image.kernel, image.initrd]),
        ),
        places_of(chain, max(plan.lengths), scratch),
        host_aio if plan.host_read.aio == "auto" and "host" in plan.tests else {},
    )
    if (results.path / ENVIRONMENT).exists():
        earlier = results.environment()
        require_same_machine(earlier, environment, results.path)
        if extended := extended_environment(earlier, environment):
            results.write_environment(extended)
    else:
        files = [chain.layer(n) for n in range(max(plan.lengths) + 1)]
        results.write_environment(environment.model_copy(update={"chain_sha256": checksum_of_chain(files)}))
    if "host" in plan.tests:
        # What is foreseen stands beside what is measured: by what is known now, whenever it is drawn.
        path = results.path / PARAMETERS
        kept = read_parameters(path)
        new = {label: qemu for label, qemu in bench.qemus.items() if label not in kept}
        write_parameters(path, {**{label: find_parameters(qemu.version_text) for label, qemu in new.items()}, **kept})
