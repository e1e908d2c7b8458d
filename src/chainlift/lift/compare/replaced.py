"""Kept layers that were written anew, compared with what they were: by stock QEMU, before one takes the other's place.

One storage daemon opens the chain as it will be, and of the chain as it is the layers that go, each stretch of them
over what it will stand on: the lowest first, so that what a comparison stands on has been compared. What is provably
the same bytes of the same files is not read; all else is read by QEMU from the new file and by our own reader from the
old ones, and a sample of that by QEMU from both.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from chainlift.chain import Chain, open_chain
from chainlift.chain.layer import Layer
from chainlift.chain.names import Reference
from chainlift.errors import AnswerIsNo, QemuCrashed, QemuError
from chainlift.lift.build.copying import can_read_direct
from chainlift.lift.build.replacement import is_apart
from chainlift.lift.compare.content import PieceReader, difference
from chainlift.lift.compare.daemon import ReadingDaemon
from chainlift.lift.compare.sample import PIECE_BYTES, Lot, disjoint
from chainlift.lift.compare.spans import Content, Pair
from chainlift.lift.compare.stock import MOST_LAYERS, filling
from chainlift.qcow2.file import ImageFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from chainlift.lift.build.replacement import Merge
    from chainlift.lift.compare.content import Fill
    from chainlift.lift.compare.spans import Pieces, Side
    from chainlift.qemu.binary import Qemu

#: Pieces of a sample over all layers that were written anew, and the least of each.
_SAMPLE: Final = 512
_LEAST: Final = 16
_MOST_ENDS: Final = 16
#: Of a node's cache of L2 tables, in bytes: hundreds of nodes are read here and there.
_CACHE_BYTES: Final = 1 << 18
#: Layers that one command opens: each takes a part of QEMU's stack until all are open.
_AT_ONCE: Final = 32


#: The new file was written past the page cache, and what is read of it is what the disk has.
_DIRECT: Final = {"cache": {"direct": True}, "aio": "native"}


@dataclass(frozen=True)
class Replacement:
    """A kept layer that was written anew."""

    merge: Merge
    #: The new file, under the name that it has so far.
    file: Path


def compare_replacements(
    qemu: Qemu,
    chain: Chain,
    merges: Sequence[Merge],
    replacements: Iterable[Replacement],
    *,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Compare every new file, over what it will stand on, with what the layer that it replaces reads.

    :param qemu: whose storage daemon reads.
    :param chain: as it is, open; nobody writes to what is compared.
    :param merges: all that are made, the uppermost first.
    :param replacements: the new files, the lowest first: they may come while others are written.
    :param progress: called with the bytes of the disk that are compared, or need not be.
    :raise AnswerIsNo: naming the first byte that differs.
    :raise QemuError: if QEMU cannot open or read what was written.
    :raise MissingToolError: if this QEMU has no storage daemon.
    """
    if not merges:
        return
    number = merges[-1].onto
    pieces = max(_LEAST, _SAMPLE // len(merges))
    with ReadingDaemon(qemu) as daemon:
        below, depth = "below", len(chain.layers) - number
        daemon.add(_node_below(chain, number, merges, below))
        for replacement in replacements:
            merge = replacement.merge
            for kept in range(number - 1, merge.onto - 1, -1):
                daemon.add({**_node(chain.layers[kept], f"kept{kept}"), "backing": below})
                below, depth = f"kept{kept}", depth + 1
            depth += 1
            opened = _open_both(daemon, chain, replacement, below)
            try:
                _compare(daemon, chain, replacement, depth, pieces, progress)
            except QemuError as error:
                raise daemon.explain(error) from error
            below, number = f"new{merge.into}", merge.into
            for name in opened:
                daemon.remove(name)


def _node_below(chain: Chain, number: int, merges: Sequence[Merge], name: str) -> dict[str, Any]:
    """Return the layer that lies under all changes, opened as its header says.

    Where nothing below it has a say, that is left to when the new files are in their places: opening it takes as long
    as all the rest.
    """
    node = _node(chain.layers[number], name)
    alone = number + 1 < len(chain.layers) and all(is_apart(chain, merge) for merge in merges)
    return {**node, "backing": None} if alone else node


def _open_both(daemon: ReadingDaemon, chain: Chain, replacement: Replacement, below: str) -> list[str]:
    """Open a layer as it is and as it will be, over what it will stand on.

    :return: the nodes to remove, in this order, when the new one is to be all that is left.
    """
    merge = replacement.merge
    opened: list[str] = []
    old: dict[str, Any] | str = below
    for number in range(merge.onto - 1, merge.into - 1, -1):
        old = {**_node(chain.layers[number], f"old{number}"), "backing": old}
        # With a layer go those below it that came with it.
        if (merge.onto - number) % _AT_ONCE == 0 or number == merge.into:
            daemon.add(old)
            old = f"old{number}"
            opened.insert(0, old)
    name, cache = f"new{merge.into}", _cache(chain.layers[merge.into])
    node = {"driver": "qcow2", "node-name": name, "read-only": True, "backing": below, **cache}
    file = {"driver": "file", "read-only": True, "filename": str(replacement.file)}
    if can_read_direct(replacement.file):
        with suppress(QemuError):  # a QEMU that was built without
            daemon.add({**node, "file": {**file, **_DIRECT}})
            return opened
    try:
        daemon.add({**node, "file": file})
    except QemuCrashed:
        raise
    except QemuError as error:
        raise QemuError(f"what was written cannot be opened by QEMU: {error.what}", path=replacement.file) from error
    return opened


def _node(layer: Layer, name: str) -> dict[str, Any]:
    path = os.path.abspath(layer.path)  # noqa: PTH100 - links in the name stay
    driver = "host_device" if layer.file.is_block_device else "file"
    file = {"driver": driver, "read-only": True, "filename": path}
    return {"driver": layer.format, "node-name": name, "read-only": True, "file": file, **_cache(layer)}


def _cache(layer: Layer) -> dict[str, int]:
    """Return options for a small cache of tables, read a little at a time."""
    if layer.cluster_size is None:
        return {}
    return {"l2-cache-size": _CACHE_BYTES, "l2-cache-entry-size": min(4096, layer.cluster_size)}


def _compare(
    daemon: ReadingDaemon,
    chain: Chain,
    replacement: Replacement,
    depth: int,
    most_pieces: int,
    progress: Callable[[int], None] | None,
) -> None:
    merge, path = replacement.merge, chain.layers[replacement.merge.into].path
    with ExitStack() as stack:
        new = stack.enter_context(open_chain(Reference(str(replacement.file), "qcow2", follows_header=False)))
        seen = Lot(np.random.default_rng(merge.into), most_pieces)

        def draw(pieces: Pieces) -> None:
            seen.add(pieces.start, pieces.length)

        pair = stack.enter_context(_pair(chain, merge, new, on_shared=draw))
        ours = PieceReader(pair.one)
        fill_new: Fill = PieceReader(pair.other).fill
        # More layers than that are read by no stock QEMU: see MOST_LAYERS.
        by_stock = depth + len(merge.going) <= MOST_LAYERS
        if by_stock:
            new_client = stack.enter_context(daemon.connect(f"new{merge.into}"))
            fill_new = filling(new_client)

        def fill_old(buffer: memoryview, pieces: Pieces) -> None:
            draw(pieces)
            ours.fill(buffer, pieces)

        at = difference(pair, fill_old, fill_new, progress, ahead=by_stock)
        if at is not None:
            raise _differs(path, at)
        if by_stock:
            old_client = stack.enter_context(daemon.connect(f"old{merge.into}"))
            ends = [end - PIECE_BYTES // 2 for end in set(pair.one.chain.visible_sizes.tolist()) if end < pair.size]
            for offset, length in disjoint([0, pair.size - PIECE_BYTES, *ends[:_MOST_ENDS]], seen.drawn(), pair.size):
                before, after = old_client.read(offset, length), new_client.read(offset, length)
                if before != after:
                    raise _differs(path, offset + next(i for i in range(length) if before[i] != after[i]))


@contextmanager
def _pair(chain: Chain, merge: Merge, new: Chain, *, on_shared: Callable[[Pieces], None]) -> Iterator[Pair]:
    """Give the kept layer as it is and as it will be; where that suffices, one file stands for all that lies below."""
    before = chain.layers[merge.into : merge.onto]
    if not is_apart(chain, merge):
        after = Chain((*new.layers, *chain.layers[merge.onto :]))
        yield Pair(Chain(chain.layers[merge.into :]), after, on_shared=on_shared)
        return
    # What falls through to the layer below must do so on both sides, whatever that reads there.
    descriptor = os.memfd_create("below")
    try:
        os.ftruncate(descriptor, chain.layers[merge.onto].virtual_size)
        path = f"/proc/self/fd/{descriptor}"
        file = ImageFile(path)
        under = Layer(path, "raw", file, None, probed=False, backing_name=None, backing_format=None,
                      reference=Reference(path, "raw"))  # fmt: skip
        try:
            yield _PairApart(Chain((*before, under)), Chain((*new.layers, under)), on_shared=on_shared)
        finally:
            file.close()
    finally:
        os.close(descriptor)


class _PairApart(Pair):
    """A pair over one file, the last of either side, that stands for all that lies below."""

    def pieces(self) -> Iterator[tuple[Pieces, Pieces]]:
        """Yield both disks, cut at the same places.

        :raise AnswerIsNo: where one side falls through to what lies below and the other does not.
        """
        for one, other in super().pieces():
            differs = _falls(self.one, one) != _falls(self.other, other)
            if differs.any():
                raise _differs(self.one.chain.layers[0].path, int(one.start[int(differs.argmax())]))
            yield one, other


def _falls(side: Side, pieces: Pieces) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (pieces.content == Content.PLAIN) & (pieces.source == len(side.sources.files) - 1)
    return found


def _differs(path: str, at: int) -> AnswerIsNo:
    return AnswerIsNo(
        f"would read differently at byte {at} of the disk when the layers below it are merged into it; nothing was "
        "changed",
        path=path,
        hint="report this",
    )
