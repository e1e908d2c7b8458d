"""What a service says to systemd: sd_notify(3), the watchdog, and the priority of a line for the journal."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Tell systemd of our state, ``READY=1`` or ``WATCHDOG=1``; nothing where nobody asked for it.

    The datagram goes to ``$NOTIFY_SOCKET``, a path or, with ``@`` in front, an abstract name (sd_notify(3)).
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as there:
        # Who waits for systemd would be killed by it: a state that it does not take now is told later.
        there.settimeout(1)
        there.sendto("\n".join(assignments).encode(), address)


def watchdog_s() -> float | None:
    """Return within how many seconds systemd wants a sign of life; None: it wants none (sd_watchdog_enabled(3))."""
    with suppress(ValueError):
        asked = int(os.environ.get("WATCHDOG_PID", os.getpid()))
        seconds = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        return seconds if seconds > 0 and asked == os.getpid() else None
    return None


def stderr_is_the_journal() -> bool:
    """Whether ``$JOURNAL_STREAM`` names standard error: programs that a desktop starts inherit the variable, too."""
    with suppress(OSError, ValueError):
        device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
        there = os.fstat(sys.stderr.fileno())
        return (int(device), int(inode)) == (there.st_dev, there.st_ino)
    return False
