"""File systems of their own for tests, mounted by root or through sudo."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from tests.support.need import as_root, missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def mount(place: Path, *arguments: str) -> str:
    """Mount something, and return what ``mount`` said where that failed."""
    if as_root() is None:
        return "nobody here may become root"
    done = subprocess.run([*as_root(), "mount", *arguments, str(place)], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip() or f"mount ended with status {done.returncode}"


@contextlib.contextmanager
def in_memory(place: Path, size: str) -> Iterator[None]:
    """Mount a tmpfs of that size on an empty directory."""
    if failed := mount(place, "-t", "tmpfs", "-o", f"size={size},uid={os.getuid()}", "none"):
        missing("mount", failed)
    try:
        yield
    finally:
        unmount(place)


@contextlib.contextmanager
def on_a_loop_device(place: Path, kind: str, disk: Path, size_bytes: int) -> Iterator[None]:
    """Make a file system of that kind in the file ``disk`` and mount it on an empty directory."""
    if shutil.which(f"mkfs.{kind}") is None:
        missing("loop", f"there is no mkfs.{kind}")
    with disk.open("wb") as stream:
        stream.truncate(size_bytes)
    subprocess.run([f"mkfs.{kind}", "-q", disk], check=True, capture_output=True)
    if failed := mount(place, "-o", "loop", str(disk)):
        missing("loop", failed)
    try:
        subprocess.run([*as_root(), "chown", str(os.getuid()), place], check=True)
        yield
    finally:
        unmount(place)


def unmount(place: Path) -> None:
    subprocess.run([*as_root(), "umount", str(place)], check=True)
