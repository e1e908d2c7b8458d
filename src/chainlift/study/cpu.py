"""The CPU time of a process that still runs, from ``/proc``."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_times(pid: int) -> tuple[float, float]:
    """Return the user and system CPU time that a process with all its threads has taken, in seconds.

    :raise OSError: if it has ended.
    """
    # proc(5): after the name, which may hold anything, in parentheses; utime and stime are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return int(fields[11]) / ticks, int(fields[12]) / ticks
