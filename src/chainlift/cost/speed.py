"""How fast this host is, beside the one on which the shipped parameters were measured: a measure of a second.

bzip2 is integer work with branches and dependent loads from a few megabytes, as a walk over QEMU's nodes is, and every
Python has the same library for it.
"""

from __future__ import annotations

import bz2
import platform
import time
from contextlib import suppress
from pathlib import Path

from chainlift.host.cache import cache_dir
from chainlift.host.durable import write_atomically

#: What :func:`measure_s` found on the host of the shipped parameters (see ``shipped.json``).
REFERENCE_S = 0.0180
_BYTES = 300_000
_BUDGET_S = 1.0
#: A larger factor is no host's, but a file's that somebody else has written.
_MOST = 1000.0


def host_factor(*, may_measure: bool = True) -> float:
    """Return how many times as long as on the reference host the same work takes here.

    What was measured once is kept, as long as the host has the same processor.

    :param may_measure: without it, 1 where it was not measured yet.
    """
    path, processor = cache_dir("cost") / "host.txt", _processor()
    with suppress(OSError, ValueError):
        kept, _, value = path.read_text(encoding="utf-8").rpartition("\n")
        if kept == processor and 0 < float(value) < _MOST:
            return float(value)
    if not may_measure:
        return 1.0
    factor = measure_s() / REFERENCE_S
    with suppress(OSError):
        write_atomically(path, f"{processor}\n{factor!r}")
    return factor


def _processor() -> str:
    """Return what tells this processor from others, in a line."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line
    return platform.machine()


def measure_s() -> float:
    """Return the CPU seconds of the measure's work: the shortest of as many as a second holds."""
    data = _noise(_BYTES)
    best = float("inf")
    end = time.process_time() + _BUDGET_S
    while time.process_time() < end:
        began = time.process_time()
        bz2.compress(data, 9)
        best = min(best, time.process_time() - began)
    return best


def _noise(count: int) -> bytes:
    """Make bytes of a small alphabet by a linear congruence, the same on every host."""
    state, found = 1, bytearray()
    for _ in range(count):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        found.append(97 + (state >> 16) % 20)
    return bytes(found)
