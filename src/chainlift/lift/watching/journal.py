"""What a watch says, a line for each thing that happened: on standard error, which a service has in the journal."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Final

from chainlift.errors import one_line
from chainlift.host.systemd import stderr_is_the_journal

#: Priorities as sd-daemon(3) has them.
ERROR: Final = 3
WARNING: Final = 4
NOTICE: Final = 5
INFO: Final = 6

#: Sizes and times, which change from round to round where the trouble is the same.
_AMOUNT: Final = re.compile(r"\d+(\.\d+)? ?([KMGT]i?B|B|bytes|ms|s|%)\b")


class Journal:
    """Says each line once: a trouble that goes on is told when it begins, when it changes, and when it is over."""

    def __init__(self) -> None:
        self._is_journal = stderr_is_the_journal()
        self._told: dict[str, str] = {}

    def say(self, priority: int, text: str) -> None:
        """Write one line, with its priority where the journal reads it."""
        if self._is_journal:
            line = f"<{priority}>{one_line(text)}"
        else:
            line = f"chainlift: {'warning: ' if priority <= WARNING else ''}{one_line(text)}"
        # Where nobody reads it any more, the work goes on.
        with suppress(OSError, ValueError):
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def trouble(self, about: str, text: str, *, what: str | None = None, priority: int = WARNING) -> None:
        """Tell a trouble, unless it was told last of the same thing.

        :param about: what it is about: a disk, a socket, a file.
        :param text: the whole line.
        :param what: tells whether it has changed; None: the line.
        """
        if self._told.get(about) != (told := _AMOUNT.sub("#", what or text)):
            self._told[about] = told
            self.say(priority, text)

    def well(self, about: str, text: str = "") -> None:
        """Tell that a trouble is over, if one was told; without a text, in silence."""
        if self._told.pop(about, None) is not None and text:
            self.say(NOTICE, text)
