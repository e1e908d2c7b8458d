"""The test ``host``: the disk read through QEMU's block layer, without a guest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from chainlift.study.host_more import more_probes
from chainlift.study.host_read import CACHED_MODES, HostRead, Pace, Pattern, host_read, patterns
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan


#: Reads that were to come from the page cache and did not are made again, up to so many times in all.
_MOST_RUNS = 3


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

    def repeats(self, plan: Plan) -> int:
        """See :func:`~chainlift.study.probe.repeats_of`."""
        host = plan.host_read
        is_first = not self.pattern.is_sequential and self.pattern.depth == min(host.depths)
        return max(plan.repeats, host.repeats if is_first else host.other_repeats)

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan = setup.plan
        where = (setup.qemu.label, setup.lift)
        runs: list[HostRead] = []
        while len(runs) < _MOST_RUNS:
            found = host_read(
                setup.qemu,
                setup.readable,
                self.pattern,
                cache=plan.cache,
                aio=setup.host_aio or plan.aio,
                budget_s=plan.host_read.budget_s,
                request_s=self.pace.foresee(where, setup.length),
                settled=self.pace.settled(where, setup.length),
            )
            if found.metrics is None:
                yield Reading("host", self.pattern.variant, outcome="crashed", signal=found.signal, detail=found.crash)
                return
            if found.settled is not None:
                self.pace.learn(where, setup.length, found.settled)
            runs.append(found)
            # The page cache had lost some of them, and has them again now.
            if plan.cache not in CACHED_MODES or not found.metrics.get("storage_bytes"):
                break
        best = min(runs, key=lambda run: (run.metrics or {}).get("storage_bytes", 0.0))
        yield Reading("host", self.pattern.variant, own_metrics(best.metrics or {}, plan))


def own_metrics(metrics: dict[str, float], plan: Plan) -> dict[str, float]:
    """Leave out what is not the chain's: with caches that are named layer by layer, opening and its memory."""
    return {
        name: value
        for name, value in metrics.items()
        if not plan.l2_cache_size or not (name.startswith("open_") or name.endswith("rss_bytes"))
    }


@register("host")
def host_probes(plan: Plan) -> Sequence[Probe]:
    """Return a probe for each pattern, and what else the plan asks for."""
    return [*(HostProbe(pattern) for pattern in patterns(plan)), *more_probes(plan)]
