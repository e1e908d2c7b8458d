"""New files put in the place of layers: each in one rename, all of them or none.

At every moment each name leads to a file that reads the same bytes, the old one or the new one. The old ones keep a
name of their own until nobody may have to go back to them.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, UnknownStateError
from chainlift.host import interrupts
from chainlift.host.durable import sync_path
from chainlift.lift.build.workspace import create
from chainlift.lift.ownership import Ownership
from chainlift.lift.prune.journal import set_aside, temporary
from chainlift.lift.record.mark import ATTRIBUTE as MARK_ATTRIBUTE
from chainlift.lift.record.mark import read_mark, state_directory, write_mark

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[int]:
    """Make the file that is to take a layer's place; it has all that the layer has but its content, or is not there.

    :param path: of the layer, links followed.
    :return: a descriptor, open for reading and writing; only its maker can read the file until the block ends.
    """
    made = temporary(path)
    descriptor = create(made)
    try:
        try:
            yield descriptor
            _take_after(path, descriptor)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with suppress(OSError):
            made.unlink()
        raise


def _take_after(path: Path, descriptor: int) -> None:
    """Give a new file owner, mode, label, a user's own attributes, and the times of the layer that it replaces.

    The time of its last write is the snapshot's.
    """
    Ownership.of(path).apply(descriptor)
    status = path.stat()
    with suppress(OSError):  # a file system without attributes
        for name in os.listxattr(path):
            if name.startswith("user.") and name != MARK_ATTRIBUTE:
                os.setxattr(descriptor, name, os.getxattr(path, name))
    os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))


@dataclass(frozen=True)
class Seen:
    """A layer's file when it was read."""

    #: Links followed.
    path: Path
    device: int
    inode: int
    mtime_ns: int
    size_bytes: int

    @classmethod
    def at(cls, path: Path) -> Seen:
        """Look at a file.

        :raise OSError: if it is not there.
        """
        status = path.stat()
        return cls(path, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def swap(layers: Sequence[Seen]) -> None:
    """Put the new files in the place of the layers, in this order.

    The caller lets no interrupt come; one that has come is raised between two layers, and all are as before then.

    :raise ImageError: if a layer is another file by now, or was written to; nothing was changed.
    :raise OSError: if the file system fails; all are as before.
    :raise UnknownStateError: if that could not be undone.
    """
    for seen in layers:
        if Seen.at(seen.path) != seen:
            raise ImageError("was changed or replaced meanwhile", path=seen.path, hint="look at it, and run it again")
    begun: list[Path] = []
    try:
        for seen in layers:
            interrupts.between_steps()
            mark = read_mark(seen.path, state_directory())
            os.link(seen.path, set_aside(seen.path))
            begun.append(seen.path)
            temporary(seen.path).replace(seen.path)
            if mark is not None:
                with suppress(OSError):
                    write_mark(seen.path, mark, state_directory())
        _sync(begun)
    except BaseException as error:
        put_back(begun, error)
        raise


def put_back(paths: Sequence[Path], cause: BaseException) -> None:
    """Give the old files their names again; those that were never set aside have them.

    :raise UnknownStateError: if one could not be put back.
    """
    for path in reversed(paths):
        try:
            if set_aside(path).exists():
                set_aside(path).replace(path)
                # A name for the very same file, which a rename leaves as it is.
                set_aside(path).unlink(missing_ok=True)
        except OSError as error:
            raise UnknownStateError(
                f"{cause}; it could not be put back: {error.strerror}",
                path=path,
                hint="it reads the same bytes; see what is wrong with its file system, and run it again",
            ) from cause
    with suppress(OSError):
        _sync(paths)


def _sync(paths: Sequence[Path]) -> None:
    for directory in sorted({path.parent for path in paths}):
        sync_path(directory)
