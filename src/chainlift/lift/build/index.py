"""Building an index: everything under an image as one table, which points into the layers' own files."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from chainlift.chain import Kind
from chainlift.chain.descriptor import check_name, descriptor_text
from chainlift.chain.linear import Extent
from chainlift.lift.build.copying import Copier
from chainlift.lift.build.extents import Seen
from chainlift.lift.build.free_space import require_room
from chainlift.lift.build.indexfile import PREAMBLE_BYTES, IndexFile, write_all
from chainlift.lift.build.merge import Fragments, Merger, Pieces, State
from chainlift.lift.record.pointer import backing_name
from chainlift.qcow2 import layout, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from chainlift.chain import Chain
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.files import ClusterFiles, SourceFile

#: Smaller clusters than this would make tables larger than they are worth; what lies finer is copied.
_MIN_CLUSTER: Final = 4096
_RAW_CLUSTER: Final = 65536
#: Up to here an index costs a request next to nothing (within 1.25x of a chain of length 1).
GENTLE_EXTENTS: Final = 32


class Place(Protocol):
    """Where an index is written: a workspace, or any directory that is ours alone."""

    path: Path

    def claim(self, kind: str) -> str:
        """Return a name that is free, without a suffix."""

    def new_file(self, name: str) -> AbstractContextManager[int]:
        """Make a file; its descriptor is open for reading and writing while the block lasts."""


@dataclass(frozen=True)
class BuiltIndex:
    """An index that lies in the workspace under its final names; nothing uses it yet."""

    table: str
    descriptor: str
    #: Name by which an overlay has it as its backing file.
    backing_name: str
    cluster_size: int
    #: Files in the linear space, the index's own included.
    extents: int
    copied_bytes: int
    #: Clusters of each file of the sources that can be seen.
    visible_clusters: list[int]


def index_cluster_size(chain: Chain) -> int:
    """Return the cluster size of an index over this chain, in bytes: the smallest of any layer, 4 KiB at least."""
    sizes = [layer.cluster_size for layer in chain.layers if layer.cluster_size is not None]
    size = max(_MIN_CLUSTER, min(sizes, default=_RAW_CLUSTER))
    while chain.virtual_size // (size * size // 8) * 8 >= layout.MAX_L1_BYTES:
        size *= 2
    return size


def least_room(chain: Chain) -> int:
    """Return bytes that an index takes at least, whatever its layers hold."""
    # Header, a table, both L1 tables, the snapshot's, refcount table and block; the text, the descriptor, the manifest.
    size = index_cluster_size(chain)
    return 8 * size + PREAMBLE_BYTES + 1024 * len(chain.layers)


def gentle_budget(visible: Sequence[int]) -> int:
    """Return how much of the smallest files must be copied so that :data:`GENTLE_EXTENTS` are left, the index's too.

    :param visible: bytes (or clusters) of each file that can be seen; the result has the same unit.
    """
    used = sorted(count for count in visible if count)
    return sum(used[: max(0, len(used) - (GENTLE_EXTENTS - 1))])


def build_index(
    chain: Chain,
    sources: ClusterFiles,
    descriptors: dict[str, int],
    workspace: Place,
    *,
    digests: Sequence[TablesDigest] | None = None,
    copy_budget_bytes: int = 0,
    most_extents: int | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> BuiltIndex:
    """Build the index of a chain.

    :param chain: everything under the image that is lifted.
    :param sources: its files.
    :param descriptors: an open file descriptor for each of them, by its path.
    :param digests: one for each layer, to take in what its tables say.
    :param copy_budget_bytes: how much of the smallest layers may be copied, so that they need no extent.
    :param most_extents: copy no more than it takes to be left with so many; None copies what the budget allows.
    :raise ImageError: if a layer's name cannot be written into a VMDK descriptor.
    """
    name = workspace.claim("index")
    builder = _Builder(chain, sources, descriptors, workspace.path, digests)
    with workspace.new_file(f"{name}.table") as table:
        builder.resolve(table)
        builder.plan(copy_budget_bytes, most_extents)
        # A name that cannot be carried is found before gigabytes are copied.
        text = descriptor_text(builder.extents(f"{name}.table"))
        require_room(workspace.path, builder.missing_bytes() + len(text))
        builder.write(rate_bytes_per_s, progress)
    with workspace.new_file(f"{name}.vmdk") as file:
        write_all(file, text.encode(errors="surrogateescape"), 0)
    return BuiltIndex(
        table=f"{name}.table",
        descriptor=f"{name}.vmdk",
        backing_name=backing_name(Path(os.path.realpath(workspace.path)) / f"{name}.vmdk"),
        cluster_size=builder.cluster_size,
        extents=1 + len(builder.kept),
        copied_bytes=builder.copied_clusters * builder.cluster_size,
        visible_clusters=builder.seen.visible.tolist(),
    )


@dataclass
class _Mixed:
    """Clusters that must be put together, in the order of the disk."""

    clusters: list[NDArray[np.int64]] = field(default_factory=list)
    fragments: list[Fragments] = field(default_factory=list)


class _Builder:
    """One build: first every file has a provisional place in the linear space, then those that are kept a final one."""

    def __init__(
        self,
        chain: Chain,
        sources: ClusterFiles,
        descriptors: dict[str, int],
        directory: Path,
        digests: Sequence[TablesDigest] | None,
    ) -> None:
        self.chain = chain
        self.sources = sources.files
        self._merger = Merger(chain, sources, index_cluster_size(chain), digests=digests)
        self.cluster_size = index_cluster_size(chain)
        self.copied_clusters = 0
        self.kept: list[int] = []
        self._fds = descriptors
        self._directory = Path(os.path.realpath(directory))
        #: Directories of layers, and what the descriptor has for them: looked up once each.
        self._prefix: dict[str, str] = {}
        size = self.cluster_size
        lengths = [-(-source.length // size) * size for source in self.sources]
        self._length = np.array(lengths, dtype=np.int64)
        # Offset 0 in an L2 entry means that there is nothing: no layer may begin there.
        self._provisional = size + np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(self._length)))
        self._mixed_base = int(self._provisional[-1])
        count = len(self.sources)
        self.seen = Seen.none(self.sources)
        self._zstd = self.seen.zstd
        self._mixed = _Mixed()
        self._mixed_count = 0
        self._is_absorbed = np.zeros(count, dtype=bool)
        self._use_zstd = False
        self._delta = np.zeros(count, dtype=np.int64)
        self._file: IndexFile

    def resolve(self, table: int) -> None:
        """First pass: every cluster that can be seen, with a provisional offset."""
        self._file = IndexFile(table, virtual_size=self.chain.virtual_size, cluster_size=self.cluster_size)
        per_table = self._file.entries_per_table
        current = -1
        entries = np.zeros(per_table, dtype=np.uint64)
        for pieces in self._merger.pieces():
            for first, values in self._entries(pieces):
                done = 0
                while done < len(values):
                    l1_index, column = divmod(first + done, per_table)
                    if l1_index != current:
                        if entries.any():
                            self._file.add_table(current, entries)
                        entries[:] = 0
                        current = l1_index
                    part = min(len(values) - done, per_table - column)
                    entries[column : column + part] = values[done : done + part]
                    done += part
        if entries.any():
            self._file.add_table(current, entries)

    def _entries(self, pieces: Pieces) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield guest cluster numbers and the provisional entries from there on, without the long holes."""
        size = self.cluster_size
        state, source, count = pieces.state, pieces.source, pieces.count
        pointed = (state == State.DATA) | (state == State.COMPRESSED)
        packed = state == State.COMPRESSED
        self.seen.add(pieces)
        value = np.zeros(len(pieces), dtype=np.uint64)
        value[state == State.ZERO] = layout.OFLAG_ZERO
        base = self._provisional[source]
        value[pointed] = (base + pieces.host_offset)[pointed].astype(np.uint64)
        if packed.any():
            place = (base + pieces.host_offset)[packed]
            bits = self._file.cluster_bits
            value[packed] = tables.compressed_entries(place, pieces.stored_bytes[packed].astype(np.int64), bits)
        mixed = state == State.MIXED
        if mixed.any():
            before = np.cumsum(count[mixed]) - count[mixed] + self._mixed_count
            value[mixed] = (self._mixed_base + before * size).astype(np.uint64)
            self._mixed_count += int(count[mixed].sum())
            self._mixed.clusters.append(expand(pieces.first[mixed], count[mixed]))
            self._mixed.fragments.append(pieces.fragments)
        step = np.where((state == State.DATA) | mixed, np.uint64(size), np.uint64(0))
        # One array for what lies together: a hole longer than a table divides.
        long_hole = (state == State.HOLE) & (count > self._file.entries_per_table)
        for chosen in np.split(np.arange(len(pieces)), np.flatnonzero(long_hole)):
            inside = chosen[1:] if len(chosen) and long_hole[chosen[0]] else chosen
            if len(inside):
                repeat = count[inside]
                within = np.arange(int(repeat.sum())) - np.repeat(np.cumsum(repeat) - repeat, repeat)
                yield (
                    int(pieces.first[inside[0]]),
                    np.repeat(value[inside], repeat) + np.repeat(step[inside], repeat) * within.astype(np.uint64),
                )

    def plan(self, copy_budget_bytes: int, most_extents: int | None) -> None:
        """Choose which layers become extents and where they lie: the one with the most visible clusters first."""
        chosen = self.seen.choose(self._mixed_count, copy_budget_bytes // self.cluster_size, most_extents)
        self._use_zstd = chosen.use_zstd
        self._file.use_zstd(self._use_zstd)
        self._is_absorbed = chosen.is_absorbed
        self.copied_clusters = chosen.copied_clusters
        self.kept = chosen.kept
        rest = int(self._length[self.kept].sum())
        place = self._file.size_with(self.copied_clusters, rest)
        for index in self.kept:
            self._delta[index] = place - int(self._provisional[index])
            place += int(self._length[index])

    def extents(self, table_name: str) -> list[Extent]:
        """Return the linear space, front to back."""
        rest = int(self._length[self.kept].sum())
        own = Extent(table_name, self._file.size_with(self.copied_clusters, rest), PREAMBLE_BYTES)
        kept = [Extent(self._name(index), int(self._length[index]), self.sources[index].base) for index in self.kept]
        return [own, *kept]

    def missing_bytes(self) -> int:
        """Return how much is still to be written: all but the tables of the first pass."""
        rest = int(self._length[self.kept].sum())
        return self._file.size_with(self.copied_clusters, rest) - self._file.tables * self.cluster_size

    def _name(self, index: int) -> str:
        """Return the name of a file in the descriptor: relative where it lies below the image's directory."""
        file = self.sources[index].file
        path = os.path.abspath(file.path)  # noqa: PTH100 - a device keeps the name it was given
        check_name(path)
        if file.is_block_device:
            return path
        if os.path.islink(path):  # noqa: PTH114 - any bytes
            path = os.path.realpath(path)
        directory, name = os.path.split(path)
        if directory not in self._prefix:
            self._prefix[directory] = self._named_in_descriptor(os.path.realpath(directory))
        path = self._prefix[directory] + name
        check_name(path)
        return path

    def _named_in_descriptor(self, directory: str) -> str:
        """Return what stands before the names of files in a directory."""
        parent = str(self._directory.parent)
        if os.path.commonpath((directory, parent)) == parent:
            directory = os.path.relpath(directory, self._directory)
        return "" if directory == "." else f"{directory.rstrip('/')}/"

    def write(self, rate_bytes_per_s: int | None, progress: Callable[[int], None] | None) -> None:
        """Second pass: copy what is to be copied, and write every table for good."""
        size = self.cluster_size
        self._next_copy = 0
        with Copier(self._file.fd, rate_bytes_per_s=rate_bytes_per_s, progress=progress) as copier:
            self._copier = copier
            clusters = np.concatenate([np.zeros(0, dtype=np.int64), *self._mixed.clusters])
            place = PREAMBLE_BYTES + self._file.copied_offset
            for fragments in self._mixed.fragments:
                copy_fragments(
                    self.sources, self._fds, fragments, copier,
                    lambda guest: place + int(np.searchsorted(clusters, guest // size)) * size + guest % size,
                )  # fmt: skip
            self._pad_mixed(clusters, place, copier)
            self._next_copy = len(clusters)
            rest = int(self._length[self.kept].sum())
            self._file.finish(self._translate, copied_clusters=self.copied_clusters, rest_bytes=rest)

    def _pad_mixed(self, clusters: NDArray[np.int64], place: int, copier: Copier) -> None:
        """Fill the last cluster where the disk ends inside it."""
        missing = -self.chain.virtual_size % self.cluster_size
        if missing and len(clusters) and int(clusters[-1]) == self.chain.virtual_size // self.cluster_size:
            end = place + len(clusters) * self.cluster_size
            copier.add(lambda: bytes(missing), 0, missing, end - missing)

    def _translate(self, entries: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Turn provisional entries into final ones; what a table has of absorbed layers is copied here."""
        bits = self._file.cluster_bits
        final = entries.copy()
        packed = (entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0
        offset = (entries & np.uint64(layout.L2E_OFFSET_MASK)).astype(np.int64)
        if packed.any():
            offset[packed] = tables.split_compressed(entries[packed], bits)[0]
        mixed = ~packed & (offset >= self._mixed_base)
        final[mixed] = (offset[mixed] + (self._file.copied_offset - self._mixed_base)).astype(np.uint64)
        pointed = np.flatnonzero((offset > 0) & ~mixed)
        layer = np.searchsorted(self._provisional, offset[pointed], side="right") - 1
        copied = self._is_absorbed[layer] | (packed[pointed] & (self._zstd[layer] != self._use_zstd))
        stay = pointed[~copied]
        final[stay] += self._delta[layer[~copied]].astype(np.uint64)
        for place, index in zip(pointed[copied].tolist(), layer[copied].tolist(), strict=True):
            final[place] = self._copy_cluster(
                index, int(offset[place]), entries[place : place + 1], bool(packed[place])
            )
        return final

    def _copy_cluster(self, index: int, offset: int, entry: NDArray[np.uint64], packed: bool) -> int:  # noqa: FBT001
        size = self.cluster_size
        linear = self._file.copied_offset + self._next_copy * size
        self._next_copy += 1
        source = self.sources[index]
        host = offset - int(self._provisional[index])
        destination = PREAMBLE_BYTES + linear
        if packed:
            stored = int(tables.split_compressed(entry, self._file.cluster_bits)[1][0])
            self._copier.add(lambda: source.read_compressed(host, stored), 0, size, destination)
        else:
            self._copier.add(self._fds[source.path], source.base + host, size, destination)
        return linear


def copy_fragments(
    sources: list[SourceFile],
    descriptors: dict[str, int],
    fragments: Fragments,
    copier: Copier,
    destination: Callable[[int], int],
) -> None:
    """Copy the parts of the disk that fragments stand for.

    :param destination: from a guest offset to the offset in the file that is written.
    """
    columns = (
        fragments.start, fragments.length, fragments.source, fragments.kind, fragments.host_offset,
        fragments.stored_bytes, fragments.skip,
    )  # fmt: skip
    for start, length, index, kind, host, stored, skip in zip(*(c.tolist() for c in columns), strict=True):
        place = destination(start)
        if kind == Kind.DATA:
            source = sources[index]
            copier.add(descriptors[source.path], source.base + host, length, place)
        elif kind == Kind.COMPRESSED:
            copier.add(_decompressor(sources[index], host, stored, skip, length), 0, length, place)
        else:
            copier.add(_zeros(length), 0, length, place)


def _decompressor(source: SourceFile, host: int, stored: int, skip: int, length: int) -> Callable[[], bytes]:
    return lambda: source.read_compressed(host, stored)[skip : skip + length]


def _zeros(length: int) -> Callable[[], bytes]:
    return lambda: bytes(length)


def expand(first: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every number of the ranges that begin at ``first`` and have ``count`` numbers."""
    begin = np.cumsum(count) - count
    return np.repeat(first - begin, count) + np.arange(int(count.sum()))
