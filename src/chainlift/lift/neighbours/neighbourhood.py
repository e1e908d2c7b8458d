"""Everybody who may need a file, asked together."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from chainlift.lift.neighbours.carried import read_carried
from chainlift.lift.neighbours.images import Search
from chainlift.lift.neighbours.libvirt import Definitions
from chainlift.lift.neighbours.processes import OpenFiles, describe_holders

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path


class Neighbourhood:
    """Who stands on, holds or relies on files near an image."""

    def __init__(self, image: Path, *, search: Sequence[Path] = (), libvirt: bool = True) -> None:
        self._search = Search([image.parent, *search])
        self._libvirt = libvirt

    @cached_property
    def _open(self) -> OpenFiles:
        return OpenFiles.look()

    @cached_property
    def _definitions(self) -> Definitions:
        return Definitions.read() if self._libvirt else Definitions()

    def covers(self, path: Path) -> bool:
        """Whether a file lies where was searched."""
        return self._search.covers(path)

    def why_keep(self, path: Path, *, ours: Collection[Path]) -> str | None:
        """Return why a file must stay, None if nobody needs it."""
        if path.is_block_device():
            return "it is a block device"
        if holders := self._open.holders(path):
            return f"{describe_holders(holders)} has it open"
        ours = set(ours)
        for user in self._search.users_of(path):
            if user.path not in ours:
                return str(user)
        if named := self._definitions.naming(path):
            return f"{named[0]} names it"
        return read_carried(path).irreplaceable if path.suffix != ".json" else None

    @property
    def searched(self) -> str:
        """What was searched."""
        return f"searched {', '.join(map(str, self._search.directories))} ({self._search.files} files)"
