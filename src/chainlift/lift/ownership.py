"""Who may read an image, given to what is made of it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ownership:
    """Owner, group and mode of an image."""

    uid: int
    gid: int
    mode: int

    @classmethod
    def of(cls, path: Path) -> Ownership:
        """Read it."""
        status = path.stat()
        return cls(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))

    def apply(self, target: int | Path) -> None:
        """Give it to a file."""
        if os.geteuid() == 0:
            os.chown(target, self.uid, self.gid)
        os.chmod(target, self.mode & 0o666)  # noqa: PTH101


def make_directory(path: Path, ownership: Ownership) -> None:
    """Make a directory that the image's readers can enter."""
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, ownership.uid, ownership.gid)
    readable = ownership.mode & 0o444
    path.chmod(0o700 | readable | readable >> 2)
