"""One cell of a study: measured, again where it was disturbed, and kept."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.errors import ImageError, OperationError, QemuCrashed, one_line
from chainlift.results.model import Sample
from chainlift.study.probe import Reading, Setup, is_repeatable
from chainlift.study.quiet import Watch, least_disturbed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chainlift.results.model import Conditions
    from chainlift.results.store import ResultDirectory
    from chainlift.study.active_layer import ActiveLayers
    from chainlift.study.build import Bench
    from chainlift.study.cells import Cell
    from chainlift.study.chain_store import ChainDirectory
    from chainlift.study.plan import Plan
    from chainlift.study.progress import Progress


@dataclass(frozen=True)
class Floor:
    """What the cells of a setting are measured on."""

    plan: Plan
    bench: Bench
    results: ResultDirectory
    chain: ChainDirectory
    layers: ActiveLayers
    #: QEMU -> how its host reads read files.
    host_aio: Mapping[str, str]
    watch: Watch
    progress: Progress


@dataclass
class _Run:
    """One run of a cell."""

    conditions: Conditions
    load_1m: float
    started_at: datetime
    took_s: float
    readings: list[Reading] = field(default_factory=list)

    @property
    def went_well(self) -> bool:
        return all(reading.outcome == "ok" for reading in self.readings)


def measure_cell(floor: Floor, cell: Cell) -> bool:
    """Measure one cell and keep its samples; return whether QEMU crashed under every name.

    :raise ChainliftError: if it fails for a reason that is the study's, not the length's, the QEMU's or the lift's.
    """
    runs = [_run(floor, cell)]
    while (
        runs[-1].went_well
        and is_repeatable(cell.probe)
        and floor.watch.again(runs[-1].conditions, runs[-1].took_s, len(runs))
    ):
        runs.append(_run(floor, cell))
    well = [run for run in runs if run.went_well] or runs
    kept = well[least_disturbed([run.conditions for run in well])]
    conditions = kept.conditions.model_copy(update={"runs": len(runs)})
    for reading in kept.readings:
        if reading.outcome != "ok":
            floor.progress.note(f"{cell}: {reading.outcome}: {reading.detail}")
        floor.results.append(
            Sample(
                test=reading.test,
                variant=reading.variant,
                length=cell.length,
                qemu=cell.qemu,
                lift=cell.lift,
                setting=cell.setting,
                repeat=cell.repeat,
                started_at=kept.started_at,
                outcome=reading.outcome,
                signal=reading.signal,
                detail=reading.detail,
                metrics=reading.metrics,
                load_1m=kept.load_1m,
                conditions=conditions,
                chainlift=__version__,
            )
        )
    return {reading.outcome for reading in kept.readings} == {"crashed"}


def _run(floor: Floor, cell: Cell) -> _Run:
    floor.watch.wait(floor.progress)
    started_at, load, began = datetime.now(UTC), os.getloadavg()[0], time.monotonic()
    floor.watch.begin()
    readings = _readings(floor, cell)
    return _Run(floor.watch.end(), round(load, 2), started_at, time.monotonic() - began, readings)


def _readings(floor: Floor, cell: Cell) -> list[Reading]:
    qemu = floor.bench.qemus[cell.qemu]
    found: list[Reading] = []

    def rest(outcome: Reading) -> list[Reading]:
        """Return a reading under each name that there is none for yet."""
        given = {(reading.test, reading.variant) for reading in found}
        return [
            Reading(test, variant, outcome=outcome.outcome, signal=outcome.signal, detail=outcome.detail)
            for test, variant in cell.probe.names
            if (test, variant) not in given
        ]

    try:
        with floor.layers.copy(qemu, cell.length, cell.lift) as image:
            setup = Setup(
                plan=floor.plan,
                qemu=qemu,
                accelerator=floor.bench.chosen.name,
                kind=floor.bench.kind,
                chain=floor.chain,
                length=cell.length,
                lift=cell.lift,
                repeat=cell.repeat,
                image=image,
                scratch=image.parent,
                results=floor.results.path,
                progress=floor.progress,
                host_aio=floor.host_aio[cell.qemu],
                setting=cell.setting,
            )
            found.extend(cell.probe.measure(setup))
    except QemuCrashed as error:
        test, variant = cell.probe.names[0]
        found += rest(Reading(test, variant, outcome="crashed", signal=error.signal, detail=one_line(error.what)))
    except (OperationError, ImageError) as error:
        # A lift may refuse a chain that is too short for it; anything else is a failure of the study.
        if not (_worked_before(floor.results, cell) or (isinstance(error, ImageError) and cell.lift != "none")):
            raise
        test, variant = cell.probe.names[0]
        found += rest(Reading(test, variant, outcome="failed", detail=one_line(error.what)))
    return found


def _worked_before(results: ResultDirectory, cell: Cell) -> bool:
    """Whether the probe has worked in this study: then a failure is the length's, the QEMU's or the lift's."""
    return any(s.outcome == "ok" and (s.test, s.variant) in cell.probe.names for s in results.samples())
