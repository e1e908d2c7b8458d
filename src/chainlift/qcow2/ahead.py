"""Pieces of files, read ahead in a thread of its own while those before them are looked at.

The kernel copies with one processor what numpy looks at with another: with 1.3 GB of tables in the page cache, those of
1,000 layers, it takes half the time. Small pieces are read when their turn comes, without the thread.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2.file import ImageFile, pread_into, reading_failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

_T = TypeVar("_T")

#: Bytes of the largest piece.
PIECE_BYTES = 2 << 20
#: Smaller pieces are looked at sooner than they are handed from thread to thread.
_WORTH_BYTES = 768 << 10
#: What is read without the thread: still in the CPU's nearest caches when it is looked at, which makes more of a
#: difference than the number of system calls.
_NEAR_BYTES = 256 << 10
_BUFFERS = 3


class Piece(NamedTuple, Generic[_T]):
    """A piece of a file that is wanted."""

    #: What it is to the caller.
    what: _T
    file: ImageFile
    #: In bytes; at most :data:`PIECE_BYTES`, a multiple of 8.
    offset: int
    length: int


def divide(start: int, stop: int) -> list[tuple[int, int]]:
    """Return the pieces, offset and length in bytes, in which a span of a file is read fastest."""
    size = PIECE_BYTES if stop - start >= _WORTH_BYTES else _NEAR_BYTES
    return [(offset, min(size, stop - offset)) for offset in range(start, stop, size)]


class ReadAhead:
    """Reads pieces of files into a few buffers, which are used again and again."""

    def __init__(self) -> None:
        self._near = _Buffer(_NEAR_BYTES)
        self._far = [_Buffer(PIECE_BYTES) for _ in range(_BUFFERS)]

    def read(self, pieces: Iterable[Piece[_T]]) -> Iterator[tuple[_T, NDArray[np.uint64] | ImageError]]:
        """Yield what some pieces hold, or why one could not be read.

        :param pieces: from :func:`divide`; taken from the iterable at most two ahead of what has been yielded.
        :return: each piece's ``what``, and its words as they stand in the file; they last until the next are asked for.
        """
        # A piece with the buffer that the thread reads it into, or None where it is read when its turn comes.
        pending: deque[tuple[Piece[_T], _Buffer | None]] = deque()
        wanted, count = iter(pieces), 0
        helper = _Helper()
        try:
            while True:
                current = pending.popleft() if pending else None
                result = None if current is None else self._finish(helper, *current)
                while len(pending) < _BUFFERS - 1 and (piece := next(wanted, None)) is not None:
                    buffer = None
                    if piece.length >= _WORTH_BYTES and helper.start(piece, self._far[count % _BUFFERS]):
                        buffer = self._far[count % _BUFFERS]
                        count += 1
                    pending.append((piece, buffer))
                if current is not None and result is not None:
                    yield current[0].what, result
                elif not pending:
                    return
        finally:
            helper.end()

    def _finish(self, helper: _Helper, piece: Piece[_T], buffer: _Buffer | None) -> NDArray[np.uint64] | ImageError:
        try:
            if buffer is None:
                # One that the thread could not take may be large.
                buffer = self._near if piece.length <= _NEAR_BYTES else _Buffer(piece.length)
                done = piece.file.pread_into(buffer.bytes[: piece.length], piece.offset)
            else:
                done = helper.finish(piece)
        except ImageError as error:
            return error
        if done != piece.length:
            return ImageError(f"L2 table entries at {piece.offset:#x} are cut off", path=piece.file.path)
        return buffer.words[: piece.length >> 3]


class _Buffer:
    """Memory to read into, in pages of its own.

    The kernel copies four times slower to 16 bytes behind the beginning of a page or cache line, where malloc, and so
    numpy, puts large arrays ("rep movsb" on AMD).
    """

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.bytes = memoryview(memory)
        self.words = np.frombuffer(memory, dtype=np.uint64)


class _Helper:
    """The thread, started with the first piece that is worth it."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._jobs: SimpleQueue[tuple[int, memoryview, int] | None] = SimpleQueue()
        self._results: SimpleQueue[int | Exception] = SimpleQueue()

    def start(self, piece: Piece[_T], buffer: _Buffer) -> bool:
        """Have a piece read into a buffer; False where it cannot be."""
        try:
            # A descriptor of its own: the file's may be given up for another file's at any time.
            place = piece.file.place(piece.offset, piece.length)
        except ImageError:
            place = None  # to be said when its turn comes
        if place is None:
            return False
        if self._thread is None:
            self._thread = Thread(target=self._serve, name="chainlift-read-ahead", daemon=True)
            self._thread.start()
        self._jobs.put((place[0], buffer.bytes[: piece.length], place[1]))
        return True

    def finish(self, piece: Piece[_T]) -> int:
        """Return how many bytes of the piece that was started first, of those not yet finished, were read.

        :raise ImageError: if reading failed.
        """
        result = self._results.get()
        if isinstance(result, Exception):
            raise reading_failed(piece.file.path, piece.offset, result) from result
        return result

    def end(self) -> None:
        """Wait until all that was started is read, and end the thread."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            descriptor, buffer, offset = job
            try:
                self._results.put(pread_into(descriptor, buffer, offset))
            except (OSError, OverflowError) as error:
                self._results.put(error)
            finally:
                os.close(descriptor)
