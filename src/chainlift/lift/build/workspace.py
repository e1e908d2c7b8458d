"""``IMAGE.lift/``: the directory in which an image's lift is made, and how files come into it.

A file is written under a temporary name, synced and renamed; the record comes last, and then the directory is synced,
before anything names what lies in it: whoever looks, after a kill or a power cut, finds a file whole or not at all.
A lift's number is claimed by a record that says that nobody uses it. What a killed run has left is such a record and
what has its number, or ends in ``.new``; the next run removes it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError, OperationError
from chainlift.host import interrupts
from chainlift.host.durable import sync_path, write_all
from chainlift.lift.neighbours.images import NEW_SUFFIX
from chainlift.lift.neighbours.locks import is_open_in_qemu
from chainlift.lift.ownership import Ownership, make_directory, refuse_unreachable
from chainlift.lift.record.lifts import lift_directory
from chainlift.lift.record.manifest import NAME, SUFFIX, Manifest, claim_text, is_unused, write_text
from chainlift.lift.record.note import WayBack, note_path, note_text, read_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: What the files of a lift with a number may end in; its record's is :data:`SUFFIX`.
_SUFFIXES: Final = (".table", ".vmdk", ".qcow2")


class Workspace:
    """The directory in which one image's lifts are made, held by one process at a time.

    :param image: the image; absolute.
    :param parent: the directory in which it is made; None: that of the image itself, where a link leads.
    """

    def __init__(self, image: Path, parent: Path | None = None) -> None:
        self.image = image
        real = Path(os.path.realpath(image)) if image.is_symlink() else image
        self.path = lift_directory(real if parent is None else Path(os.path.abspath(parent)) / real.name)  # noqa: PTH100

    @classmethod
    def at(cls, directory: Path, image: Path) -> Workspace:
        """Return the workspace of a lift that is there, whatever its image is called now."""
        workspace = cls(image)
        workspace.path = directory
        return workspace

    def require_place(self) -> None:
        """Refuse a place that is no file system for a lift.

        :raise ImageError: if it is a directory of device nodes.
        """
        place = os.path.realpath(self.path.parent)
        if (place == "/dev" or place.startswith("/dev/")) and not place.startswith("/dev/shm"):
            raise ImageError(
                "is a device: a lift cannot lie beside it",
                path=self.image,
                hint="name a directory of a file system with --lift-dir",
            )

    @contextmanager
    def hold(self) -> Iterator[Workspace]:
        """Make the directory if need be and hold it; leftovers of killed runs are removed first.

        :raise ImageError: if another chainlift works there, something else has the name, or it cannot be made: a
            read-only or full file system.
        """
        self.require_place()
        self.ownership = Ownership.of(self.image)
        self.ownership.require_possible(self.image)
        refuse_unreachable(self.path.parent, self.image)
        made = False
        try:
            with interrupts.put_off():
                with suppress(FileExistsError):
                    make_directory(self.path, self.ownership)
                    made = True
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise ImageError("is not a directory", path=self.path, hint="move it away") from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.ENOENT):
                text = f"cannot be made beside the image: {error.strerror}"
                raise ImageError(text, path=self.path, hint="name another place with --lift-dir") from error
            raise failed(error, self.path) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ImageError("another chainlift works there", path=self.path, hint="wait for it") from error
            if made:
                sync_path(self.path.parent)
            self._remove_leftovers()
            yield self
        finally:
            os.close(descriptor)
            # Empty if nothing was ever published: as if we had not been there.
            with suppress(OSError):
                self.path.rmdir()

    def claim(self, kind: str) -> str:
        """Take the next number for a lift of this kind; its record says that nobody uses it.

        Numbers are not used again, even where the lift or all of the directory was deleted: an image may still name it.

        :return: ``index-1``.
        """
        taken = {name.partition(".")[0] for name in (*os.listdir(self.path), *read_note(self.path))}  # noqa: PTH208
        number = 1
        while f"{kind}-{number}" in taken:
            number += 1
        stem = f"{kind}-{number}"
        self._write(stem + SUFFIX, claim_text(kind))
        return stem

    @contextmanager
    def new_file(self, name: str) -> Iterator[int]:
        """Make a file under its temporary name; synced and renamed when the block ends well, else removed.

        :return: its descriptor, open for reading and writing.
        """
        temporary = self.path / (name + NEW_SUFFIX)
        descriptor = create(temporary)
        try:
            try:
                self.ownership.apply(descriptor)
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
            self.ownership.apply(temporary)
            temporary.replace(self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise

    def publish(self, stem: str, manifest: Manifest) -> None:
        """Write the record of a lift, and the note; the names of all its files are durable when this returns.

        The record is readable to whoever may read the image: it holds no content.
        """
        file = Path(manifest.files[-1].path).name
        way_back = WayBack(manifest.image, manifest.original, manifest.original_path)
        self._write_note({**read_note(self.path), file: way_back})
        self._write(stem + SUFFIX, write_text(manifest))
        sync_path(self.path)

    def write_record(self, record: Path, manifest: Manifest) -> None:
        """Replace the record of a lift."""
        self._write(record.name, write_text(manifest))
        sync_path(self.path)

    def mark_used(self, record: Path, manifest: Manifest) -> Manifest:
        """Say that an image may name the lift from now on."""
        used = replace(manifest, used=True)
        if not manifest.used:
            self.write_record(record, used)
        return used

    def remove_lift(self, stem: str, *, used: bool) -> list[Path]:
        """Remove a lift's files, its record last; return what was removed.

        :param used: whether an image may have named it; if not, its entry in the note goes, too, and before them: a run
            that is killed here leaves no entry for ever.
        """
        has_room = used or self._forget(stem)
        names = [name for suffix in _SUFFIXES for name in (stem + suffix, stem + suffix + NEW_SUFFIX)]
        removed = []
        for name in (*names, stem + SUFFIX + NEW_SUFFIX, stem + SUFFIX):
            with suppress(FileNotFoundError):
                (self.path / name).unlink()
                removed.append(self.path / name)
        sync_path(self.path)
        if not has_room:
            self._forget(stem)  # as best we can: there is room now
        return removed

    def _forget(self, stem: str) -> bool:
        """Remove a lift's entry in the note; return False where there is no room to write the others."""
        note = read_note(self.path)
        left = {file: way for file, way in note.items() if file.partition(".")[0] != stem}
        try:
            if left != note:
                self._write_note(left)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
        return True

    def forget_way_back(self, stem: str) -> None:
        """Say in the note that nothing leads back from a lift any more."""
        note = read_note(self.path)
        deleted = {file: replace(way, deleted=True) for file, way in note.items() if file.partition(".")[0] == stem}
        self._write_note({**note, **deleted})

    def remove_unused(self, stems: Iterable[str]) -> None:
        """Remove lifts of which their records say that nobody uses them, and that no QEMU reads through for a while."""
        for stem in stems:
            if is_unused(self.path / (stem + SUFFIX)) and not any(map(is_open_in_qemu, self.files_of(stem))):
                self.remove_lift(stem, used=False)

    def lifts(self) -> list[str]:
        """Return the lifts that were made here, by their stems (``index-1``), whether or not they have a record."""
        names = (path.name for path in self.path.iterdir())
        return sorted({stem for name in names if (stem := _stem(name)) is not None})

    def files_of(self, stem: str) -> list[Path]:
        """Return the files of a lift that are there, without its record."""
        return [path for suffix in _SUFFIXES if (path := self.path / (stem + suffix)).exists()]

    def named_file(self, stem: str) -> Path | None:
        """Return the file of a lift that images name, if it is there."""
        found = [path for suffix in (".vmdk", ".qcow2") if (path := self.path / (stem + suffix)).exists()]
        return found[0] if found else None

    def record_of(self, stem: str) -> Path:
        """Return where a lift's record is: beside its files, or (up to schema 2) in ``manifest.json``."""
        own = self.path / (stem + SUFFIX)
        return own if own.exists() or not (self.path / NAME).exists() else self.path / NAME

    def _remove_leftovers(self) -> None:
        note = note_path(self.path)
        note.with_name(note.name + NEW_SUFFIX).unlink(missing_ok=True)
        for path in list(self.path.iterdir()):
            stem = _stem(path.name.removesuffix(NEW_SUFFIX))
            if path.name.endswith(NEW_SUFFIX) and (stem is not None or path.name == NAME + NEW_SUFFIX):
                path.unlink(missing_ok=True)  # it went with its record
            elif path.suffix == SUFFIX and stem is not None:
                self.remove_unused([stem])

    def _write_note(self, entries: dict[str, WayBack]) -> None:
        path = note_path(self.path)
        if not entries:
            path.unlink(missing_ok=True)
        else:
            write_file(path, note_text(entries).encode(), self.ownership)
        sync_path(path.parent)

    def _write(self, name: str, text: str) -> None:
        with self.new_file(name) as descriptor:
            write_all(descriptor, text.encode())


