"""Whether the machine is quiet: what others take of its CPUs, and how fast a CPU is just now.

A study waits for a quiet machine and measures again what was disturbed, both within the plan's ``quiet.limit_s``, and
every sample says what else ran meanwhile.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.results.model import Conditions

if TYPE_CHECKING:
    from chainlift.study.plan_tables import QuietPlan
    from chainlift.study.progress import Progress

#: How long it is looked whether others work.
_LOOK_S = 0.2
#: Rounds of the calibration loop: some milliseconds.
_ROUNDS = 50_000
_CALIBRATIONS = 3
#: A cell is measured at most so often.
_MOST_RUNS = 3
#: Steal from here on is told, as a share of the CPUs' time.
_STEAL = 0.02


@dataclass(frozen=True)
class _Moment:
    """CPU time so far, in seconds: of all CPUs that we may use, and of this study."""

    at: float
    busy_s: float
    steal_s: float
    own_s: float


class Watch:
    """Watches the machine while a study measures.

    :param plan: what counts as quiet, and how long may be spent on it.
    """

    def __init__(self, plan: QuietPlan) -> None:
        self._plan = plan
        self._left_s = plan.limit_s
        self._cpus = os.sched_getaffinity(0)
        #: What the calibration loop took at its fastest.
        self._fastest_s = min(_loop() for _ in range(2 * _CALIBRATIONS))
        self._began: _Moment | None = None
        self._slowdown = 1.0
        self._waited_s = 0.0
        #: Whether it is worth a look: a cell that was not disturbed has shown that the machine is quiet.
        self._is_suspect = True

    def wait(self, progress: Progress) -> None:
        """Wait until the machine is quiet, as long as the plan allows."""
        self._waited_s = 0.0
        if not self._is_suspect:
            return
        began = time.monotonic()
        told = False
        while (left := self._left_s - (time.monotonic() - began)) > 0:
            before = self._now()
            time.sleep(min(_LOOK_S, left))
            if self._others(before, self._now()) <= self._plan.others_share and self._measure_slowdown() <= (
                self._plan.slowdown
            ):
                break
            if not told:
                progress.note(f"waiting for a quiet machine, {left:.0f} s at most")
                told = True
        if told:
            self._waited_s = time.monotonic() - began
        self._left_s = max(0.0, self._left_s - self._waited_s)

    def begin(self) -> None:
        """Begin to watch a run of a cell; the study's own programs of the run before have ended."""
        self._slowdown = self._measure_slowdown()
        self._began = self._now()

    def end(self) -> Conditions:
        """Return what else happened since :meth:`begin`; the study's own programs have ended again."""
        assert self._began is not None
        before, after = self._began, self._now()
        slowdown = max(self._slowdown, self._measure_slowdown())
        others, steal = self._others(before, after), self._share(after.steal_s - before.steal_s, before, after)
        self._is_suspect = others > self._plan.others_share or steal > _STEAL or slowdown > self._plan.slowdown
        return Conditions(
            others_share=round(others, 4),
            steal_share=round(steal, 4),
            slowdown=round(slowdown, 3),
            is_disturbed=self._is_suspect,
            waited_s=round(self._waited_s, 2),
        )

    def again(self, conditions: Conditions, took_s: float, runs: int) -> bool:
        """Whether a cell is measured once more; what it takes is then taken off what may be spent.

        :param took_s: what its last run took.
        :param runs: how often it was measured.
        """
        if not conditions.is_disturbed or runs >= _MOST_RUNS or took_s > self._left_s:
            return False
        self._left_s -= took_s
        return True

    def _now(self) -> _Moment:
        tick = os.sysconf("SC_CLK_TCK")
        busy = steal = 0.0
        for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
            name, *fields = line.split()
            if not (name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._cpus):
                continue
            # proc(5): user, nice, system, idle, iowait, irq, softirq, steal; a guest's time is in user and nice.
            ticks = [int(field) for field in fields[:8]] + [0] * (8 - len(fields))
            busy += (sum(ticks) - ticks[3] - ticks[4]) / tick
            steal += ticks[7] / tick
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return _Moment(time.monotonic(), busy, steal, sum(u.ru_utime + u.ru_stime for u in usage))

    def _others(self, before: _Moment, after: _Moment) -> float:
        return self._share(after.busy_s - before.busy_s - (after.own_s - before.own_s), before, after)

    def _share(self, cpu_s: float, before: _Moment, after: _Moment) -> float:
        span = (after.at - before.at) * len(self._cpus)
        return min(1.0, max(0.0, cpu_s / span)) if span > 0 else 0.0

    def _measure_slowdown(self) -> float:
        took = min(_loop() for _ in range(_CALIBRATIONS))
        self._fastest_s = min(self._fastest_s, took)
        return took / self._fastest_s


def least_disturbed(runs: list[Conditions]) -> int:
    """Return which of a cell's runs counts: the first quiet one, else that in which others took the least."""
    return min(range(len(runs)), key=lambda n: (runs[n].is_disturbed, runs[n].others_share + runs[n].steal_share))


def _loop() -> float:
    """Return the CPU time of a fixed piece of work: a CPU that is clocked down, or shared by two, takes longer."""
    began = time.thread_time()
    value = 0
    for number in range(_ROUNDS):
        value += number * number
    return time.thread_time() - began
