"""QEMU's image locks: seeing that a QEMU has an image open, and keeping one from writing to a layer while we read it.

QEMU takes *open file description* locks on single bytes (block/file-posix.c): byte 100 + n is locked for reading by
everyone who uses permission n, byte 200 + n by everyone who does not share it. Taking the same locks makes us one of
them: a QEMU that wants to write to a layer is refused while we hold it, and we are refused where one does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError
from chainlift.host.closing import Closing
from chainlift.host.process_limits import many_open_files
from chainlift.lift.neighbours.processes import OpenFiles, describe_holders, own_locks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PERM_BASE: Final = 100  # RAW_LOCK_PERM_BASE
_SHARED_BASE: Final = 200  # RAW_LOCK_SHARED_BASE
_CONSISTENT_READ: Final = 0  # BLK_PERM_*, as bit numbers
_WRITE: Final = 1
_RESIZE: Final = 3
_PERMISSIONS: Final = 5
_FLOCK: Final = "hhqqi4x"  # struct flock


def is_open_in_qemu(path: Path) -> bool:
    """Whether any QEMU has this image open, for reading or writing."""
    with _open(path) as file:
        return _is_locked(file, _PERM_BASE, 200)


def is_written(path: Path) -> bool:
    """Whether a QEMU has this image open for writing."""
    with _open(path) as file:
        return any(_is_locked(file, _PERM_BASE + permission, 1) for permission in (_WRITE, _RESIZE))


def refuse_if_open(path: Path, open_files: OpenFiles | None = None) -> None:
    """Refuse an image that anybody has open: a QEMU, as its lock says, or any other process or loop device.

    :param open_files: a look at all processes; None takes one.
    :raise ImageError: naming the process where it can be told.
    """
    holders = (open_files or OpenFiles.look()).holders(path)
    if holders or is_open_in_qemu(path):
        raise ImageError(
            f"is open in {describe_holders(holders) or 'a QEMU'}",
            path=path,
            hint="stop it first, or name its QMP socket with --qmp to work under the running VM",
        )


class LayerLocks(Closing):
    """Holds read locks on layers: nobody's QEMU may write to one, or change its size, until they are released.

    The locks are QEMU's own, so a QEMU that only reads (a VM with these layers as backing files) is not disturbed.

    :param paths: the layers, by any name.
    :param hint: what to do about one that is open for writing.
    :raise ImageError: if one of them is.
    """

    def __init__(self, paths: Mapping[str, Path], *, hint: str = "a lift needs layers that nobody writes to") -> None:
        self._hint = hint
        self._files: list[_LockedFile] = []
        #: An open file descriptor for each, for reading, by its name.
        self.descriptors: dict[str, int] = {}
        # A chain may have more layers than a process may have files; the old limit comes back with the release.
        self._limits = ExitStack()
        self._limits.enter_context(many_open_files())
        try:
            for name, path in paths.items():
                self._add(name, path)
        except BaseException:
            self.close()
            raise

    def _add(self, name: str, path: Path) -> None:
        file = _open(path)
        self._files.append(file)
        self.descriptors[name] = file.fd
        for byte in (_PERM_BASE + _CONSISTENT_READ, _SHARED_BASE + _WRITE, _SHARED_BASE + _RESIZE):
            file.lock(byte)
        # Ours are there; now whoever writes, or does not share reading, is seen, and whoever comes later sees us.
        for byte in (_PERM_BASE + _WRITE, _PERM_BASE + _RESIZE, _SHARED_BASE + _CONSISTENT_READ):
            if _is_locked(file, byte, 1):
                raise ImageError(f"is open for writing in {_who(path)}", path=path, hint=self._hint)

    def close(self) -> None:
        """Let go of every layer."""
        while self._files:
            self._files.pop().close()
        self._limits.close()


class _LockedFile(Closing):
    """A file opened for its locks."""

    def __init__(self, path: Path) -> None:
        # A FIFO with the name of an image must not make us wait for its other end.
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)

        status = os.fstat(self.fd)
        self._file = os.major(status.st_dev), os.minor(status.st_dev), status.st_ino
        self._locks = 0

    def lock(self, byte: int) -> None:
        """Take a shared lock on one byte; a file system without them has none to respect either."""
        try:
            fcntl.fcntl(self.fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
            own_locks[self._file] += 1
            self._locks += 1
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.EAGAIN, errno.EACCES):
                raise

    def close(self) -> None:
        """Close it, which releases the locks."""
        os.close(self.fd)
        own_locks[self._file] -= self._locks
        self._locks = 0


def _open(path: Path) -> _LockedFile:
    try:
        return _LockedFile(path)
    except OSError as error:
        raise ImageError(f"cannot be opened: {error.strerror}", path=path) from error


def _is_locked(file: _LockedFile, byte: int, length: int) -> bool:
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, length, 0)
    try:
        answer = fcntl.fcntl(file.fd, fcntl.F_OFD_GETLK, request)
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)


def _who(path: Path) -> str:
    return describe_holders(OpenFiles.look().holders(path)) or "a QEMU"
