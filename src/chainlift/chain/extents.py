"""The map of a chain, entry for entry what ``qemu-img map`` says.

The rules are those of ``get_block_status()``, ``entry_mergeable()`` and ``dump_map_entry()`` in QEMU's qemu-img.c, and
of ``bdrv_co_block_status()`` in block/io.c.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from chainlift.errors import ImageError, one_line
from chainlift.qcow2.columns import Spans
from chainlift.qcow2.layout import CryptMethod, Kind
from chainlift.qcow2.refcounts import has_preallocated_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.chain.chain import Chain
    from chainlift.chain.window import Runs
    from chainlift.qcow2.file import ImageFile


#: Entries whose text exists at a time: some 130 bytes each.
_ENTRIES_AT_ONCE = 1 << 14
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class MapEntries(Spans):
    """Pieces of the disk, each all alike, in ascending order. Offsets and lengths are in bytes."""

    #: The layer that the answer comes from, 0 the active one.
    depth: NDArray[np.int64]
    #: Whether a layer says something; where none does, ``depth`` is the last that was asked.
    present: NDArray[np.bool_]
    zero: NDArray[np.bool_]
    data: NDArray[np.bool_]
    compressed: NDArray[np.bool_]
    #: Where it begins in the layer's data file; -1 where there is no such place, or none that can be read as it is.
    offset: NDArray[np.int64]


def map_chain(chain: Chain) -> Iterator[MapEntries]:
    """Yield the map of a chain's whole disk, some entries at a time, merged as far as possible.

    :raise ImageError: if a table is malformed.
    """
    mapper = _Mapper(chain)
    pending: MapEntries | None = None
    for window in chain.resolve():
        found = mapper.entries(window.runs().split(chain.visible_sizes))
        merged = _merge(found if pending is None else MapEntries.concatenate((pending, found)))
        # The last one may go on in the next window.
        pending = merged.take(slice(len(merged) - 1, None))
        for first in range(0, len(merged) - 1, _ENTRIES_AT_ONCE):
            yield merged.take(slice(first, min(first + _ENTRIES_AT_ONCE, len(merged) - 1)))
    if pending is not None:
        yield pending


def map_json(chain: Chain, *, with_compressed: bool = True) -> Iterator[str]:
    """Yield the text of ``qemu-img map --output=json``, many lines at a time.

    :param with_compressed: say ``compressed``, as QEMU does since 8.2.
    :raise ImageError: if a table is malformed.
    """
    begin = "["
    for entries in map_chain(chain):
        # The greater part of a line is one of few texts: what a depth and the flags say.
        key = entries.depth * 16 + entries.present * 8 + entries.zero * 4 + entries.data * 2 + entries.compressed
        keys = key.tolist()
        middle = {key: _json_middle(key, with_compressed=with_compressed) for key in set(keys)}
        rows = zip(entries.start.tolist(), entries.length.tolist(), keys, entries.offset.tolist(), strict=True)
        yield begin + ",\n".join([
            f'{{ "start": {start}, "length": {length}, {middle[key]}}}' if offset < 0 else
            f'{{ "start": {start}, "length": {length}, {middle[key]}, "offset": {offset}}}'
            for start, length, key, offset in rows
        ])  # fmt: skip
        begin = ",\n"
    yield "[]\n" if begin == "[" else "]\n"


def _json_middle(key: int, *, with_compressed: bool) -> str:
    names = ["present", "zero", "data", "compressed"] if with_compressed else ["present", "zero", "data"]
    flags = (f'"{name}": {"true" if key & bit else "false"}' for name, bit in zip(names, (8, 4, 2, 1), strict=False))
    return f'"depth": {key >> 4}, {", ".join(flags)}'


def map_table(chain: Chain) -> Iterator[str]:
    """Yield the table of ``qemu-img map``, line by line: what has data, and where.

    :raise ImageError: if a table is malformed, or there is data without a place in a file, which the table has no way
        to say.
    """
    yield f"{'Offset':<16}{'Length':<16}{'Mapped to':<16}File\n"
    files = [one_line(layer.data_file.path) for layer in chain.layers]
    for entries in map_chain(chain):
        nowhere = entries.data & (entries.offset < 0)
        end = int(nowhere.argmax()) if nowhere.any() else len(entries)
        shown = entries.take((entries.data & ~entries.zero)[:end].nonzero()[0])
        for start, length, offset, depth in zip(
            shown.start.tolist(), shown.length.tolist(), shown.offset.tolist(), shown.depth.tolist(), strict=True
        ):
            text = "".join(f"{f'{value:#x}' if value else '0':<16}" for value in (start, length, offset))
            yield f"{text}{files[depth]}\n"
        if end < len(entries):
            raise ImageError(
                "has compressed or encrypted clusters, which the table cannot show",
                path=chain.layers[0].path,
                hint="use --json",
            )


class _Mapper:
    """Turns runs into entries, asking file systems for holes where QEMU does."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        #: Layers whose file has to be asked where data are holes.
        self._sparse: dict[int, bool] = {}
        #: For each layer the hole in its file that was found last: where it begins and ends. A layer whose file is not
        #: to be asked has none.
        self._hole = np.full((len(chain.layers), 2), -1)
        self._is_raw = np.array([layer.image is None for layer in chain.layers])
        self._encrypted = np.array(
            [
                layer.image is not None and layer.image.header.crypt_method is not CryptMethod.NONE
                for layer in chain.layers
            ]
        )

    def entries(self, runs: Runs) -> MapEntries:
        """Return a piece of the disk's entries, in which neighbours may still be alike."""
        present = runs.layer >= 0
        compressed = runs.kind == Kind.COMPRESSED
        data = compressed | (runs.kind == Kind.DATA)
        depth = np.where(present, runs.layer, self._chain.fall_depth(runs.start))
        has_place = ~compressed & (runs.host_offset >= 0)
        if self._encrypted.any():
            has_place &= ~self._encrypted[depth]
        offset = np.where(has_place, runs.host_offset, -1)
        return self._with_holes(MapEntries(runs.start, runs.length, depth, present, ~data, data, compressed, offset))

    def _with_holes(self, entries: MapEntries) -> MapEntries:
        """Split data of raw layers, and of images with preallocated metadata, into data and holes."""
        placed = entries.data & (entries.offset >= 0)
        (asked,) = (placed & ~self._in_hole(entries)).nonzero()
        asked = asked[entries.depth[asked].argsort(kind="stable")]
        ends = np.append(np.diff(entries.depth[asked]).nonzero()[0] + 1, len(asked)).tolist()
        is_split = np.zeros(len(entries), dtype=bool)
        split: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]] = []
        for begin, end in zip([0, *ends], ends, strict=False):
            rows = asked[begin:end]
            if not len(rows) or not self._is_sparse(depth := int(entries.depth[rows[0]])):
                continue
            file = self._chain.layers[depth].data_file
            offset, length = entries.offset[rows], entries.length[rows]
            first = int(offset.min())
            data, hole = file.next_data(first)
            self._hole[depth] = first, data if data < hole else _NEVER
            if self._hole[depth, 1] < (offset + length).max():
                row, skip, is_hole = _split_at(_edges(file, data, hole, offset, offset + length), offset, length)
                split.append((rows[row], skip, is_hole))
                is_split[rows] = True
        is_hole = placed & self._in_hole(entries)
        if split:
            (whole,) = (~is_split).nonzero()
            split.append((whole, np.zeros(len(whole), dtype=np.int64), is_hole[whole]))
            row, skip, is_hole = (np.concatenate(parts) for parts in zip(*split, strict=True))
            order = (entries.start[row] + skip).argsort(kind="stable")
            disk_end = int(entries.start[-1] + entries.length[-1])
            entries, skip, is_hole = entries.take(row[order]), skip[order], is_hole[order]
            start = entries.start + skip
            offset = np.where(entries.offset >= 0, entries.offset + skip, -1)
            entries = replace(entries, start=start, length=np.diff(start, append=disk_end), offset=offset)
        data = entries.data & ~(is_hole & self._is_raw[entries.depth])
        return replace(entries, zero=entries.zero | is_hole, data=data)

    def _in_hole(self, entries: MapEntries) -> NDArray[np.bool_]:
        hole = self._hole[entries.depth]
        inside: NDArray[np.bool_] = (entries.offset >= hole[:, 0]) & (entries.offset + entries.length <= hole[:, 1])
        return inside

    def _is_sparse(self, depth: int) -> bool:
        if depth not in self._sparse:
            image = self._chain.layers[depth].image
            self._sparse[depth] = image is None or has_preallocated_metadata(image)
        return self._sparse[depth]


