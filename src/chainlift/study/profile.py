"""The test ``profile``: where QEMU's time goes, in runs of its own, never the timed ones.

What is recorded is the measured part alone: not the boot, not the first reading that fills QEMU's tables, not the
opening of the chain. The stacks go to ``profiles/`` of the result directory; the samples hold their shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

from chainlift.errors import MissingToolError
from chainlift.profiling.perf import PerfRecorder, read_samples
from chainlift.profiling.stacks import profile_name, save_stacks
from chainlift.qemu.profile import Profile, name_samples, profile_workload, require_profiling
from chainlift.results.store import PROFILES
from chainlift.study.guest_probes import read_disk, stream_all
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.qemu.profile import Workload
    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

#: A whole ``dd`` or stream is long: fewer samples a second than of a few seconds of host reads.
_GUEST_FREQUENCY_HZ = 49
#: The variants without a guest, as results name them -> the workload.
_HOST: dict[str, str] = {
    "host-4k": "read-4k",
    "host-64k": "read-64k",
    "host-4m": "read-4m",
    "host-stream": "stream",
}


@dataclass(frozen=True)
class ProfileProbe:
    """Profiles one kind of work.

    :ivar variant: ``read`` and ``stream`` in a guest, or one of :data:`_HOST`.
    """

    variant: str

    @property
    def title(self) -> str:
        """See :class:`~chainlift.study.probe.Probe`."""
        return f"profile {self.variant}"

    @property
    def boots_guest(self) -> bool:
        """Whether what is profiled is a guest's work."""
        return self.variant in ("read", "stream")

    #: It writes more than figures, and shares of samples suffer little from what else runs.
    is_repeatable: ClassVar[bool] = False

    @property
    def names(self) -> Sequence[tuple[Test, str]]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return [("profile", self.variant)]

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.profile.lengths or plan.lengths

    def repeats(self, plan: Plan) -> int:
        """See :func:`~chainlift.study.probe.repeats_of`."""
        return min(plan.repeats, plan.profile.repeats)

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        try:
            require_profiling(setup.qemu)
            profile = self._profile(setup)
        except MissingToolError as error:
            # A study is worth having without profiles.
            yield Reading("profile", self.variant, outcome="failed", detail=str(error))
            return
        name = profile_name(self.variant, setup.qemu.label, setup.length, setup.lift, setup.repeat)
        save_stacks(setup.results / PROFILES, name, profile.stacks)
        if setup.repeat == 0 and setup.length == min(self.lengths(setup.plan)):
            for hint in profile.hints:
                setup.progress.note(hint)
        yield Reading("profile", self.variant, profile.metrics())

    def _profile(self, setup: Setup) -> Profile:
        plan = setup.plan
        if self.variant in _HOST:
            return profile_workload(
                setup.qemu,
                setup.image,
                cast("Workload", _HOST[self.variant]),
                scratch=setup.scratch,
                seconds=plan.profile.seconds,
                cache=plan.cache,
                aio=plan.aio,
            )
        data = setup.scratch / "perf.data"
        with setup.boot() as guest:
            if self.variant == "read":
                read_disk(guest, plan.chain.size)
                guest.run("echo 3 > /proc/sys/vm/drop_caches").require()
            with PerfRecorder(guest.vm.process.pid, data, frequency_hz=_GUEST_FREQUENCY_HZ) as perf:
                perf.begin()
                if self.variant == "read":
                    read_disk(guest, plan.chain.size)
                else:
                    stream_all(guest.vm.monitor)
                perf.end()
            guest.halt()
        try:
            return name_samples(read_samples(data))
        finally:
            data.unlink()


@register("profile")
def profile_probes(plan: Plan) -> Sequence[Probe]:
    """Return a probe for each kind of work that the plan profiles."""
    return [ProfileProbe(variant) for variant in plan.profile.work]
