"""What a study measures, cell by cell, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from chainlift.study.lifts import check_lifts, makes_sense
from chainlift.study.probe import Probe, lifts_itself, probes_of, repeats_of
from chainlift.study.settings import settings_of

if TYPE_CHECKING:
    from chainlift.results.model import Lift
    from chainlift.study.plan import Plan


@dataclass(frozen=True)
class Cell:
    """One run of a probe."""

    repeat: int
    length: int
    qemu: str
    lift: Lift
    probe: Probe
    #: As :attr:`chainlift.results.model.Sample.setting` has it.
    setting: str = ""

    @property
    def sample_names(self) -> list[tuple[str, str, str, str, str, int, int]]:
        """The names of the samples that it gives, as :attr:`chainlift.results.model.Sample.name` has them."""
        return [(*name, self.repeat) for name in self.work]

    @property
    def work(self) -> list[tuple[str, str, str, str, str, int]]:
        """What is measured, whichever repeat this is."""
        return [(test, variant, self.qemu, self.lift, self.setting, self.length) for test, variant in self.probe.names]

    def __str__(self) -> str:
        parts = [f"{self.probe.title} at length {self.length}"]
        parts += [f"QEMU {self.qemu}"] if self.qemu != "host" else []
        parts += [self.lift] if self.lift != "none" else []
        parts += [self.setting] if self.setting else []
        return ", ".join(parts)


def cells_of(plan: Plan) -> list[Cell]:
    """Return every run of a study in the order in which they are made.

    A repeat has every cell once, in an order of its own that follows from the plan's seed: neither a drift of the
    machine nor what one cell leaves to the next looks like growth with the length.

    :raise PlanError: if a test or a lift is not there, or a setting does not hold.
    """
    check_lifts(plan)
    settings = settings_of(plan)
    probes = {setting: probes_of(one) for setting, one in settings.items()}
    found = []
    lifted_at = plan.lift_lengths or plan.lengths
    for repeat in range(max(repeats_of(p, settings[s]) for s, some in probes.items() for p in some)):
        cells = [
            Cell(repeat, length, qemu, lift, probe, setting)
            for setting, one in settings.items()
            for probe in probes[setting]
            if repeat < repeats_of(probe, one)
            for length in sorted(probe.lengths(one))
            for qemu in plan.qemu
            for lift in plan.lift
            if lift == "none" or (length in lifted_at and makes_sense(lift, length) and not lifts_itself(probe))
        ]
        Random(f"{plan.seed} {repeat}").shuffle(cells)
        found += cells
    return found
