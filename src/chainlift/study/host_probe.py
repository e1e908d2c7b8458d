"""The test ``host``: the disk read through QEMU's block layer, without a guest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from chainlift.study.host_read import Pace, Pattern, host_read, patterns
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan


@dataclass(frozen=True)
class HostProbe:
    """One access pattern."""

    boots_guest: ClassVar[bool] = False

    pattern: Pattern
    pace: Pace = field(default_factory=Pace, compare=False)

    @property
    def title(self) -> str:
        """See :class:`~chainlift.study.probe.Probe`."""
        return f"host {self.pattern.variant}"

    @property
    def names(self) -> Sequence[tuple[Test, str]]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return [("host", self.pattern.variant)]

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        sequential = plan.host_read.sequential_lengths if "-seq-" in self.pattern.variant else ()
        return sequential or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan = setup.plan
        where = (setup.qemu.label, setup.lift, setup.length)
        found = host_read(
            setup.qemu,
            setup.image,
            self.pattern,
            cache=plan.cache,
            aio=plan.aio,
            budget_s=plan.host_read.budget_s,
            request_s=self.pace.foresee(*where),
        )
        if found.metrics is None:
            yield Reading("host", self.pattern.variant, outcome="crashed", signal=found.signal, detail=found.crash)
        else:
            self.pace.learn(*where, found.metrics)
            yield Reading("host", self.pattern.variant, found.metrics)


@register("host")
def host_probes(plan: Plan) -> Sequence[Probe]:
    """Return a probe for each pattern."""
    return [HostProbe(pattern) for pattern in patterns(plan)]
