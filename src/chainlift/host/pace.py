"""How fast a processor is from moment to moment: short work takes nearly twice as long beside a busy sibling thread.

Neither the load nor stolen time says so, for the other thread may be another virtual machine's. Such moments last from
a millisecond to minutes. Who measures CPU time must know in which it was taken.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Steps of the work, and how often it is done for a look: the fastest counts, for the first finds cold caches.
_STEPS, _TIMES = 8_000, 3
#: For how long the fastest moment is looked for first, on each processor.
_LEARN_S = 0.3
#: From one look to the next: a part of what has passed, for a look takes a millisecond of the processor.
_BETWEEN_S, _MOST_BETWEEN_S = 0.005, 0.03


@dataclass
class Watched:
    """How slow a processor was, while it was watched."""

    #: Each look's time beside the fastest that was ever seen.
    looks: list[float] = field(default_factory=list)

    @property
    def slowdown(self) -> float | None:
        """How many times as long as at its fastest the processor took for the same work, on average; None: not seen."""
        return fmean(self.looks) if self.looks else None


class Pace:
    """Watches how fast a processor is while this thread, and what it starts, keeps to it."""

    def __init__(self) -> None:
        self._cpu = max(os.sched_getaffinity(0))
        self._least_s = float("inf")
        end = time.monotonic() + _LEARN_S
        while time.monotonic() < end:
            self._look()

    @contextmanager
    def watching(self) -> Iterator[Watched]:
        """Keep this thread and the processes that it starts on one processor, and look now and then how fast that is.

        The processes stay there afterwards, this thread does not.
        """
        ended, watched = threading.Event(), Watched()

        def watch() -> None:
            while not ended.wait(min(_MOST_BETWEEN_S, _BETWEEN_S * len(watched.looks))):
                watched.looks.append(self._look())

        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self._cpu})
        watched.looks.append(self._look())
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield watched
        finally:
            ended.set()
            watcher.join()
            watched.looks.append(self._look())
            os.sched_setaffinity(0, before)

    def _look(self) -> float:
        took = _work_s(self._cpu)
        self._least_s = min(self._least_s, took)
        return took / self._least_s


def _work_s(cpu: int) -> float:
    """Return the CPU seconds that the work takes at least on a processor, by a thread of ours that goes there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        return min(_once_s() for _ in range(_TIMES))
    finally:
        os.sched_setaffinity(0, before)


def _once_s() -> float:
    began, total = time.thread_time(), 0
    for step in range(_STEPS):
        total += step * step
    return time.thread_time() - began
