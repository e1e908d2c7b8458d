"""Files that images lie in, opened so that a hostile name can do no harm, and as many as a chain has layers.

Only regular files and block devices are ever opened: a FIFO would hang its reader for ever, a device may act when it is
opened. There are chains with more layers than a process may have open files: descriptors are kept in a pool of limited
size, and a file whose descriptor was given up is opened again when it is read, and must then be the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections import OrderedDict
from contextlib import suppress
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, PolicyError
from chainlift.host.process_limits import open_files

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
}

# Where QEMU's file driver takes its byte locks (block/file-posix.c: RAW_LOCK_PERM_BASE); whoever may write to an image
# holds a shared lock on the byte of that permission (BLK_PERM_WRITE is bit 1).
_LOCK_PERM_BASE = 100
_PERM_WRITE_BIT = 1
_FLOCK = struct.Struct("hhqqi4x")


class ImageFile:
    """A regular file or block device, for reading.

    :param path: its name.
    :param check: called with the name's :func:`os.path.realpath` before the file is opened; raises to forbid it.
    :raise PolicyError: if it is neither a regular file nor a block device.
    :raise ImageError: if it cannot be opened.
    """

    def __init__(self, path: str, *, check: Callable[[str], None] | None = None) -> None:
        self.path = path
        try:
            # What a symbolic link points at is what is opened, even if the link is changed meanwhile.
            self._target = os.path.realpath(path) if check is not None else path
            if check is not None:
                check(self._target)
            descriptor, status = _open(self._target, path)
            self.size = os.lseek(descriptor, 0, os.SEEK_END)
        except (OSError, ValueError) as error:
            raise _cannot_open(path, error) from error
        self.is_block_device = stat.S_ISBLK(status.st_mode)
        #: What tells one file from another, under whatever name.
        self.identity = _identity(status)
        self._allocated_bytes = status.st_blocks * 512
        _pool.put(self, descriptor)

    @property
    def allocated_bytes(self) -> int:
        """What the file takes on its file system."""
        return self._allocated_bytes

    def pread(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer than asked for only where the file ends.

        :raise ImageError: if reading fails.
        """
        try:
            data = os.pread(self._descriptor(), length, offset)
            while 0 < len(data) < length and (
                more := os.pread(self._descriptor(), length - len(data), offset + len(data))
            ):
                data += more
        except (OSError, OverflowError) as error:
            raise reading_failed(self.path, offset, error) from error
        return data

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes into a buffer; fewer than it has only where the file ends.

        :return: how many.
        :raise ImageError: if reading fails.
        """
        try:
            return pread_into(self._descriptor(), buffer, offset)
        except (OSError, OverflowError) as error:
            raise reading_failed(self.path, offset, error) from error

    def place(self, offset: int, length: int) -> tuple[int, int] | None:  # noqa: ARG002
        """Return where a span of bytes lies: a descriptor, which is the caller's to close, and the offset in it.

        :return: None where there cannot be a descriptor more, or the span lies in no one file.
        :raise ImageError: if the file cannot be opened.
        """
        descriptor = self._descriptor()
        try:
            return os.dup(descriptor), offset
        except OSError:
            return None

    def refresh_size(self) -> int:
        """Look at the file's size again: an image that is in use grows."""
        self.size = os.lseek(self._descriptor(), 0, os.SEEK_END)
        return self.size

    def next_data(self, offset: int) -> tuple[int, int]:
        """Return where the next data begin at or after ``offset`` and where they end, as the file system tells.

        Without any, both are the file's size. A file system that cannot tell says that all is data.
        """
        descriptor = self._descriptor()
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
            return begin, os.lseek(descriptor, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left, or nothing
                return self.size, self.size
            return min(offset, self.size), self.size

    def has_writer(self) -> bool:
        """Whether another process (a QEMU) has the image open for writing, as its lock says."""
        query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _LOCK_PERM_BASE + _PERM_WRITE_BIT, 1, 0)
        try:
            answer = fcntl.fcntl(self._descriptor(), fcntl.F_OFD_GETLK, query)
        except OSError:  # a file system without locks
            return False
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def close(self) -> None:
        """Give the descriptor up; reading would open the file again."""
        _pool.drop(self)

    def __del__(self) -> None:
        self.close()

    def _descriptor(self) -> int:
        descriptor = _pool.get(self)
        if descriptor is None:
            try:
                descriptor, status = _open(self._target, self.path)
            except OSError as error:
                raise _cannot_open(self.path, error) from error
            if _identity(status) != self.identity:
                os.close(descriptor)
                raise ImageError("was replaced by another file while it was read", path=self.path, hint="start again")
            _pool.put(self, descriptor)
        return descriptor


def pread_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read bytes into a buffer and return how many; fewer than it has only where the file ends.

    :param descriptor: of the file.
    :param buffer: is filled, as far as the file goes.
    :param offset: in bytes.
    """
    done = 0
    while done < len(buffer) and (count := os.preadv(descriptor, [buffer[done:]], offset + done)):
        done += count
    return done


def reading_failed(path: str, offset: int, error: Exception) -> ImageError:
    """Return the error of a failed read at ``offset``, in bytes.

    :param path: of the file.
    :param offset: in bytes.
    :param error: what the operating system said.
    """
    return ImageError(f"reading at offset {offset} failed: {_reason(error)}", path=path)


def _open(target: str, path: str) -> tuple[int, os.stat_result]:
    _check_kind(os.stat(target).st_mode, path)  # noqa: PTH116 - names may hold any byte
    # O_NONBLOCK: should the name have become a FIFO since, this does not hang.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(target, flags)
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        _pool.halve()  # the rest of the process has more files open than we left it
        descriptor = os.open(target, flags)
    try:
        status = os.fstat(descriptor)
        _check_kind(status.st_mode, path)
        # No reading ahead: tables lie scattered, and what is in the page cache changes what SEEK_HOLE says.
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status


def _check_kind(mode: int, path: str) -> None:
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise PolicyError(f"is {kind}, not a regular file or a block device", path=path)


def _identity(status: os.stat_result) -> tuple[int, ...]:
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)
    return status.st_dev, status.st_ino


def _cannot_open(path: str, error: Exception) -> ImageError:
    return ImageError(f"cannot be opened: {_reason(error)}", path=path)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


class _DescriptorPool:
    """Open descriptors, the one used longest ago closed first where there would be too many."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, int] = OrderedDict()  # id of the file -> descriptor; a file drops its own
        self._capacity = 0

    def get(self, file: ImageFile) -> int | None:
        descriptor = self._open.get(id(file))
        if descriptor is not None:
            self._open.move_to_end(id(file))
        return descriptor

    def put(self, file: ImageFile, descriptor: int) -> None:
        if not self._capacity:
            # Half of what the process may have; the limit itself is left alone, as every QEMU we start inherits it.
            most = open_files()
            self._capacity = 4096 if most is None else max(16, min(most // 2, 4096))
        while len(self._open) >= self._capacity:
            os.close(self._open.popitem(last=False)[1])
        self._open[id(file)] = descriptor

    def halve(self) -> None:
        self._capacity = max(1, len(self._open) // 2)
        while len(self._open) > self._capacity:
            os.close(self._open.popitem(last=False)[1])

    def drop(self, file: ImageFile) -> None:
        descriptor = self._open.pop(id(file), None)
        if descriptor is not None:
            os.close(descriptor)


_pool = _DescriptorPool()
