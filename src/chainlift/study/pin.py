"""Measuring on some of the host's CPUs alone."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chainlift.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def require_cpus(cpus: Sequence[int]) -> None:
    """See that this process may use these CPUs.

    :raise InputError: naming one that it may not use.
    """
    usable = os.sched_getaffinity(0)
    if lacking := set(cpus) - usable:
        raise InputError(f"pin: there is no CPU {min(lacking)} to use here; there are {sorted(usable)}")


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Let this thread, and the programs that it starts, run on these CPUs alone; none: on all that it may use."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cpus) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
