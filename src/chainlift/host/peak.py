"""How much memory this process has had at most."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PEAK: Final = re.compile(r"^VmHWM:\s*(\d+) kB$", re.MULTILINE)


def peak_rss_bytes() -> int:
    """Return the largest resident set of this process since it runs this program (proc(5), ``VmHWM``).

    ``getrusage()`` is of no use for it: its figure includes what had forked us (Linux, ``exec_mmap()`` in fs/exec.c).
    """
    found = _PEAK.search(Path("/proc/self/status").read_text())
    return int(found[1]) << 10 if found is not None else 0  # a kernel of Linux always says it
