"""The CPU time of a process that still runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: The clock that counts what a process has run, in nanoseconds (``CPUCLOCK_SCHED``, include/linux/posix-timers.h).
_CPUCLOCK_SCHED = 2


def cpu_times(pid: int) -> tuple[float, float]:
    """Return the user and system CPU time that a process with all its threads has taken, in seconds.

    Their sum is exact; which is which, to a hundredth of a second.

    :raise OSError: if it has ended.
    """
    # proc(5): after the name, which may hold anything, in parentheses; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    system = int(fields[12]) / os.sysconf("SC_CLK_TCK")
    # A process's CPU clock by its pid, as clock_getcpuclockid(3) makes it.
    both = time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    system = min(system, both)
    return both - system, system
