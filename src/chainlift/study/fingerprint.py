"""What tells a study's programs, its chain and its machine's settings from others of the same name."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_CPU = Path("/sys/devices/system/cpu")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256.

    :raise OSError: if it cannot be read.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksums_of(paths: Iterable[Path | None]) -> dict[str, str]:
    """Return the SHA-256 of each file, by its name without directories; those that are not there are left out."""
    found = {}
    for path in paths:
        if path is not None and path.is_file():
            found[path.name] = sha256_of(path)
    return found


def checksum_of_chain(files: Iterable[Path]) -> str:
    """Return one SHA-256 of all files of a chain: of their own, one after the other, the base's first."""
    whole = hashlib.sha256()
    for path in files:
        whole.update(bytes.fromhex(sha256_of(path)))
    return whole.hexdigest()


def governor() -> str:
    """Return how the kernel clocks the CPUs (``performance``); empty where it has no say, as in most guests."""
    found = {_read(path) for path in _CPU.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return ", ".join(sorted(found - {""}))


def mitigations() -> dict[str, str]:
    """Return what the kernel does about each weakness of the CPU, by its name: it costs a system call its time."""
    return {path.name: text for path in sorted(_CPU.glob("vulnerabilities/*")) if (text := _read(path))}


def commit() -> str:
    """Return the commit of chainlift's sources, with ``+`` where they were changed; empty for an installed one."""
    root = Path(__file__).parent
    git = ["git", "-C", str(root)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False, timeout=20
        )
        if tracked.returncode:
            return ""
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=20)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(root.parent)], capture_output=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout else "")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
