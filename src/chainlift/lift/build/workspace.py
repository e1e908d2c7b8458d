"""``IMAGE.lift/``: the directory beside an image in which its lift lies, and how files come into it.

A file is written under a temporary name, synced and renamed; the manifest comes last, and then the directory is synced,
before anything names what lies in it: whoever looks, after a kill or a power cut, finds a file whole or not at all.
What a killed run left ends in ``.new``; the next run removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError, OperationError
from chainlift.lift.record.manifest import NAME, Manifest, read_manifest, write_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

SUFFIX: Final = ".lift"
#: What a file is called while it is written.
NEW_SUFFIX: Final = ".new"


def lift_directory(image: Path) -> Path:
    """Return where the lift of this image lies, or would."""
    return image.with_name(image.name + SUFFIX)


def read_lift(image: Path) -> Manifest | None:
    """Return the manifest of the image's lift, or None where it has none.

    :raise ImageError: if there is one that cannot be read.
    """
    path = lift_directory(image) / NAME
    return read_manifest(path) if path.exists() else None


class Workspace:
    """The directory of one image's lift, held by one process at a time.

    :param image: the image; absolute.
    """

    def __init__(self, image: Path) -> None:
        self.image = image
        self.path = lift_directory(image)

    @contextmanager
    def hold(self) -> Iterator[Workspace]:
        """Make the directory if need be and hold it; leftovers of killed runs are removed first.

        :raise ImageError: if another chainlift works there, something else has the name, or it cannot be made: a
            read-only or full file system.
        """
        made = False
        try:
            with suppress(FileExistsError):
                self.path.mkdir()
                made = True
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise ImageError("is not a directory", path=self.path, hint="move it away") from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                text = f"cannot be made beside the image: {error.strerror}"
                raise ImageError(text, path=self.path, hint="a lift needs a place to write to") from error
            raise failed(error, self.path) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ImageError("another chainlift works there", path=self.path, hint="wait for it") from error
            if made:
                sync_directory(self.path.parent)
            self._remove_leftovers()
            yield self
        finally:
            os.close(descriptor)
            # Empty if nothing was ever published: as if we had not been there.
            with suppress(OSError):
                self.path.rmdir()

    @contextmanager
    def new_file(self, name: str) -> Iterator[int]:
        """Make a file under its temporary name; synced and renamed when the block ends well, else removed.

        :return: its descriptor, open for reading and writing.
        """
        temporary = self.path / (name + NEW_SUFFIX)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            try:
                yield descriptor
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    @contextmanager
    def new_path(self, name: str) -> Iterator[Path]:
        """Give a temporary name for a file that somebody else makes and syncs; renamed when the block ends well."""
        temporary = self.path / (name + NEW_SUFFIX)
        try:
            yield temporary
            temporary.replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest; the names of all files in the directory are durable when this returns."""
        data = write_text(manifest).encode()
        with self.new_file(NAME) as descriptor:
            while data:
                data = data[os.write(descriptor, data) :]
        sync_directory(self.path)

    def fresh_name(self, stem: str, suffixes: Collection[str]) -> str:
        """Return ``stem`` with the first number for which no file with one of these suffixes exists."""
        number = 1
        while any((self.path / f"{stem}-{number}{suffix}").exists() for suffix in suffixes):
            number += 1
        return f"{stem}-{number}"

    def made_here(self) -> list[Path]:
        """Return the files that chainlift made here; others are nobody's business."""
        return sorted(path for path in self.path.iterdir() if _is_ours(path.name))

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files and sync the directory."""
        for path in paths:
            path.unlink()
        sync_directory(self.path)

    def _remove_leftovers(self) -> None:
        for path in self.path.iterdir():
            if path.name.endswith(NEW_SUFFIX) and _is_ours(path.name.removesuffix(NEW_SUFFIX)):
                path.unlink()


def _is_ours(name: str) -> bool:
    stem, _, number = Path(name).stem.rpartition("-")
    ours = stem in ("index", "squash") and number.isdecimal()
    return (ours and Path(name).suffix in (".table", ".vmdk", ".qcow2")) or name in (NAME, NAME + NEW_SUFFIX)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def as_errors(workspace: Workspace) -> Iterator[None]:
    """Turn what the operating system says of a lift's files into one line."""
    try:
        yield
    except OSError as error:
        raise failed(error, workspace.path) from error


def failed(error: OSError, path: Path) -> OperationError:
    """Return the error for an operation of the file system that failed."""
    hint = "make room and run it again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return OperationError(f"{error.strerror}, everything is as before", path=error.filename or path, hint=hint)
