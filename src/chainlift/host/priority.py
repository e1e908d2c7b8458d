"""How not to be in the way of others on this host."""

from __future__ import annotations

import os
from contextlib import suppress


def lower_priority() -> None:
    """Let others go first, on the processor and on the disk: what we build beside a VM is in no hurry."""
    with suppress(OSError):
        os.nice(10)
    with suppress(OSError, AttributeError):
        _idle_io()


def _idle_io() -> None:
    import ctypes
    import platform

    number = {"x86_64": 251, "aarch64": 30}[platform.machine()]  # ioprio_set(2), which glibc does not wrap
    ioprio_who_process, ioprio_class_idle = 1, 3 << 13
    ctypes.CDLL(None, use_errno=True).syscall(number, ioprio_who_process, 0, ioprio_class_idle)
