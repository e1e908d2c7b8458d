"""In what two snapshots differ: snapshots of one chain, or of chains that share what they stand on.

What both stand on is not looked at. All that lies above it on either side is, and nothing else can make a difference;
so the answer takes as long as the tables of the layers between the two, however long the chain is.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.chain import ChainPolicy, open_chain
from chainlift.chain.chain import Chain
from chainlift.errors import InputError
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.compare.ranges import Range, ranges_by_content, ranges_by_metadata
from chainlift.lift.compare.spans import Pair, Side, ignore
from chainlift.lift.neighbours.locks import LayerLocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from chainlift.chain import Layer

_DEFAULT_POLICY: Final = ChainPolicy()
_HINT: Final = "compare snapshots that nobody writes to: take a new one first"


@dataclass(frozen=True)
class Difference:
    """Two snapshots, open, and locked against writers as far as they are read."""

    #: The older one's chain.
    old: Chain
    #: The newer one's.
    new: Chain
    #: Layers of each that the other does not have.
    apart: tuple[int, int]
    #: Whether the content of layers may be read.
    is_content: bool
    #: An open file descriptor for each file that is locked, by its path.
    descriptors: dict[str, int]

    def ranges(self, progress: Callable[[int], None] | None = None) -> Iterator[Range]:
        """Yield the ranges of the newer disk in which it differs, in ascending order.

        A shorter older disk is taken to be followed by zeros. What a longer one has behind the end of the newer is in
        no range.

        :param progress: called with the bytes of the disk that are compared; only where content is.
        :return: the ranges; one that touches another differs from it in whether it is zero.
        :raise ImageError: if a layer is malformed or cannot be read.
        """
        end = self.new.virtual_size
        if self.is_content:
            return ranges_by_content(Pair(self.old, self.new, on_shared=ignore), end, progress)
        return ranges_by_metadata(self._pair(), end)

    def _pair(self) -> Pair:
        size = max(self.old.virtual_size, self.new.virtual_size)
        common = len(self.old.layers) - self.apart[0]
        if not common:  # what they share is behind an index: only whole chains can tell
            return Pair(Side(self.old, is_read=False), Side(self.new, is_read=False), size=size)
        older, newer = (_above(*side) for side in zip((self.old, self.new), self.apart, strict=True))
        return Pair(older, newer, size=size)


def _above(chain: Chain, apart: int) -> Side:
    # Of what is below, nothing is seen past the end of a shorter layer above.
    return Side(Chain(chain.layers[:apart]), below_bytes=int(chain.visible_sizes[apart]), is_read=False)


@contextmanager
def open_difference(
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    policy: ChainPolicy = _DEFAULT_POLICY,
    *,
    content: bool = False,
    export: bool = False,
) -> Iterator[Difference]:
    """Open two snapshots that are to be compared. Nothing is changed; use it as a context manager.

    >>> with open_difference("layer2.qcow2", "disk.qcow2") as difference:
    ...     for start, length, zero in difference.ranges():
    ...         print(start, length, zero)
    196608 131072 False
    655360 65536 False
    1507328 131072 False

    :param old: an image; its disk is the older one.
    :param new: an image of the same chain, or of one that shares a layer with it.
    :param policy: where their chains may lead.
    :param content: compare bytes, where metadata do not prove that they are the same.
    :param export: whether the newer one's content is wanted, by :func:`export_difference`: it is locked, too.
    :return: what tells the ranges, while the block lasts; nobody can write meanwhile to the layers that are looked at.
    :raise InputError: if the two have nothing in common.
    :raise PolicyError: if a chain leads where ``policy`` forbids.
    :raise ImageError: if one cannot be opened, or somebody writes to a layer that is looked at.
    """
    with open_chain(old, policy) as older, open_chain(new, policy) as newer:
        common = _common_layers(older, newer)
        if not common and not _share_files(older, newer):
            raise InputError(
                f"has no layer in common with {os.fspath(old)}",
                path=os.fspath(new),
                hint="name two snapshots of one chain, or of chains over the same base",
            )
        apart = (len(older.layers) - common, len(newer.layers) - common)
        locked: dict[str, Path] = {}
        for chain, count in ((older, apart[0]), (newer, len(newer.layers) if export else apart[1])):
            part = Chain(chain.layers if content else chain.layers[:count])
            locked |= files_of(part, ClusterFiles(part))
        with LayerLocks(locked, hint=_HINT) as locks:
            yield Difference(older, newer, apart, content, locks.descriptors)


def _common_layers(one: Chain, other: Chain) -> int:
    """Return how many layers at the bottom are the same files, opened in the same way."""
    count = 0
    for ours, theirs in zip(reversed(one.layers), reversed(other.layers), strict=False):
        if _key(ours) != _key(theirs):
            break
        count += 1
    return count


def _key(layer: Layer) -> tuple[object, ...]:
    return layer.file.identity, layer.data_file.identity, layer.format, layer.extents


def _share_files(one: Chain, other: Chain) -> bool:
    ours, theirs = ({file.file.identity for file in ClusterFiles(chain).files} for chain in (one, other))
    return not ours.isdisjoint(theirs)
