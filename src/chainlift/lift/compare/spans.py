"""Two chains side by side: where both read the same bytes of the same file, or nothing, there is nothing to compare."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.chain import Kind
from chainlift.host.shared_blocks import NONE_SHARED, SharedBlocks, shared_blocks
from chainlift.lift.build.files import ClusterFiles
from chainlift.lift.build.merge import Merger
from chainlift.qcow2.columns import Spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from chainlift.chain import Chain
    from chainlift.lift.build.merge import Fragments
    from chainlift.qcow2.file import ImageFile

#: A shorter part of a raw file is read without asking where its holes are.
_HOLES_FROM_BYTES: Final = 1 << 20


class Content(IntEnum):
    """What a chain has in a part of the disk."""

    #: Zeros that lie nowhere.
    ZERO = 0
    #: Bytes of a file, zeros past its end.
    PLAIN = 1
    #: A part of a compressed cluster.
    PACKED = 2
    #: Of an index, what reaches past an extent's end: only the whole chain can read it.
    ODD = 3
    #: What layers have that both chains stand on and that are not looked at: the same bytes on both sides.
    BELOW = 4


@dataclass(frozen=True)
class Pieces(Spans):
    """Consecutive parts of the disk as one chain has them, a row each."""

    #: :class:`Content`, uint8.
    content: NDArray[np.uint8]
    #: Index into the files of the chain's sources, int32; -1 for zeros.
    source: NDArray[np.int32]
    #: Byte in that file: of the part's beginning, or of the compressed cluster's stream.
    offset: NDArray[np.int64]
    #: Bytes between the beginning of a compressed cluster and the part.
    skip: NDArray[np.int64]
    #: Bytes of a compressed cluster's stream.
    stored_bytes: NDArray[np.int32]

    def cut(self, starts: NDArray[np.int64], end: int) -> Pieces:
        """Return the span from ``starts[0]`` to ``end``, cut into parts that begin at ``starts`` (every own cut too).

        :param starts: guest offsets in bytes, ascending.
        """
        parts, moved = self.cut_into(starts, end)
        return replace(
            parts,
            offset=parts.offset + np.where(parts.content == Content.PLAIN, moved, 0),
            skip=parts.skip + np.where(parts.content == Content.PACKED, moved, 0),
        )


class Side:
    """A chain that is compared.

    :param chain: it must stay open.
    :param below_bytes: up to where what no layer has is in layers further below, which both chains stand on and of
        which nothing is read.
    :param is_read: False: content is never read, and may be encrypted.
    :raise ImageError: if a layer is encrypted, or a file that an index points into cannot be opened.
    """

    def __init__(self, chain: Chain, *, below_bytes: int = 0, is_read: bool = True) -> None:
        for layer in chain.layers if is_read else ():
            if layer.image is not None:
                layer.image.require_plain()
        self.chain = chain
        self._below_bytes = below_bytes
        self.sources = ClusterFiles(chain)
        files, linear = self.sources.files, self.sources.linear_layers
        self._base = np.array([file.base for file in files], dtype=np.int64)
        is_extent = np.isin(self.sources.layer, linear)
        #: How far each extent of an index goes; other files read as zeros behind their end.
        self._limit = np.where(is_extent, [file.length for file in files], np.iinfo(np.int64).max)
        #: What a compressed cluster of each file must share with another to read the same.
        self.packing = np.array([(file.cluster_size << 8) + file.compression for file in files], dtype=np.int64)
        #: Which files are raw layers, where the file system may know of holes; no file (-1) is none.
        self.is_raw = np.array([*(file.cluster_size == 0 for file in files), False], dtype=bool)

    def pieces(self, size: int) -> Iterator[Pieces]:
        """Yield the disk in ascending order; up to ``size`` bytes it is followed by zeros.

        :raise ImageError: if a table that is needed is malformed or cut off.
        """
        done = 0
        # Without regard to clusters, so their size does not matter.
        for found in Merger(self.chain, self.sources, self.chain.granularity).fragments() if self.chain.layers else ():
            pieces = self._pieces(found)
            done = pieces.end
            yield pieces
        if done < self._below_bytes:  # there is no layer but those further below
            yield _empty(done, self._below_bytes, Content.BELOW)
            done = self._below_bytes
        if done < size:
            yield _empty(done, size, Content.ZERO)

    def _pieces(self, found: Fragments) -> Pieces:
        plain, packed = found.kind == Kind.DATA, found.kind == Kind.COMPRESSED
        content = np.full(len(found), Content.ZERO, dtype=np.uint8)
        content[plain], content[packed] = Content.PLAIN, Content.PACKED
        source = np.where(plain | packed, found.source, np.int32(-1)).astype(np.int32)
        last = found.host_offset + np.where(packed, found.stored_bytes, found.length)
        content[(source >= 0) & (last > self._limit[source])] = Content.ODD
        offset = np.where(source >= 0, found.host_offset + self._base[source], -1)
        pieces = Pieces(found.start, found.length, content, source, offset, found.skip, found.stored_bytes)
        limit = self._below_bytes
        if not limit:
            return pieces
        content[(found.kind == Kind.UNALLOCATED) & (found.start < limit)] = Content.BELOW
        if not int(found.start[0]) < limit < pieces.end:
            return pieces
        pieces = pieces.cut(np.union1d(found.start, [limit]), pieces.end)
        hidden = (pieces.content == Content.BELOW) & (pieces.start >= limit)
        return replace(pieces, content=np.where(hidden, np.uint8(Content.ZERO), pieces.content))


class Pair:
    """Two chains to compare; the shorter disk is taken to be followed by zeros, as a backing file is.

    :param size: bytes of the longer disk; None: as the chains say.
    :param on_shared: what lies in the same blocks of a file system is proven, too, and this is called with such parts
        of the first disk. None: no file system is asked.
    :raise ImageError: as for :class:`Side`.
    """

    def __init__(
        self,
        one: Chain | Side,
        other: Chain | Side,
        *,
        size: int | None = None,
        on_shared: Callable[[Pieces], None] | None = None,
    ) -> None:
        self.one, self.other = (side if isinstance(side, Side) else Side(side) for side in (one, other))
        #: Bytes of the longer disk.
        self.size = max(side.chain.virtual_size for side in (self.one, self.other)) if size is None else size
        numbers: dict[tuple[int, ...], int] = {}
        #: For each source of either side its file's number; the same file has one number, under whatever name.
        self.files = tuple(
            np.array([numbers.setdefault(s.file.identity, len(numbers)) for s in side.sources.files], dtype=np.int64)
            for side in (self.one, self.other)
        )
        self._on_shared = on_shared
        self._blocks: dict[ImageFile, SharedBlocks] = {}

    def pieces(self) -> Iterator[tuple[Pieces, Pieces]]:
        """Yield both disks in ascending order, cut at the same places.

        :raise ImageError: if a table that is needed is malformed or cut off.
        """
        ours, theirs = self.one.pieces(self.size), self.other.pieces(self.size)
        position = 0
        one = other = None
        while position < self.size:
            one = next(ours) if one is None or one.end == position else one
            other = next(theirs) if other is None or other.end == position else other
            end = min(one.end, other.end)
            starts = np.union1d(one.start, other.start)
            starts = np.union1d(starts[(starts >= position) & (starts < end)], [position])
            yield one.cut(starts, end), other.cut(starts, end)
            position = end

    def unproven(self) -> Iterator[tuple[Pieces, Pieces, int]]:
        """Yield what has to be read to know whether it is the same, and up to where that is all there is.

        :return: parts of both disks, cut at the same places, perhaps none; and a guest offset.
        :raise ImageError: as :meth:`pieces`.
        """
        for one, other in self.pieces():
            is_same = self._is_same(one, other)
            if self._on_shared is not None:
                shared = self._are_shared(one, other, np.flatnonzero(~is_same))
                self._on_shared(one.take(shared))
                is_same[shared] = True
            rows = np.flatnonzero(~is_same)
            yield *self._without_holes(one.take(rows), other.take(rows)), one.end

    def _is_same(self, one: Pieces, other: Pieces) -> NDArray[np.bool_]:
        same: NDArray[np.bool_] = (one.content == other.content) & (one.content != Content.ODD)
        rows = np.flatnonzero(same & (one.content != Content.ZERO) & (one.content != Content.BELOW))
        a, b = one.take(rows), other.take(rows)
        packed = a.content == Content.PACKED
        same[rows] = (
            (self.files[0][a.source] == self.files[1][b.source])
            & (a.offset == b.offset)
            & (
                ~packed
                | (
                    (a.stored_bytes == b.stored_bytes)
                    & (a.skip == b.skip)
                    & (self.one.packing[a.source] == self.other.packing[b.source])
                )
            )
        )
        return same

    def _are_shared(self, one: Pieces, other: Pieces, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return which of these rows lie in the same blocks of a file system on both sides."""
        shared = [rows[:0]]
        rows = rows[(one.content[rows] == Content.PLAIN) & (other.content[rows] == Content.PLAIN)]
        for source, its_source in set(zip(one.source[rows].tolist(), other.source[rows].tolist(), strict=True)):
            files = self.one.sources.files[source].file, self.other.sources.files[its_source].file
            if any(file.is_block_device for file in files) or files[0].identity[0] != files[1].identity[0]:
                continue
            these = rows[(one.source[rows] == source) & (other.source[rows] == its_source)]
            ours, theirs = (
                self._blocks_of(file).place(pieces.offset[these], pieces.length[these])
                for file, pieces in zip(files, (one, other), strict=True)
            )
            shared.append(these[(ours >= 0) & (ours == theirs)])
        return np.sort(np.concatenate(shared))

    def _blocks_of(self, file: ImageFile) -> SharedBlocks:
        if file not in self._blocks:
            placed = file.place(0, file.size)
            if placed is None:
                return NONE_SHARED
            try:
                self._blocks[file] = shared_blocks(placed[0], file.size)
            finally:
                os.close(placed[0])
        return self._blocks[file]

    def _without_holes(self, one: Pieces, other: Pieces) -> tuple[Pieces, Pieces]:
        """Leave out what is a hole of a raw file on one side, and the same or zeros on the other."""
        may = one.length >= _HOLES_FROM_BYTES
        for side, pieces in ((self.one, one), (self.other, other)):
            may &= (pieces.content == Content.ZERO) | ((pieces.content == Content.PLAIN) & side.is_raw[pieces.source])
        if not may.any():
            return one, other
        ours: list[Pieces] = []
        theirs: list[Pieces] = []
        done = 0
        for row in np.flatnonzero(may).tolist():
            ours.append(one.take(slice(done, row)))
            theirs.append(other.take(slice(done, row)))
            a, b = one.take(slice(row, row + 1)), other.take(slice(row, row + 1))
            for start, end in _united(_data_of(self.one, a) + _data_of(self.other, b)):
                starts = np.array([start], dtype=np.int64)
                ours.append(a.cut(starts, end))
                theirs.append(b.cut(starts, end))
            done = row + 1
        ours.append(one.take(slice(done, None)))
        theirs.append(other.take(slice(done, None)))
        return Pieces.concatenate(ours), Pieces.concatenate(theirs)


def ignore(pieces: Pieces) -> None:
    """Do nothing, for a :class:`Pair` whose shared blocks are of no interest otherwise."""


def _empty(start: int, stop: int, content: Content) -> Pieces:
    """Return a part of the disk that lies in no file."""
    one = np.ones(1, dtype=np.int64)
    return Pieces(
        start * one,
        (stop - start) * one,
        np.array([content], dtype=np.uint8),
        np.array([-1], dtype=np.int32),
        -one,
        0 * one,
        np.zeros(1, dtype=np.int32),
    )


def _data_of(side: Side, piece: Pieces) -> list[tuple[int, int]]:
    """Return the guest offsets between which a part of a raw file has data, as the file system tells."""
    if piece.content[0] == Content.ZERO:
        return []
    file = side.sources.files[piece.source[0]].file
    position, shift = int(piece.offset[0]), int(piece.start[0] - piece.offset[0])
    end = position + int(piece.length[0])
    found = []
    while position < end:
        data, hole = file.next_data(position)
        if data >= end or hole <= position:
            break
        found.append((max(data, position) + shift, min(hole, end) + shift))
        position = hole
    return found


def _united(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    united: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(end, united[-1][1]))
        else:
            united.append((start, end))
    return united
