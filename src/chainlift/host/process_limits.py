"""Limits of our own process, changed in this place and nowhere else.

A chain may have more layers than a process may have open files by default (a soft limit of 1,024). Whoever needs them
all at once says so for as long as it lasts. The limit is not left raised, as every program that we start inherits it.
(:mod:`chainlift.host.supervisor`, a process of its own, raises that of the program it starts.)
"""

from __future__ import annotations

import resource
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_lock = threading.Lock()
_users = 0
_usual = 0


def open_files() -> int | None:
    """Return how many files this process may usually have open; None for any number.

    Usually: inside of :func:`many_open_files` it is what the limit was before.
    """
    with _lock:
        soft = _usual if _users else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


@contextmanager
def many_open_files() -> Iterator[None]:
    """Let this process have as many open files as the hard limit allows, until the last block of these has ended."""
    global _users, _usual  # noqa: PLW0603 - a limit of the process is global
    with _lock:
        if not _users:
            _usual, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
                resource.setrlimit(resource.RLIMIT_NOFILE, (_usual, hard))
