"""The test ``boot``: how long a guest takes from QEMU's start until it answers.

A guest whose system lies on the disk (``debian``, your own image) reads it while it boots, through the chain. The micro
guest brings its system along: of it the time is that of opening the chain, and a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.host.cpu import cpu_times
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan


@dataclass(frozen=True)
class BootTimeProbe:
    """Boot, and see how long that took."""

    title = "boot"
    names: Sequence[tuple[Test, str]] = (("boot", ""),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.guest_lengths or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        with setup.boot() as guest:
            wall_s = guest.vm.age_s
            user, system = cpu_times(guest.vm.process.pid)
            metrics = {"wall_s": wall_s, "open_s": guest.vm.open_s, "cpu_user_s": user, "cpu_sys_s": system}
            yield Reading("boot", "", metrics)
            guest.halt()


@register("boot")
def boot_probes(plan: Plan) -> Sequence[Probe]:  # noqa: ARG001 - every test's function takes the plan
    """Return the probe of the boot test."""
    return [BootTimeProbe()]
