"""All neighbours of an image at once: asked before a file is changed or deleted.

Each is looked at once for a verb, when it is first asked for: directories, libvirt's definitions, open files.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError
from chainlift.lift.neighbours.ask_libvirt import read_definitions
from chainlift.lift.neighbours.carried import read_carried
from chainlift.lift.neighbours.definitions import Definitions
from chainlift.lift.neighbours.images import Search, named_by
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.neighbours.processes import Identity, OpenFiles, describe_holders, identity_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from chainlift.lift.neighbours.definitions import Naming


class Neighbourhood:
    """Who else holds, names or relies on files around an image.

    :param image: its directory, and the one that its symbolic links lead to, are searched in any case.
    :param search: more directories.
    :param libvirt: whether libvirt is asked.
    :param our_processes: processes that we started ourselves: their open files do not count.
    :param our_disk: a domain's UUID and a target (``vda``): what libvirt's definitions say of the layers below that
        disk's images does not count, for they are to follow the headers.
    """

    def __init__(
        self,
        image: Path,
        *,
        search: Iterable[Path] = (),
        libvirt: bool = True,
        our_processes: Collection[int] = (),
        our_disk: tuple[str, str] | None = None,
    ) -> None:
        self._directories = [image.absolute().parent, Path(os.path.realpath(image)).parent, *search]
        self._asks_libvirt = libvirt
        self._our_processes = our_processes
        self._our_disk = our_disk

    @cached_property
    def files(self) -> Search:
        """What lies in the directories.

        :raise InputError: if one cannot be searched, or an image there cannot be read.
        """
        return Search(self._directories)

    @cached_property
    def definitions(self) -> Definitions:
        """What libvirt's definitions name."""
        return read_definitions() if self._asks_libvirt else Definitions()

    @cached_property
    def open_files(self) -> OpenFiles:
        """What processes have open."""
        return OpenFiles.look(ours=self._our_processes)

    def covers(self, path: Path) -> bool:
        """Whether a file lies in one of the directories that are searched."""
        return self.files.covers(path)

    def refuse_if_open(self, path: Path) -> None:
        """Refuse a file that anybody has open.

        :raise ImageError: naming the process where it can be told.
        """
        refuse_if_open(path, self.open_files)

    def why_keep(self, path: Path, *, ours: Collection[Path] | Ours = ()) -> str | None:
        """Say why a file must not be deleted, as a phrase; None where nobody is known who needs it.

        :param ours: images and records of lifts that do not count: they are deleted too, or do not name the file any
            more when it is. A record is named by its own path: the name of its image decides nothing.
        :raise InputError: if a directory cannot be searched, or an image there cannot be read.
        """
        try:
            status = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"it cannot be looked at: {error.strerror}"
        if path.is_block_device():
            return "it is a block device"
        if holders := self.open_files.holders(path):
            return f"{describe_holders(holders)} has it open"
        known = ours if isinstance(ours, Ours) else Ours(ours)
        for user in self.files.users_of(path):
            if user.path not in known or user.kind in ("hard link", "symbolic link"):
                return str(user)
        if status.st_nlink > 1:
            return "it has another name (a hard link) where nothing was searched"
        if namings := [naming for naming in self.definitions.namings(path) if not self._follows_headers(naming)]:
            # Of a snapshot's disks, the one for which the file was made: that is the snapshot to forget.
            first = min(namings, key=lambda naming: bool(naming.part and naming.target))
            return f"{first} names it" if first.part else f"domain {first.domain} names it in {first.element}"
        if self.definitions.problem is not None:
            return f"a libvirt domain may name it: {self.definitions.problem}"
        try:
            kept = read_carried(path).irreplaceable
        except ChainliftError as error:
            return f"it cannot be looked into: {error.what}"
        if kept is None and not self.files.covers(path):
            kept = "it lies outside the directories that were searched"
        return kept

    def _follows_headers(self, naming: Naming) -> bool:
        return naming.element == "<backingStore>" and (naming.uuid, naming.target) == self._our_disk

    def sort_out(self, files: Sequence[Path], *, ours: Collection[Path] = ()) -> dict[Path, str]:
        """Say which of some files must stay if the others are deleted, and why: what a file that stays names stays too.

        :param files: layers and their data files.
        :param ours: as for :meth:`why_keep`, besides the files themselves.
        :return: the files that stay, each with a phrase.
        """
        known = Ours([*ours, *files])
        kept = {path: why for path in files if (why := self.why_keep(path, ours=known)) is not None}
        left, seen = list(kept), set(kept)
        while left:
            above = left.pop()
            try:
                named = named_by(above)
            except (ChainliftError, OSError):
                # Nobody knows what it stands on: nothing of the rest may go.
                return {**dict.fromkeys(files, f"{above} is kept, and may stand on it"), **kept}
            below = Ours(named)
            for path in files:
                if path not in kept and path in below:
                    kept[path] = f"{above} stands on it and is kept"
            # Through files that are not asked for as well.
            left += [path for path in named if path not in seen]
            seen.update(named)
        return kept

    @property
    def searched(self) -> str:
        """What was searched, to be told before a deletion."""
        found, definitions, processes = self.files, self.definitions, self.open_files
        parts = [f"{', '.join(found.directories)} ({found.files:,} {'file' if found.files == 1 else 'files'})"]
        if definitions.is_there:
            count = len(definitions.domains)
            parts.append(f"the definitions of {count} libvirt {'domain' if count == 1 else 'domains'}")
        if definitions.problem is not None:
            parts[-1] += f" (not all: {definitions.problem})"
        if not processes.can_see_all:
            parts.append("the open files of your own processes and QEMU's locks")
        elif processes.in_container:
            parts.append("the open files of all processes of this container")
        else:
            parts.append("the open files of all processes")
        nobody = "; no libvirt answers here" if self._asks_libvirt and not definitions.is_there else ""
        return "searched " + ", ".join(parts) + nobody


class Ours:
    """Files, each known under all of its names."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._names: set[str] = set()
        self._identities: set[Identity] = set()
        for path in paths:
            self._names.add(os.path.realpath(path))
            try:
                self._identities.add(identity_of(path.stat()))
            except OSError:
                continue

    def __contains__(self, path: Path) -> bool:
        if os.path.realpath(path) in self._names:
            return True
        try:
            return identity_of(path.stat()) in self._identities
        except OSError:
            return False