def _edges(
    file: ImageFile, data: int, hole: int, begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return where data begin and end in a file, in turn, as far as pieces of it are concerned.

    The file system is asked once for each of its extents that a piece touches, whatever the number of pieces.

    :param data: where the first data begin at or after the first piece, in bytes.
    :param hole: where these end.
    """
    edges = array("q")
    order = begin.argsort(kind="stable")
    begin, furthest = begin[order], np.maximum.accumulate(end[order])
    while data < hole:
        if edges and edges[-1] == data:
            edges.pop()
        else:
            edges.append(data)
        edges.append(hole)
        following = int(furthest.searchsorted(hole, side="right"))
        if following == len(begin):
            break
        data, hole = file.next_data(max(hole, int(begin[following])))
    return np.array(edges, dtype=np.int64)


def _split_at(
    edges: NDArray[np.int64], offset: NDArray[np.int64], length: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Split pieces of a file at the edges of data.

    :return: of the parts, those of a piece after each other: the piece's index, the bytes between the piece's beginning
        and the part's, and whether it is a hole.
    """
    # What begins at an even number of edges is a hole.
    first, last = edges.searchsorted(offset, side="right"), edges.searchsorted(offset + length, side="left")
    count = last - first + 1
    row = np.arange(len(offset)).repeat(count)
    nth = np.arange(len(row)) - (count.cumsum() - count).repeat(count)
    passed = first[row] + nth
    skip = np.where(nth == 0, 0, np.append(0, edges)[passed] - offset[row])
    return row, skip, passed % 2 == 0


def _merge(entries: MapEntries) -> MapEntries:
    """Join neighbours that are alike and, where they have a place, consecutive there."""
    before, after = entries.take(slice(0, -1)), entries.take(slice(1, None))
    joined = after.offset == np.where(before.offset >= 0, before.offset + before.length, -1)
    for left, right in zip(before.columns()[2:7], after.columns()[2:7], strict=True):
        joined &= left == right
    first = np.append(0, (~joined).nonzero()[0] + 1)
    return replace(entries.take(first), length=np.add.reduceat(entries.length, first))
