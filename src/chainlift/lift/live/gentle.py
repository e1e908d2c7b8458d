"""How not to be in the way of a running VM: few extents, and everybody else first."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

#: From here on every change of the graph polls all nodes there are (``bdrv_drain_all_begin()`` in block.c).
_POLLS_ALL: Final = (10, 1, 0)
#: So many extents of an index keep QEMU's main loop for less than 0.1 s when they are added or closed, from this
#: version on: one costs 0.2 ms on 7.2, 0.4 ms on 10.0.
_EXTENTS: Final = (((9, 0, 0), 192), ((0, 0, 0), 384))
#: Where all nodes are polled, what counts is extents times layers: this many take 0.2 s.
_PAIRS: Final = 10_000
_FEWEST_EXTENTS: Final = 8


def gentle_extents(version: tuple[int, int, int], layers: int) -> int:
    """Return how many extents an index may have so that a running QEMU hardly stops for it.

    :param version: of the QEMU.
    :param layers: in its chain.
    """
    if version >= _POLLS_ALL:
        return max(_FEWEST_EXTENTS, _PAIRS // max(layers, 1))
    return next(most for first, most in _EXTENTS if version >= first)


def be_gentle() -> None:
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
