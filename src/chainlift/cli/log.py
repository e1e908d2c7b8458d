"""``--log FILE`` and ``-v``: where the log goes, and in which form."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import TYPE_CHECKING

from chainlift.host.log import LOGGER, log_changes, shortened

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Formatter(logging.Formatter):
    """A line a record, with the time as RFC 3339 has it, to the millisecond and with the zone."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        local = time.localtime(record.created)
        zone = time.strftime("%z", local)
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{int(record.msecs):03d}{zone[:3]}:{zone[3:]}"


def begin(file: str | None, verbose: int, words: Sequence[str]) -> None:
    """Begin to log.

    :param file: what the log is added to, all of it; created so that only its owner can read it: it has names of files.
    :param verbose: 1: what is changed goes to standard error, too; 2: what is asked as well.
    :param words: the command line.
    :raise OSError: if the file cannot be written.
    """
    if file is not None:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stream = os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace")
        _add(logging.StreamHandler(stream), f"%(asctime)s {os.getpid()} %(levelname)s %(name)s: %(message)s", 2)
    if verbose:
        _add(logging.StreamHandler(sys.stderr), "%(asctime)s %(name)s: %(message)s", verbose)
    log_changes()
    from chainlift._version import __version__

    LOGGER.info("chainlift %s: %s", __version__, shortened(" ".join(words)))


def end(status: int, line: str = "") -> None:
    """Log how the command ended, and what it said."""
    level = logging.INFO if status == 0 else logging.ERROR
    LOGGER.log(level, "exit status %d%s", status, f": {shortened(line)}" if line else "")


def _add(handler: logging.Handler, form: str, verbose: int) -> None:
    level = logging.INFO if verbose == 1 else logging.DEBUG
    handler.setFormatter(_Formatter(form))
    handler.setLevel(level)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(min(level, LOGGER.level or level))
