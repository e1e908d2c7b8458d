"""Comparing what two chains read, byte by byte, as far as they could differ."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.lift.compare.spans import Content, Pair, Pieces, ignore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from chainlift.chain import Chain
    from chainlift.lift.compare.spans import Side

    Fill = Callable[[memoryview, Pieces], None]

#: Bytes that are read from either side at a time.
BATCH_BYTES: Final = 2 << 20


def first_difference(one: Chain, other: Chain, progress: Callable[[int], None] | None = None) -> int | None:
    """Return the first offset at which two chains read different bytes, None if there is none.

    What both read from the same place of the same file, or from the same blocks of a file system, or where both have
    nothing, is not read. The shorter disk is taken to be followed by zeros, as a backing file is.

    :param progress: called with the bytes of the disk that are compared, or need not be.
    :raise ImageError: if a layer is malformed, encrypted or cannot be read.
    """
    pair = Pair(one, other, on_shared=ignore)
    return difference(pair, PieceReader(pair.one).fill, PieceReader(pair.other).fill, progress)


def difference(
    pair: Pair,
    fill_one: Fill,
    fill_other: Fill,
    progress: Callable[[int], None] | None,
    *,
    ahead: bool = False,
) -> int | None:
    """Return the first offset at which two disks differ, None if there is none; reads only what is not proven.

    :param fill_one: reads parts of the first disk, one after the other, into a buffer of just their length.
    :param fill_other: of the other one.
    :param progress: as for :func:`first_difference`.
    :param ahead: whether another process reads the other disk: it is asked for the next part meanwhile, by a thread.
    """
    # The kernel copies fastest to whole pages of ours.
    ours, *theirs = (mmap.mmap(-1, BATCH_BYTES) for _ in range(3))
    with ThreadPoolExecutor(1, thread_name_prefix="compare") as pool:

        def ask(part: _Part, buffer: mmap.mmap) -> Callable[[], None]:
            view = memoryview(buffer)[: part.total]
            if not part.total or not ahead:
                return lambda: fill_other(view, part.other) if part.total else None
            return pool.submit(fill_other, view, part.other).result

        def compare(part: _Part, buffer: mmap.mmap, wait: Callable[[], None]) -> int | None:
            if part.total:
                fill_one(memoryview(ours)[: part.total], part.one)
            wait()
            at = _first_unequal(*(np.frombuffer(side, np.uint8, part.total) for side in (ours, buffer)))
            if at is None:
                if progress is not None:
                    progress(part.end)
                return None
            behind = np.cumsum(part.one.length)
            row = int(behind.searchsorted(at, side="right"))
            return int(part.one.start[row] + part.one.length[row] - behind[row]) + at

        before: tuple[_Part, mmap.mmap, Callable[[], None]] | None = None
        for number, part in enumerate(_parts(pair)):
            asked = part, theirs[number % 2], ask(part, theirs[number % 2])
            if before is not None and (at := compare(*before)) is not None:
                return at
            before = asked
        return None if before is None else compare(*before)


@dataclass(frozen=True)
class _Part:
    """What is read and compared at a time; perhaps nothing."""

    one: Pieces
    other: Pieces
    total: int
    #: The guest offset up to which all is compared then.
    end: int


def _parts(pair: Pair) -> Iterator[_Part]:
    for one, other, end in pair.unproven():
        for first, second in batches(one, other):
            yield _Part(first, second, int(first.length.sum()), first.end)
        yield _Part(one.take(slice(0, 0)), other.take(slice(0, 0)), 0, end)


def _first_unequal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> int | None:
    words = len(one) // 8 * 8
    if np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(
        one[words:], other[words:]
    ):
        return None
    return int((one != other).argmax())


def batches(one: Pieces, other: Pieces) -> Iterator[tuple[Pieces, Pieces]]:
    """Cut parts that are alike cut into batches of :data:`BATCH_BYTES` at most."""
    if not len(one):
        return
    times = -(-one.length // BATCH_BYTES)
    if int(times.max()) > 1:
        one, other = _shortened(one, times), _shortened(other, times)
    behind = np.cumsum(one.length)
    row = done = 0
    while row < len(one):
        end = int(behind.searchsorted(done + BATCH_BYTES, side="right"))
        yield one.take(slice(row, end)), other.take(slice(row, end))
        row, done = end, int(behind[end - 1])


def _shortened(pieces: Pieces, times: NDArray[np.int64]) -> Pieces:
    """Cut each part into so many that none is longer than a buffer."""
    row = np.repeat(np.arange(len(times)), times)
    within = (np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)) * BATCH_BYTES
    parts = pieces.take(row)
    return Pieces(
        parts.start + within,
        np.minimum(parts.length - within, BATCH_BYTES),
        parts.content,
        parts.source,
        parts.offset + np.where(parts.content == Content.PLAIN, within, 0),
        parts.skip + np.where(parts.content == Content.PACKED, within, 0),
        parts.stored_bytes,
    )


class PieceReader:
    """Reads parts of a chain's disk; a compressed cluster that several parts follow each other in, once.

    :param side: the chain.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._unpacked: tuple[int, int, int] | None = None
        self._cluster = b""

    def fill(self, buffer: memoryview, pieces: Pieces) -> None:
        """Read parts, one after the other, into a buffer of just their length.

        :raise ImageError: if a file cannot be read or a compressed cluster is damaged.
        """
        files = self._side.sources.files
        at = 0
        runs = _runs(pieces)
        columns = (runs.start, runs.length, runs.content, runs.source, runs.offset, runs.skip, runs.stored_bytes)
        for start, length, content, source, offset, skip, stored in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            part = buffer[at : at + length]
            at += length
            if content == Content.PLAIN:
                count = files[source].file.pread_into(part, offset)
                if count < length:
                    part[count:] = bytes(length - count)
            elif content == Content.ZERO:
                part[:] = bytes(length)
            elif content == Content.PACKED:
                cluster = self._unpack(source, offset, stored)
                # Neighbours with the same descriptor, should there be any, are one part.
                part[:] = (cluster * (1 + (skip + length - 1) // len(cluster)))[skip : skip + length]
            else:
                there = max(0, min(length, self._side.chain.virtual_size - start))
                part[:] = self._side.chain.read(start, there).ljust(length, b"\0")

    def _unpack(self, source: int, offset: int, stored_bytes: int) -> bytes:
        if self._unpacked != (source, offset, stored_bytes):
            file = self._side.sources.files[source]
            self._cluster = file.read_compressed(offset - file.base, stored_bytes)
            self._unpacked = source, offset, stored_bytes
        return self._cluster


def _runs(pieces: Pieces) -> Pieces:
    """Join parts that follow each other in the buffer and in the file."""
    before, after = pieces.take(slice(0, -1)), pieces.take(slice(1, None))
    joined = (
        (before.content == after.content)
        & (before.source == after.source)
        & (
            (after.content == Content.ZERO)
            | ((after.content == Content.PLAIN) & (after.offset == before.offset + before.length))
        )
    )
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.flatnonzero(~joined) + 1))
    runs = pieces.take(first)
    return Pieces(runs.start, np.add.reduceat(pieces.length, first), *runs.columns()[2:])
