"""``python -m chainlift``, and the ``chainlift`` command: an interrupt is told in one line, also while modules load."""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

_INTERRUPTED = 130
_was_interrupted = False


def main() -> NoReturn:
    """Run the command. Whenever Ctrl-C comes, it ends with one line."""
    # Ignored, as a shell's background job has it, it stays so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from chainlift.cli.main import main as run

        run()
    except KeyboardInterrupt:
        _end()
    except (ImportError, SystemError):
        # A module that was interrupted while it loaded may put it in its own words (numpy does).
        if not _was_interrupted:
            raise
        _end()
    finally:
        # From here on there is nothing to tidy up, and no place for a traceback.
        if signal.getsignal(signal.SIGINT) is _interrupt:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(number: int, frame: object) -> NoReturn:  # noqa: ARG001
    global _was_interrupted  # noqa: PLW0603 - a signal handler has no other place
    _was_interrupted = True
    raise KeyboardInterrupt


def _end() -> NoReturn:
    os.write(2, b"chainlift: interrupted\n")
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