@contextmanager
def alone_in(directories: Iterable[Path]) -> Iterator[None]:
    """Hold directories, so that one run at a time works there.

    :raise ImageError: if another one does, or one of them cannot be opened.
    """
    with ExitStack() as stack:
        for directory in sorted(set(directories)):
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise ImageError(f"cannot be opened: {error.strerror}", path=directory) from error
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ImageError("another chainlift works there", path=directory, hint="wait for it") from error
            except OSError as error:
                # Some network file systems lock no directories: the temporary files' names are the lock there.
                if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        yield


def create(path: Path) -> int:
    """Make an empty file that nobody else can open, and return its descriptor, open for reading and writing.

    No interrupt comes between the file and whoever removes it again.

    :raise FileExistsError: if the name is taken.
    """
    with interrupts.put_off():
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def write_file(path: Path, data: bytes, ownership: Ownership) -> None:
    """Replace a file atomically; it is synced, its name is not.

    :param path: its name; what had it keeps its content until the new one is whole.
    :param data: its content.
    :param ownership: who it is to belong to.
    """
    temporary = path.with_name(path.name + NEW_SUFFIX)
    with suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = create(temporary)
    try:
        try:
            ownership.apply(descriptor)
            write_all(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def _stem(name: str) -> str | None:
    """Return the stem of a file of a lift; None where we do not call files so."""
    path = Path(name)
    kind, _, number = path.stem.rpartition("-")
    ours = kind in ("index", "squash") and number.isdecimal() and path.suffix in (*_SUFFIXES, SUFFIX)
    return path.stem if ours else None


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


def remove_files(paths: Iterable[Path]) -> None:
    """Remove files and make that durable."""
    directories = set()
    for path in paths:
        path.unlink(missing_ok=True)
        directories.add(path.parent)
    for directory in sorted(directories):
        sync_path(directory)
