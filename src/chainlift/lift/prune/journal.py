"""What a run that thins a chain out is about to do, noted beside the image: who is killed leaves it to the next run.

``IMAGE.prune.json`` names the files that are made for a moment, and, from before the first layer is replaced, the
layers that go: nobody stands on them any more, so that nobody would find them otherwise. It is gone when nothing is
left.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import ImageError
from chainlift.host.durable import sync_path
from chainlift.lift.build.workspace import write_file
from chainlift.lift.neighbours.images import NEW_SUFFIX, OLD_SUFFIX, PRUNE_SUFFIX
from chainlift.lift.ownership import Ownership
from chainlift.lift.record.identity import identify
from chainlift.lift.record.manifest import FileIdentity, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEMA: Final = 1
_ABOUT: Final = "chainlift was interrupted here; the next chainlift prune or drop of the image finishes it"


def temporary(path: Path) -> Path:
    """Return what the new file for a layer is called until it takes its place."""
    return path.with_name(path.name + PRUNE_SUFFIX + NEW_SUFFIX)


def set_aside(path: Path) -> Path:
    """Return what a layer's old file is called until nobody may have to go back to it."""
    return path.with_name(path.name + PRUNE_SUFFIX + OLD_SUFFIX)


@dataclass(frozen=True)
class Entries:
    """What a journal says."""

    #: Layers that are written anew; absolute, links followed.
    replaced: tuple[Path, ...] = ()
    #: Layers that go, and their data files.
    goes: tuple[FileIdentity, ...] = ()

    @property
    def leftovers(self) -> list[Path]:
        """Files that a killed run may have left, and nobody else makes or needs."""
        return [made for path in self.replaced for made in (temporary(path), set_aside(path))]


@dataclass
class Journal:
    """The note beside one image.

    :param image: its file, links followed.
    """

    image: Path
    entries: Entries = field(default_factory=Entries)

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.image.with_name(self.image.name + PRUNE_SUFFIX + ".json")

    def read(self) -> bool:
        """Read what an earlier run has left; return whether there is one.

        :raise ImageError: if something else has the name.
        """
        try:
            data = json.loads(read_text(self.path))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, RecursionError) as error:
            raise self._is_not_ours(error) from error
        try:
            if data["schema"] != _SCHEMA:
                raise self._is_not_ours(f"its schema is {data['schema']!r}")
            self.entries = Entries(
                tuple(Path(str(name)) for name in data["replaced"]),
                tuple(_identity(entry) for entry in data["goes"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise self._is_not_ours(error) from error
        return True

    def write(self, entries: Entries) -> None:
        """Note what is about to be done; it is durable when this returns.

        :raise OSError: if it cannot be written.
        """
        data = {
            "schema": _SCHEMA,
            "about": _ABOUT,
            "replaced": [str(path) for path in entries.replaced],
            "goes": [asdict(file) for file in entries.goes],
        }
        ownership = replace(Ownership.of(self.image), acl=None)
        write_file(self.path, (json.dumps(data, indent=1) + "\n").encode(errors="surrogateescape"), ownership)
        sync_path(self.path.parent)
        self.entries = entries

    def move(self, image: Path) -> None:
        """Keep the note beside another name of the disk from now on.

        :raise OSError: if it cannot be renamed.
        """
        moved = Journal(Path(os.path.realpath(image)))
        if moved.path != self.path:
            self.path.replace(moved.path)
            self.image = moved.image
            sync_path(self.path.parent)

    def remove_leftovers(self) -> None:
        """Remove files that were made for a moment.

        :raise OSError: if one cannot be removed.
        """
        directories = set()
        for path in self.entries.leftovers:
            with suppress(FileNotFoundError):
                path.unlink()
                directories.add(path.parent)
        for directory in sorted(directories):
            sync_path(directory)

    def still_there(self) -> list[Path]:
        """Return the files of those that go which are there, and are the very same."""
        return [Path(file.path) for file in self.entries.goes if _is_there(file)]

    def close(self, left: Sequence[FileIdentity] = ()) -> None:
        """Say that nothing is left to be done but to delete these layers, when nobody needs them any more.

        :raise OSError: if it cannot be written or removed.
        """
        if left:
            self.write(Entries((), tuple(left)))
            return
        with suppress(FileNotFoundError):
            self.path.unlink()
            sync_path(self.path.parent)
        # A run that was killed while it wrote it.
        with suppress(FileNotFoundError):
            self.path.with_name(self.path.name + NEW_SUFFIX).unlink()
        self.entries = Entries()

    def _is_not_ours(self, why: object) -> ImageError:
        return ImageError(f"is no note of chainlift: {why}", path=self.path, hint="move it away")


def notes_beside(journal: Journal) -> list[Journal]:
    """Return the notes of other images in the same directory."""
    found = []
    suffix = f"{PRUNE_SUFFIX}.json"
    for path in sorted(journal.path.parent.iterdir()):
        if path.name.endswith(suffix) and path != journal.path:
            other = Journal(path.with_name(path.name.removesuffix(suffix)))
            with suppress(ImageError):
                if other.read():
                    found.append(other)
    return found


def _identity(entry: dict[str, Any]) -> FileIdentity:
    return FileIdentity(
        path=str(entry["path"]),
        device=int(entry["device"]),
        inode=int(entry["inode"]),
        size_bytes=int(entry["size_bytes"]),
        mtime_ns=int(entry["mtime_ns"]),
        ctime_ns=int(entry["ctime_ns"]),
    )


def _is_there(file: FileIdentity) -> bool:
    try:
        return identify(file.path) == file
    except ImageError:
        return False
