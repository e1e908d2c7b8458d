"""The test ``limits``: the longest chain that a QEMU opens, and the longest that it reads, by bisection.

It works on the whole chain once, not at each length: its samples stand under the length of the chain that was tried.
"""

from __future__ import annotations

import signal
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from chainlift.errors import PlanError
from chainlift.qemu.limits import Attempt, attempt_length, bisect, crash_place, describe_attempt, describe_limit
from chainlift.results.model import LimitAttempt
from chainlift.results.store import ResultDirectory
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan


class LimitsProbe:
    """Bisects; both limits come from the same attempts."""

    boots_guest: ClassVar[bool] = False
    #: It opens the layers of the chain itself, which no lift has touched.
    lifts_itself: ClassVar[bool] = True
    #: What it has tried stays tried.
    is_repeatable: ClassVar[bool] = False

    title = "limits"
    names: Sequence[tuple[Test, str]] = (("limits", "read"), ("limits", "open"))

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return (plan.chain.length,)

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan, size = setup.plan, setup.plan.chain.size
        results = ResultDirectory(setup.results)
        # Those of a study that was interrupted count.
        attempts = {
            found.length: Attempt(found.length, found.open_s, found.file_descriptors, found.signal)
            for found in results.attempts()
            if (found.qemu, found.repeat) == (setup.qemu.label, setup.repeat)
        }

        def attempt(length: int) -> Attempt:
            started_at = datetime.now(UTC)
            image = setup.chain.layer(length)
            found = attempt_length(setup.qemu, image, length, size, open_timeout_s=plan.limits.attempt_s)
            attempts[length] = found
            results.append_attempt(
                LimitAttempt(qemu=setup.qemu.label, repeat=setup.repeat, started_at=started_at, **asdict(found))
            )
            setup.progress.note(f"limits: QEMU {setup.qemu.label}: {describe_attempt(found)}")
            return found

        # Reading first: what it tries is short of what takes minutes to open.
        for what in ("read", "open"):
            limit = bisect(
                attempt,
                _reads if what == "read" else _opens,
                setup.length,
                known=attempts.values(),
                within=plan.limits.within,
                longest_first=what == "open",
            )
            metrics: dict[str, float] = {"longest": float(limit.longest.length if limit.longest else 0)}
            failure = limit.shortest_failure
            if limit.longest and limit.longest.open_s is not None:
                metrics |= {"open_s": limit.longest.open_s}
                if limit.longest.file_descriptors is not None:
                    metrics |= {"file_descriptors": float(limit.longest.file_descriptors)}
            place = None
            if failure and failure.signal and failure.signal != signal.SIGALRM:
                metrics["signal"] = float(failure.signal)
                # At the limit itself a few bytes of stack decide; a little further it dies for certain.
                further = min(setup.length, failure.length + failure.length // 20)
                place = crash_place(setup.qemu, setup.chain.layer(further), size)
            detail = describe_limit(replace(limit, place=place), what)
            yield Reading("limits", what, metrics, detail=detail)


def _reads(attempt: Attempt) -> bool:
    return attempt.reads


def _opens(attempt: Attempt) -> bool:
    return attempt.opens


@register("limits")
def limits_probes(plan: Plan) -> Sequence[Probe]:
    """Return the probe of the limits test.

    :raise PlanError: if the plan measures lifted disks alone: the limits are those of the chain itself.
    """
    if "none" not in plan.lift:
        raise PlanError('tests: "limits" is of the chain itself; add "none" to lift, or leave the test out')
    return [LimitsProbe()]
