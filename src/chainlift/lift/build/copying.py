"""Copying pieces of many files to one, in the order of the destination: by reference where that can be, else fast.

Copied data goes round the page cache where the file system allows it (O_DIRECT, from aligned buffers of 4 MiB, a few at
a time): what is written once and read by somebody else later would only push out what is needed, and the write-back of
gigabytes would stall the neighbours. Pieces are read through the page cache, where the newest layers usually are.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final, Self

from chainlift.errors import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

_FICLONERANGE: Final = 0x4020940D
_CANNOT_CLONE: Final = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ENOSYS)
_BUFFER_BYTES: Final = 4 << 20
_WORKERS: Final = 4
#: What O_DIRECT needs of offsets, lengths and memory, everywhere that we know of.
_ALIGNMENT: Final = 4096
#: A piece smaller than this is not worth an extent of its own in the destination.
_CLONE_BYTES: Final = 4096


@dataclass(slots=True)
class Copied:
    """How the bytes came over."""

    #: Shared with the file that they come from, where the file system has reflinks.
    cloned_bytes: int = 0
    #: Read and written.
    copied_bytes: int = 0


@dataclass(slots=True)
class _Piece:
    """Bytes of a file, or from a function (``offset`` counts from nothing then)."""

    source: int | Callable[[], bytes]
    offset: int
    length: int


class Copier:
    """Copies to one file. Pieces that follow each other in source and destination become one.

    As a context manager it waits for what is under way; errors come out of :meth:`add` or at the end.

    :param descriptor: of the destination, open for writing.
    :param clone: try to share blocks (FICLONERANGE) before copying.
    :param direct: write with O_DIRECT where that is possible.
    :param rate_bytes_per_s: at most so much is copied.
    :param skip_zeros: leave a hole where a whole buffer's page of 64 KiB is zeros; the destination must be new.
    :param progress: called with the bytes that are done, now and then.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        clone: bool = True,
        direct: bool = True,
        rate_bytes_per_s: int | None = None,
        skip_zeros: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.done = Copied()
        self._fd = descriptor
        self._clone = clone
        self._direct_fd = _open_direct(descriptor) if direct else None
        self._rate = rate_bytes_per_s
        self._skip_zeros = skip_zeros
        self._progress = progress
        self._started = time.monotonic()
        self._pieces: list[_Piece] = []
        self._start = self._end = 0
        # Several writers through the page cache only fight for the inode's lock (6x slower on ext4).
        workers = 1 if self._direct_fd is None else _WORKERS
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="copy")
        self._buffers: SimpleQueue[mmap.mmap] = SimpleQueue()
        for _ in range(workers):
            self._buffers.put(mmap.mmap(-1, _BUFFER_BYTES))
        self._jobs: list[Future[int]] = []

    def add(self, source: int | Callable[[], bytes], offset: int, length: int, destination: int) -> None:
        """Copy ``length`` bytes; what lies behind the source's end is zeros.

        :param source: a file descriptor, or a function that returns the bytes.
        """
        if isinstance(source, int):
            last = self._pieces[-1] if self._pieces else None
            if (
                last is not None
                and destination == self._end
                and last.source == source
                and last.offset + last.length == offset
            ):
                last.length += length
                self._end += length
                return
        if destination != self._end or self._end - self._start >= _BUFFER_BYTES:
            self._flush()
            self._start = self._end = destination
        self._pieces.append(_Piece(source, offset, length))
        self._end += length

    def finish(self) -> Copied:
        """Wait until everything is copied."""
        self._flush()
        self._collect(0)
        if self._rate is None and self._progress is not None:
            self._progress(self.done.cloned_bytes + self.done.copied_bytes)
        return self.done

    def _flush(self) -> None:
        pieces, at = self._pieces, self._start
        self._pieces = []
        batch: list[_Piece] = []
        room, start = _BUFFER_BYTES, at
        for piece in pieces:
            if self._try_clone(piece, at):
                self._submit(batch, start)
                batch, room = [], _BUFFER_BYTES
                at += piece.length
                start = at
                continue
            taken = 0
            while taken < piece.length:
                part = min(room, piece.length - taken)
                if callable(piece.source):
                    part = piece.length
                    if part > room:
                        self._submit(batch, start)
                        batch, room, start = [], _BUFFER_BYTES, at
                batch.append(_Piece(piece.source, piece.offset + taken, part))
                taken += part
                at += part
                room -= part
                if room == 0:
                    self._submit(batch, start)
                    batch, room, start = [], _BUFFER_BYTES, at
        self._submit(batch, start)

    def _try_clone(self, piece: _Piece, destination: int) -> bool:
        if not self._clone or not isinstance(piece.source, int) or piece.length < _CLONE_BYTES:
            return False
        request = struct.pack("=qQQQ", piece.source, piece.offset, piece.length, destination)
        try:
            fcntl.ioctl(self._fd, _FICLONERANGE, request)
        except OSError as error:
            if error.errno not in _CANNOT_CLONE:
                raise
            # EINVAL may be this piece only (past the file's end, unaligned); the others say: never here.
            self._clone = error.errno == errno.EINVAL
            return False
        self.done.cloned_bytes += piece.length
        return True

    def _submit(self, batch: list[_Piece], destination: int) -> None:
        if not batch:
            return
        self._collect(2 * _WORKERS)
        # Functions are called here, in the caller's thread: they need not be safe for several.
        ready = [_Piece(_constant(p.source()), 0, p.length) if callable(p.source) else p for p in batch]
        self._jobs.append(self._pool.submit(self._copy, ready, destination))

    def _collect(self, pending: int) -> None:
        while len(self._jobs) > pending:
            self.done.copied_bytes += self._jobs.pop(0).result()
            total = self.done.copied_bytes
            if self._progress is not None:
                self._progress(total + self.done.cloned_bytes)
            if self._rate is not None:
                time.sleep(max(0.0, self._started + total / self._rate - time.monotonic()))

    def _copy(self, pieces: list[_Piece], destination: int) -> int:
        buffer = self._buffers.get()
        try:
            with memoryview(buffer) as view:
                length = 0
                for piece in pieces:
                    part = view[length : length + piece.length]
                    if callable(piece.source):
                        part[:] = piece.source()
                    else:
                        _read_into(piece.source, part, piece.offset)
                    length += piece.length
                for start, end in _data_parts(view[:length]) if self._skip_zeros else [(0, length)]:
                    self._write(view[start:end], destination + start)
            return length
        finally:
            self._buffers.put(buffer)

    def _write(self, view: memoryview, destination: int) -> None:
        direct = self._direct_fd
        if direct is not None and destination % _ALIGNMENT == 0:
            whole = len(view) // _ALIGNMENT * _ALIGNMENT
            try:
                written = os.pwrite(direct, view[:whole], destination) if whole else 0
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                written = 0
            # A short write may leave an unaligned rest: that goes through the page cache.
            view, destination = view[written:], destination + written
        while view:
            written = os.pwrite(self._fd, view, destination)
            if written == 0:
                raise OperationError("the file system takes no more data")
            view, destination = view[written:], destination + written

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            if self._direct_fd is not None:
                os.close(self._direct_fd)


