"""The ranges of the disk in which two chains differ: as their metadata say, or as their bytes do."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from chainlift.lift.compare.content import BATCH_BYTES, PieceReader, batches
from chainlift.lift.compare.spans import Content

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from chainlift.lift.compare.spans import Pair, Pieces

#: What is compared by content differs, or does not, in whole blocks of the disk of this size.
BLOCK_BYTES: Final = 4096


class Range(NamedTuple):
    """A part of the disk in which a newer chain differs from an older one."""

    #: Guest offset in bytes.
    start: int
    #: Bytes.
    length: int
    #: Whether the newer one is known to read as zeros there.
    zero: bool


def ranges_by_metadata(pair: Pair, end: int) -> Iterator[Range]:
    """Yield where two chains do not provably read the same; nothing but tables is read.

    :param pair: the older chain and the newer one.
    :param end: guest offset in bytes at which the ranges end: the size of the newer disk.
    :raise ImageError: if a table that is needed is malformed or cut off.
    """
    return _joined(_by_metadata(pair), end)


def ranges_by_content(pair: Pair, end: int, progress: Callable[[int], None] | None = None) -> Iterator[Range]:
    """Yield where two chains read different bytes, in blocks of :data:`BLOCK_BYTES`; parameters as above.

    :param pair: of whole chains.
    :param progress: called with the bytes of the disk that are compared, or need not be.
    :raise ImageError: if a layer is malformed, encrypted or cannot be read.
    """
    return _joined(_by_content(pair, progress), end)


def _by_metadata(pair: Pair) -> Iterator[Range]:
    for _, newer, _ in pair.unproven():
        zero = newer.content == Content.ZERO
        yield from map(Range, newer.start.tolist(), newer.length.tolist(), zero.tolist())


def _by_content(pair: Pair, progress: Callable[[int], None] | None) -> Iterator[Range]:
    buffers = mmap.mmap(-1, BATCH_BYTES), mmap.mmap(-1, BATCH_BYTES)
    ours, theirs = (np.frombuffer(buffer, np.uint8) for buffer in buffers)
    older, newer = PieceReader(pair.one), PieceReader(pair.other)
    for one, other, end in pair.unproven():
        for first, second in batches(one, other):
            total = int(first.length.sum())
            older.fill(memoryview(buffers[0])[:total], first)
            newer.fill(memoryview(buffers[1])[:total], second)
            yield from _unequal(ours[:total], theirs[:total], second)
            if progress is not None:
                progress(first.end)
        if progress is not None:
            progress(end)


def _unequal(older: NDArray[np.uint8], newer: NDArray[np.uint8], pieces: Pieces) -> Iterator[Range]:
    """Yield the blocks that differ of some parts of the disk, which lie after each other in two buffers."""
    at = 0
    for start, length in zip(pieces.start.tolist(), pieces.length.tolist(), strict=True):
        a, b = older[at : at + length], newer[at : at + length]
        at += length
        if np.array_equal(a, b):
            continue
        edges = np.arange(start // BLOCK_BYTES * BLOCK_BYTES, start + length, BLOCK_BYTES)
        edges[0] = start
        differs = np.logical_or.reduceat(a != b, edges - start)
        zero = ~np.logical_or.reduceat(b != 0, edges - start)
        lengths = np.diff(edges, append=start + length)
        yield from map(Range, edges[differs].tolist(), lengths[differs].tolist(), zero[differs].tolist())


def _joined(ranges: Iterable[Range], end: int) -> Iterator[Range]:
    """Join neighbours that are alike, and leave out what lies behind the end."""
    start = stop = 0
    is_zero = False
    for found in ranges:
        if found.start >= end:
            break
        if found.start != stop or found.zero != is_zero:
            if stop > start:
                yield Range(start, stop - start, is_zero)
            start, is_zero = found.start, found.zero
        stop = min(found.start + found.length, end)
    if stop > start:
        yield Range(start, stop - start, is_zero)
