"""The map of a chain, entry for entry what ``qemu-img map`` says.

The rules are those of ``get_block_status()``, ``entry_mergeable()`` and ``dump_map_entry()`` in QEMU's qemu-img.c, and
of ``bdrv_co_block_status()`` in block/io.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from chainlift.errors import ImageError, one_line
from chainlift.qcow2.layout import CryptMethod, Kind
from chainlift.qcow2.refcounts import has_preallocated_metadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from chainlift.chain.chain import Chain
    from chainlift.chain.window import Runs
    from chainlift.qcow2.file import ImageFile


#: Entries that exist as Python objects at a time: an object has ten times the size of its row in the arrays.
_ENTRIES_AT_ONCE = 1 << 15


class MapEntry(NamedTuple):
    """A piece of the disk that is all alike. Offsets and lengths are in bytes."""

    start: int
    length: int
    #: The layer that the answer comes from, 0 the active one.
    depth: int
    #: Whether a layer says something; where none does, ``depth`` is the last that was asked.
    present: bool
    zero: bool
    data: bool
    compressed: bool
    #: Where it begins in its file; None where there is no such place, or none that can be read as it is.
    offset: int | None
    #: That file, where there is an offset.
    filename: str | None


def map_chain(chain: Chain) -> Iterator[MapEntry]:
    """Yield the map of a chain's whole disk, merged as far as possible.

    :raise ImageError: if a table is malformed.
    """
    pieces = _Pieces(chain)
    pending: MapEntry | None = None
    for window in chain.resolve():
        for entries in pieces.entries(window.runs().split(chain.visible_sizes)):
            # Only the ends can be joined: within a window all is merged already.
            if pending is not None and _can_join(pending, entries[0]):
                entries[0] = entries[0]._replace(
                    start=pending.start, length=pending.length + entries[0].length, offset=pending.offset
                )
            elif pending is not None:
                yield pending
            pending = entries.pop()
            yield from entries
    if pending is not None:
        yield pending


def _can_join(left: MapEntry, right: MapEntry) -> bool:
    if left.offset is not None and (right.offset is None or left.offset + left.length != right.offset):
        return False
    return left[2:7] == right[2:7] and (left.offset is None) == (right.offset is None)


def map_json(entries: Iterable[MapEntry], *, with_compressed: bool = True) -> Iterator[str]:
    """Yield the text of ``qemu-img map --output=json``, line by line.

    :param with_compressed: say ``compressed``, as QEMU does since 8.2.
    """
    words = ("false", "true")
    end = "[{"
    last: tuple[int, bool, bool, bool, bool] | None = None
    middle = ""
    for start, length, depth, present, zero, data, compressed, offset, _ in entries:
        alike = (depth, present, zero, data, compressed)
        if alike != last:  # the greater part of the text is that of the entry before, more often than not
            last = alike
            middle = f'"depth": {depth}, "present": {words[present]}, "zero": {words[zero]}, "data": {words[data]}'
            if with_compressed:
                middle += f', "compressed": {words[compressed]}'
        place = "" if offset is None else f', "offset": {offset}'
        yield f'{end} "start": {start}, "length": {length}, {middle}{place}}}'
        end = ",\n{"
    yield "]\n" if last is not None else "[]\n"


def map_table(entries: Iterable[MapEntry], path: str) -> Iterator[str]:
    """Yield the table of ``qemu-img map``, line by line: what has data, and where.

    :param path: the active layer, for the error.
    :raise ImageError: if there is data without a place in a file, which the table has no way to say.
    """
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    for entry in entries:
        if entry.data and entry.offset is None:
            raise ImageError(
                "has compressed or encrypted clusters, which the table cannot show", path=path, hint="use --json"
            )
        if entry.data and not entry.zero:
            columns = (entry.start, entry.length, entry.offset or 0)
            text = "".join(f"{f'{value:#x}' if value else '0':<16}" for value in columns)
            yield f"{text}{one_line(entry.filename or '')}\n"


@dataclass(frozen=True)
class _Columns:
    """Entries as arrays, one element each."""

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    depth: NDArray[np.int64]
    present: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    data: NDArray[np.bool_]
    compressed: NDArray[np.bool_]
    #: -1 for none.
    offset: NDArray[np.int64]


class _Pieces:
    """Turns runs into entries, asking file systems for holes where QEMU does."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        #: Layers whose file has to be asked where data are holes.
        self._sparse: dict[int, bool] = {}
        self._extents = [_Extents(layer.data_file) for layer in chain.layers]
        self._encrypted = np.array(
            [
                layer.image is not None and layer.image.header.crypt_method is not CryptMethod.NONE
                for layer in chain.layers
            ]
        )
        self._files = [layer.data_file.path for layer in chain.layers]

    def entries(self, runs: Runs) -> Iterator[list[MapEntry]]:
        merged = _merge(self._with_holes(self._columns(runs)))
        for first in range(0, len(merged.start), _ENTRIES_AT_ONCE):
            yield self._as_entries(merged, slice(first, first + _ENTRIES_AT_ONCE))

    def _as_entries(self, columns: _Columns, rows: slice) -> list[MapEntry]:
        depths, offsets, files = columns.depth[rows].tolist(), columns.offset[rows].tolist(), self._files
        return list(map(MapEntry._make, zip(
            columns.start[rows].tolist(), columns.length[rows].tolist(), depths, columns.present[rows].tolist(),
            columns.zero[rows].tolist(), columns.data[rows].tolist(), columns.compressed[rows].tolist(),
            [None if offset < 0 else offset for offset in offsets],
            [None if offset < 0 else files[depth] for offset, depth in zip(offsets, depths, strict=True)],
            strict=True,
        )))  # fmt: skip

    def _columns(self, runs: Runs) -> _Columns:
        present = runs.layer >= 0
        compressed = runs.kind == Kind.COMPRESSED
        data = compressed | (runs.kind == Kind.DATA)
        depth = np.where(present, runs.layer, self._chain.fall_depth(runs.start))
        has_place = ~compressed & (runs.host_offset >= 0)
        if self._encrypted.any():
            has_place &= ~self._encrypted[depth]
        offset = np.where(has_place, runs.host_offset, -1)
        return _Columns(runs.start, runs.length, depth, present, ~data, data, compressed, offset)

    def _with_holes(self, columns: _Columns) -> _Columns:
        """Split data of raw layers, and of images with preallocated metadata, into data and holes."""
        asked = np.zeros(len(columns.start), dtype=bool)
        for depth in np.unique(columns.depth[columns.data]).tolist():
            if self._is_sparse(depth):
                asked |= (columns.depth == depth) & columns.data & (columns.offset >= 0)
        if not asked.any():
            return columns
        index: list[int] = []
        skip: list[int] = []
        is_hole: list[bool] = []
        for place in np.flatnonzero(asked).tolist():
            extents = self._extents[int(columns.depth[place])]
            for at, hole in extents.holes(int(columns.offset[place]), int(columns.length[place])):
                index.append(place)
                skip.append(at)
                is_hole.append(hole)
        whole = np.flatnonzero(~asked)
        source = np.concatenate((whole, np.array(index, dtype=np.int64)))
        extra = np.concatenate((np.zeros(len(whole), dtype=np.int64), np.array(skip, dtype=np.int64)))
        hole_of = np.concatenate((np.zeros(len(whole), dtype=bool), np.array(is_hole, dtype=bool)))
        start = columns.start[source] + extra
        order = np.argsort(start, kind="stable")
        source, extra, hole_of, start = source[order], extra[order], hole_of[order], start[order]
        is_raw = np.array([layer.image is None for layer in self._chain.layers])[columns.depth[source]]
        end = int(columns.start[-1] + columns.length[-1])
        return _Columns(
            start=start,
            length=np.diff(np.append(start, end)),
            depth=columns.depth[source],
            present=columns.present[source],
            zero=columns.zero[source] | hole_of,
            data=columns.data[source] & ~(hole_of & is_raw),
            compressed=columns.compressed[source],
            offset=np.where(columns.offset[source] >= 0, columns.offset[source] + extra, -1),
        )

    def _is_sparse(self, depth: int) -> bool:
        if depth not in self._sparse:
            image = self._chain.layers[depth].image
            self._sparse[depth] = image is None or has_preallocated_metadata(image)
        return self._sparse[depth]


