"""Processes that a process has started."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def wait_for_children(pid: int, count: int = 1) -> list[int]:
    """Wait until a process has started so many others that have not ended; return them."""
    while True:
        with suppress(OSError):
            tasks = Path(f"/proc/{pid}/task").iterdir()
            found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
            if len(found) >= count:
                return found
        time.sleep(0.01)
