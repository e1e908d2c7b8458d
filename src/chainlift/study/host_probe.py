"""The test ``host``: the disk read through QEMU's block layer, without a guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chainlift.study.host_read import Pattern, host_read, patterns
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
        return plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan = setup.plan
        found = host_read(
            setup.qemu,
            setup.image,
            self.pattern,
            cache=plan.cache,
            aio=plan.aio,
            budget_s=plan.host_read.budget_s,
        )
        if found.metrics is None:
            yield Reading("host", self.pattern.variant, outcome="crashed", signal=found.signal, detail=found.crash)
        else:
            yield Reading("host", self.pattern.variant, found.metrics)


@register("host")
def host_probes(plan: Plan) -> Sequence[Probe]:
    """Return a probe for each pattern."""
    return [HostProbe(pattern) for pattern in patterns(plan)]