class _Extents:
    """Where a file has data and where holes; what the file system answered last is remembered."""

    def __init__(self, file: ImageFile) -> None:
        self._file = file
        self._asked = self._begin = self._stop = -1

    def holes(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield where data (False) and holes (True) begin in a piece of the file; past its end is a hole."""
        position, end = offset, offset + length
        while position < end:
            begin, stop = self._next_data(position)
            if begin > position or begin >= stop:
                yield position - offset, True
                if begin >= stop:
                    return
                position = begin
            if position < end:
                yield position - offset, False
                position = stop

    def _next_data(self, position: int) -> tuple[int, int]:
        is_known = self._asked <= position and (position < self._stop or self._begin == self._stop)
        if not is_known or self._asked < 0:
            self._asked = position
            self._begin, self._stop = self._file.next_data(position)
        return max(position, self._begin) if self._begin < self._stop else self._begin, self._stop


def _merge(columns: _Columns) -> _Columns:
    """Join neighbours that are alike and, where they have a place, consecutive there."""
    flags = columns.depth * 16 + columns.present * 8 + columns.zero * 4 + columns.data * 2 + columns.compressed
    expected = np.where(columns.offset[:-1] >= 0, columns.offset[:-1] + columns.length[:-1], -1)
    joined = (flags[1:] == flags[:-1]) & (columns.offset[1:] == expected)
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.flatnonzero(~joined) + 1))
    return _Columns(
        columns.start[first], np.add.reduceat(columns.length, first), columns.depth[first], columns.present[first],
        columns.zero[first], columns.data[first], columns.compressed[first], columns.offset[first],
    )  # fmt: skip
