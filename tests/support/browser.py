"""Pages in headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def opened(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page; return what it has become when its scripts have run, and what it says on its console.

    :param profile: a directory for the browser.
    """
    chromium = shutil.which("chromium")
    assert chromium, "script/bootstrap installs chromium"
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking",
            "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
            f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "</html>" in done.stdout
    return done.stdout, re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", done.stderr)


def console_of(page: Path, profile: Path) -> list[str]:
    """Return what a page says on its console; parameters as :func:`opened`."""
    return opened(page, profile)[1]