def can_clone(directory_descriptor: int, source: int) -> bool:
    """Whether blocks of the source can be shared with a new file in this directory; leaves nothing behind."""
    with suppress(OSError):
        probe = os.open(f"/proc/self/fd/{directory_descriptor}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(probe, _FICLONERANGE, struct.pack("=qQQQ", source, 0, _CLONE_BYTES, 0))
        finally:
            os.close(probe)
        return True
    return False


def can_read_direct(path: Path) -> bool:
    """Whether the file system lets a file be read past the page cache."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _constant(data: bytes) -> Callable[[], bytes]:
    return lambda: data


def _open_direct(descriptor: int) -> int | None:
    with suppress(OSError):
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    return None


def _read_into(descriptor: int, part: memoryview, offset: int) -> None:
    while part:
        count = os.preadv(descriptor, [part], offset)
        if count == 0:
            part[:] = bytes(len(part))
            return
        part, offset = part[count:], offset + count


def _data_parts(view: memoryview, page: int = 65536) -> list[tuple[int, int]]:
    """Return the ranges of a buffer, in pages, that are not all zeros."""
    zeros = memoryview(bytes(page))
    parts: list[tuple[int, int]] = []
    for start in range(0, len(view), page):
        end = min(start + page, len(view))
        if view[start:end] == zeros[: end - start]:
            continue
        if parts and parts[-1][1] == start:
            parts[-1] = (parts[-1][0], end)
        else:
            parts.append((start, end))
    return parts
