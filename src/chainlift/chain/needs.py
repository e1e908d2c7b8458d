"""What the layer above needs of a layer: of what that holds, all that the one above does not have itself.

A snapshot that is taken out of a chain leaves it that, so deleting the snapshot frees the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.qcow2.layout import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.chain.layer import Layer
    from chainlift.qcow2.mapping import Mapping

#: Extents of a raw file that are looked at together.
_EXTENTS: Final = 1 << 16


def said(mapping: Mapping) -> NDArray[np.int64]:
    """Return the units that a layer reads from itself: data and zeros."""
    units: NDArray[np.int64] = mapping.unit[mapping.kind != Kind.UNALLOCATED]
    return units


def held(mapping: Mapping) -> Mapping:
    """Return the units that have content."""
    return mapping.take((mapping.kind == Kind.DATA) | (mapping.kind == Kind.COMPRESSED))


def needed_of(data: Mapping, layer: Layer, above: Layer, units: Iterable[NDArray[np.int64]]) -> int:
    """Return how many bytes of a qcow2 layer the one above reads from there.

    :param data: some units of the layer, from :func:`held`; at least one.
    :param units: those of the layer above, from :func:`said`, as far as they lie in the same part of the disk.
    """
    unit, size = layer.unit_size, above.unit_size
    assert unit is not None
    assert size is not None
    covered = np.zeros(len(data), dtype=np.int64)
    for found in units:
        if not len(found):
            continue
        if size >= unit:
            wanted = data.unit // (size // unit)
            place = np.minimum(found.searchsorted(wanted), len(found) - 1)
            covered[found[place] == wanted] = unit
        else:
            wanted = found // (unit // size)
            place = np.minimum(data.unit.searchsorted(wanted), len(data) - 1)
            covered += np.bincount(place[data.unit[place] == wanted], minlength=len(data)) * size
    covered[data.unit * unit >= min(layer.virtual_size, above.virtual_size)] = unit
    stored = np.where(data.kind == Kind.COMPRESSED, data.stored_bytes, unit)
    return int((stored * (unit - np.minimum(covered, unit)) // unit).sum())


class RawData:
    """Where a part of a raw layer has data.

    :param starts: where they begin, in bytes, ascending; at least one.
    :param ends: where they end.
    """

    def __init__(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.starts, self.ends = starts, ends

    @classmethod
    def of(cls, layer: Layer) -> Iterator[RawData]:
        """Yield where a raw layer has data, as the file system tells, some extents at a time."""
        position = 0
        found: list[tuple[int, int]] = []
        while position < layer.file.size:
            data, hole = layer.file.next_data(position)
            if data >= hole:
                break
            found.append((data, hole))
            position = hole
            if len(found) == _EXTENTS:
                yield cls(*np.array(found, dtype=np.int64).T)
                found = []
        if found:
            yield cls(*np.array(found, dtype=np.int64).T)

    def needed(self, above: Layer, units: Iterable[NDArray[np.int64]]) -> int:
        """Return how many bytes of it the layer above reads from there; parameters as :func:`needed_of`."""
        starts, ends = (np.minimum(edges, above.virtual_size) for edges in (self.starts, self.ends))
        return int((ends - starts).sum()) - sum(self.covered(above, found) for found in units)

    def covered(self, above: Layer, units: NDArray[np.int64]) -> int:
        """Return how many bytes of it lie under some units of the layer above."""
        size = above.unit_size
        assert size is not None
        starts, ends = (np.minimum(edges, above.virtual_size) for edges in (self.starts, self.ends))
        before = np.append(0, np.cumsum(ends - starts))

        def data_before(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
            row = starts.searchsorted(offsets, side="right") - 1
            inside = np.clip(offsets - starts[row], 0, ends[row] - starts[row])
            return np.where(row < 0, 0, before[row] + inside)

        return int((data_before((units + 1) * size) - data_before(units * size)).sum())


class Needs:
    """Finds what each layer of a chain is needed for by the one above, while the chain is resolved from the top down.

    :param layers: of the chain, the active one first.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers
        #: Bytes that the layer above each reads from it.
        self.needed_bytes = [0] * len(layers)
        #: For each layer a thing to take in what its tables say.
        self.takers = [_Taker(self, depth) for depth in range(len(layers))]
        #: Units of the window that is being resolved, of the layer that is read and the one above.
        self._units: dict[int, list[NDArray[np.int64]]] = {}
        base = layers[-1]
        self._raw = list(RawData.of(base)) if base.image is None and len(layers) > 1 else []
        for data in self._raw:
            self.needed_bytes[-1] += data.needed(layers[-2], ())

    def next_window(self) -> None:
        """Begin another part of the disk."""
        self._units.clear()

    def take(self, depth: int, mapping: Mapping, fresh: Mapping) -> None:
        """Take in what some of a layer's tables say; all that the layer above says was taken in before.

        :param fresh: what of it was in no earlier window.
        """
        if depth not in self._units:
            self._units = {depth - 1: self._units.get(depth - 1, []), depth: []}
        self._units[depth].append(said(mapping))
        layer = self._layers[depth]
        if depth and len(data := held(fresh)):
            self.needed_bytes[depth] += needed_of(data, layer, self._layers[depth - 1], self._units[depth - 1])
        if depth == len(self._layers) - 2:
            for part in self._raw:
                self.needed_bytes[-1] -= part.covered(layer, said(fresh))


class _Taker:
    """Takes in one layer's tables; windows may overlap, and a unit counts once."""

    def __init__(self, needs: Needs, depth: int) -> None:
        self._needs = needs
        self._depth = depth
        self._next_unit = 0

    def add(self, mapping: Mapping) -> None:
        if len(mapping):
            fresh = mapping.take(slice(int(np.searchsorted(mapping.unit, self._next_unit)), None))
            self._next_unit = max(self._next_unit, int(mapping.unit[-1]) + 1)
            self._needs.take(self._depth, mapping, fresh)
