"""How much memory a QEMU needs for itself, the guest's RAM left out.

The kernel keeps the peak of a process's whole resident set (``ru_maxrss``, ``VmHWM``), but none of its parts. So the
parts are sampled while QEMU runs: guest RAM is a memfd, which the kernel counts as ``RssShmem`` and nothing else of
QEMU's is, hence QEMU's own memory is ``RssAnon + RssFile`` (proc(5), /proc/PID/status). The figure is the highest
sample. What is measured here, the L2 caches of a chain's layers, only grows while QEMU works, so that what a sampling
interval can miss is what QEMU allocates in its last 50 ms.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

#: How often the resident set is looked at; one look takes some 50 µs.
INTERVAL_S = 0.05


@dataclass(frozen=True)
class ResidentSet:
    """A process's resident memory at one moment."""

    #: Heap, stacks (each coroutine's), translated code.
    anonymous_bytes: int
    #: The program and its libraries.
    file_bytes: int
    #: The guest's RAM, as far as the guest has touched it.
    shared_bytes: int

    @property
    def own_bytes(self) -> int:
        """QEMU's memory without the guest's."""
        return self.anonymous_bytes + self.file_bytes


def read_resident_set(pid: int) -> ResidentSet | None:
    """Read a process's resident memory; None if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = {
        name: int(value.split()[0]) * 1024
        for name, _, value in (line.partition(":") for line in text.splitlines())
        if name.startswith("Rss")
    }
    if not fields:  # a zombie has no memory
        return None
    return ResidentSet(fields["RssAnon"], fields["RssFile"], fields["RssShmem"])


class MemoryWatch:
    """Samples a process's own memory from its start until it ends or :meth:`stop`."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        #: The highest :attr:`ResidentSet.own_bytes` so far.
        self.peak_own_bytes = 0
        self._thread = threading.Thread(target=self._watch, name=f"memory of {pid}", daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop sampling and return the peak."""
        self._stop.set()
        self._thread.join()
        return self.peak_own_bytes

    def _watch(self) -> None:
        while (now := read_resident_set(self._pid)) is not None:
            self.peak_own_bytes = max(self.peak_own_bytes, now.own_bytes)
            if self._stop.wait(INTERVAL_S):
                return
