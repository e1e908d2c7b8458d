"""Temporary directories that do not outlive us for long: what a killed process has left, the next one removes.

A process holds a lock on each of its directories as long as it lives, and the kernel lets go of it however that ends.
So who gets the lock knows that nobody needs the directory, also where several containers share ``/tmp`` and a process's
number says nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.host import interrupts

if TYPE_CHECKING:
    from types import TracebackType

#: No other name is ever removed.
_PREFIX: Final = "chainlift_"
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Temporary directories that were looked at; once for a process.
_seen: set[str] = set()


class ScratchDirectory:
    """A directory in the system's temporary directory, for us alone; a context manager that gives its path.

    Its path is short: the address of a UNIX socket has at most 107 bytes.
    """

    def __init__(self) -> None:
        with interrupts.put_off():
            remove_left()
            while (held := _make()) is None:
                pass
        self.path, self._lock = held

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove it. Safe to call twice, and where a program's supervisor has removed it."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_left(*, again: bool = False) -> None:
    """Remove our own user's directories whose processes have ended.

    :param again: also where this process has looked already.
    """
    place = tempfile.gettempdir()
    if place in _seen and not again:
        return
    _seen.add(place)
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX):
                with suppress(OSError):  # somebody else's, or gone meanwhile
                    _remove_if_left(Path(entry.path))


def _make() -> tuple[Path, int] | None:
    """Make a directory and hold it; None where somebody took it for one that was left, in between."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            return path, descriptor
    except BlockingIOError:
        pass
    except OSError:  # a file system without locks: nobody removes anything there
        return path, descriptor
    os.close(descriptor)
    return None


def _remove_if_left(path: Path) -> None:
    descriptor = os.open(path, _OPEN)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            return
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(descriptor, path):
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
