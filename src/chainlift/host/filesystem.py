"""Where a file lies: its file system, device and mount options, from ``/proc/self/mountinfo``."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Place:
    """The mounted file system that holds a file."""

    mount_point: str
    #: As the kernel names it: ``ext4``, ``tmpfs``.
    file_system: str
    #: The device or source of the mount: ``/dev/sda1``, ``tmpfs``.
    device: str
    mount_options: str
    #: ``st_dev`` of the files on it.
    device_number: int
    #: Whether the block device says that it turns; None where there is no block device.
    rotational: bool | None

    def __str__(self) -> str:
        return f"{self.file_system} on {self.device}"


def place_of(path: Path) -> Place:
    """Say where a file or directory lies.

    :raise OSError: if it is not there.
    """
    number = path.stat().st_dev
    best: tuple[str, str, str, str] = ("/", "unknown", "unknown", "")
    resolved = path.resolve()
    for line in _MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        # proc(5): id parent major:minor root mount-point options [optional fields] - type source super-options
        left, _, right = line.partition(" - ")
        fields, kinds = left.split(" "), right.split(" ")
        mount_point = _unescape(fields[4])
        # A later mount on the same point covers the earlier one; the longest point above the file is its own.
        if resolved.is_relative_to(mount_point) and len(mount_point) >= len(best[0]):
            best = (mount_point, kinds[0], _unescape(kinds[1]), fields[5])
    return Place(*best, device_number=number, rotational=_rotational(number))


def free_bytes(directory: Path) -> int:
    """Return how much an unprivileged process can still write there; looks at the nearest directory that exists."""
    while not directory.exists():
        directory = directory.parent
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _rotational(device_number: int) -> bool | None:
    device = Path(f"/sys/dev/block/{os.major(device_number)}:{os.minor(device_number)}")
    for where in (device / "queue/rotational", device / "../queue/rotational"):
        try:
            return where.read_text().strip() == "1"
        except OSError:
            continue
    return None


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two names lead to one file, by device and inode, or to one block device."""
    try:
        one, other = first.stat(), second.stat()
    except OSError:
        return False
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev  # it may have several nodes
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
