"""``python -m chainlift``, and the ``chainlift`` command: an interrupt is told in one line, also while modules load."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from chainlift.host import interrupts


def main() -> NoReturn:
    """Run the command. Whenever Ctrl-C comes, or another signal that ends a process, it ends with one line."""
    interrupts.install()
    try:
        from chainlift.cli.main import main as run

        interrupts.between_steps()
        run()
    except interrupts.Interrupted as interrupt:
        interrupts.end()
        os.write(2, b"chainlift: interrupted\n")
        os._exit(128 + interrupt.number)


if __name__ == "__main__":
    sys.exit(main())
