"""Where a chain may lead. An image is untrusted input, and so are the names in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import PolicyError

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class ChainPolicy:
    """What a chain may consist of; always only regular files and block devices of this machine.

    :param within: directories in which every file must lie, symbolic links followed. Empty: anywhere.
    :param max_depth: the most layers over the base.
    """

    within: tuple[Path, ...] = ()
    max_depth: int = 10_000

    def check_place(self, target: str) -> None:
        """Check where a file really is.

        :param target: its name with symbolic links resolved.
        :raise PolicyError: if it is outside the allowed directories.
        """
        if self.within and not any(_is_below(target, os.path.realpath(directory)) for directory in self.within):
            allowed = ", ".join(str(directory) for directory in self.within)
            raise PolicyError("is outside the directories that are allowed", path=target, hint=f"allowed: {allowed}")


def _is_below(target: str, directory: str) -> bool:
    return os.path.commonpath((target, directory)) == directory
