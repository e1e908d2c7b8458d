"""What deleting an image would free: what it holds, less what those that stand on it still need of it.

An image that is taken out of a chain leaves to the one above what that one reads of it. So what is freed is what nobody
above sees, and the image's own tables. Blocks that the file system shares between files are counted for each of them.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from chainlift.chain import open_chain
from chainlift.chain.names import Reference
from chainlift.chain.needs import RawData, held, needed_of, said
from chainlift.errors import ChainliftError
from chainlift.qcow2.mapping import TableReader, Tables, decode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from chainlift.chain import Chain, Layer
    from chainlift.lift.forest.scan import Forest, Node
    from chainlift.qcow2.mapping import Mapping

#: Units of an image that are looked at together: 21 bytes each.
_UNITS: Final = 1 << 18
#: Images that are kept open from being above to being below.
_KEPT_OPEN: Final = 64
#: Images whose files are not larger, and say something of not more units, are read once.
_SMALL_BYTES: Final = 4 << 20
_SMALL_UNITS: Final = 4096
#: Images above one that are looked at together.
_TOGETHER: Final = 32


class Frees:
    """Tells what deleting each image of a forest would free.

    :param forest: all that stands on an image must be in it.
    """

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        self._reader = TableReader()
        self._open: OrderedDict[str, Chain] = OrderedDict()
        #: What the tables of small images say that were read last, by their paths.
        self._small: OrderedDict[str, list[Mapping]] = OrderedDict()
        self._pointed_into = {identity for node in forest.nodes.values() for identity in node.extents}

    def of(self, node: Node) -> int | None:
        """Return the bytes; None where an image's tables cannot be read, or nothing is known of what is above.

        :param node: of the forest.
        """
        if node.identity in self._pointed_into:
            return 0
        above = self._forest.standing_on(node)
        if not above:
            return node.disk_bytes
        if node.format == "index":
            return 0
        try:
            needed = self._needed(node, above)
        except ChainliftError:
            return None
        return max(0, node.disk_bytes - needed)

    def close(self) -> None:
        """Close every image."""
        while self._open:
            self._open.popitem()[1].close()

    def _needed(self, node: Node, above: Sequence[Node]) -> int:
        """Return how much those above need, each for itself: they would all get a copy."""
        needed = 0
        # What an index above needs is in the files that it points into, and those stay.
        children = [one for one in above if one.format == "qcow2"]
        for first in range(0, len(children), _TOGETHER):
            layers = [self._layer(child) for child in children[first : first + _TOGETHER]]
            parent = self._layer(node)
            if node.format == "raw":
                for raw in RawData.of(parent):
                    begin, end = int(raw.starts[0]), int(raw.ends[-1])
                    needed += sum(raw.needed(child, self._units(child, begin, end)) for child in layers)
                continue
            unit = parent.unit_size
            assert unit is not None
            for mapping in self._mappings(parent):
                if len(data := held(mapping)):
                    begin, end = int(data.unit[0]) * unit, (int(data.unit[-1]) + 1) * unit
                    needed += sum(needed_of(data, parent, child, self._units(child, begin, end)) for child in layers)
        return needed

    def _layer(self, node: Node) -> Layer:
        """Return an image by itself, open."""
        chain = self._open.pop(node.path, None)
        if chain is None:
            chain = open_chain(Reference(node.path, node.format, follows_header=False))
            while len(self._open) >= _KEPT_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open[node.path] = chain
        return chain.layers[0]

    def _units(self, layer: Layer, begin: int, end: int) -> Iterator[NDArray[np.int64]]:
        """Yield the units of a part of the disk of which an image says something, some at a time."""
        for mapping in self._mappings(layer, begin, end):
            yield said(mapping)

    def _mappings(self, layer: Layer, begin: int = 0, end: int | None = None) -> Iterator[Mapping]:
        """Yield what an image's tables say of a part of its disk at least, a bounded number of units at a time."""
        if layer.path in self._small:
            yield from self._small[layer.path]
            return
        if layer.file.size > _SMALL_BYTES:
            yield from self._read(layer, begin, end)
            return
        # It is read once for the image below it and once for those above.
        found: list[Mapping] = []
        count = 0
        for mapping in self._read(layer, 0, None):
            count += len(mapping)
            if count <= _SMALL_UNITS:
                found.append(mapping)
            yield mapping
        if count <= _SMALL_UNITS:
            while len(self._small) >= _KEPT_OPEN:
                self._small.popitem(last=False)
            self._small[layer.path] = found

    def _read(self, layer: Layer, begin: int, end: int | None) -> Iterator[Mapping]:
        image = layer.image
        assert image is not None
        end = layer.virtual_size if end is None else min(end, layer.virtual_size)
        span = image.table_span
        most = max(1, _UNITS // (span // image.header.subcluster_size))
        tables, offsets = image.next_tables(begin // span, most)
        while len(tables) and int(tables[0]) * span < end:
            for _, entries in self._reader.read([Tables(0, image, tables, offsets, begin, end)]):
                yield decode([entries])
            tables, offsets = image.next_tables(int(tables[-1]) + 1, most)
