"""What a lift makes of a chain's windows: pieces of whole clusters, each to be pointed at, copied or left out.

Windows have the granularity of the chain and are cut where layers end; the tables of an index, a squash or a flattened
image have clusters. A cluster that comes from one place in one file is a piece that can be pointed at (or copied in one
go); one that is put together from several is known by its fragments.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from chainlift.chain import Kind
from chainlift.qcow2.columns import Spans

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from chainlift.chain import Chain, Window
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.files import ClusterFiles, SourceFile

#: Clusters in a piece at most: what is expanded to one element a cluster stays small.
_MAX_PIECE = 1 << 20


class State(IntEnum):
    """What becomes of a piece's clusters."""

    #: Nothing: what lies below answers, or zeros.
    HOLE = 0
    #: Reads as zeros.
    ZERO = 1
    #: Consecutive clusters of one file, aligned to clusters there.
    DATA = 2
    #: One compressed cluster of the same size.
    COMPRESSED = 3
    #: Put together from fragments.
    MIXED = 4


@dataclass(frozen=True)
class Fragments(Spans):
    """Parts of the disk, in ascending order; arrays as in :class:`~chainlift.chain.window.Runs`."""

    #: Index into the chain's layers, -1 for none.
    layer: NDArray[np.int32]
    #: Index into the files of :class:`~chainlift.lift.build.files.ClusterFiles`, -1 for none.
    source: NDArray[np.int32]
    kind: NDArray[np.uint8]
    host_offset: NDArray[np.int64]
    stored_bytes: NDArray[np.int32]
    #: Bytes between the beginning of a COMPRESSED fragment's cluster and the fragment.
    skip: NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Consecutive pieces of the disk, without gaps; the arrays have one element a piece."""

    #: Guest cluster number of the first cluster.
    first: NDArray[np.int64]
    #: Clusters.
    count: NDArray[np.int64]
    #: :class:`State`, uint8.
    state: NDArray[np.uint8]
    #: Index into the files of the sources, where the state is DATA or COMPRESSED.
    source: NDArray[np.int32]
    host_offset: NDArray[np.int64]
    stored_bytes: NDArray[np.int32]
    #: What the MIXED pieces are made of, cut to them.
    fragments: Fragments

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class LayersBelow:
    """Layers that a squash leaves where they are.

    :param layer: the first one, as an index into the chain.
    :param hidden_from: guest offset in bytes from which on they cannot be seen, because a squashed layer ends there.
    """

    layer: int
    hidden_from: int


class Merger:
    """Turns windows into pieces.

    :param chain: the chain.
    :param sources: the files of that chain.
    :param cluster_size: of what is written, in bytes, a power of two, at least a sector.
    :param below: layers that are not merged: their clusters are holes.
    :param sparse: what is a hole in the file of a raw layer reads as zeros and is no data.
    :param digests: None, or one for each layer, to take in what its tables say.
    """

    def __init__(
        self,
        chain: Chain,
        sources: ClusterFiles,
        cluster_size: int,
        *,
        below: LayersBelow | None = None,
        sparse: bool = False,
        digests: Sequence[TablesDigest] | None = None,
    ) -> None:
        self._chain = chain
        self._digests = digests
        self._size = cluster_size
        self._below = below
        self._sparse = sparse
        self._sources = sources
        self._cluster_of_source = np.array([file.cluster_size for file in sources.files], dtype=np.int64)

    def pieces(self) -> Iterator[Pieces]:
        """Yield the pieces of the whole disk, in ascending order; the last cluster may reach beyond its end."""
        carried: Fragments | None = None
        for window, resolved in self._windows():
            found = resolved if carried is None else _join(Fragments.concatenate([carried, resolved]))
            last = window.end == self._chain.virtual_size
            end = window.end if last else window.end // self._size * self._size
            chosen, carried = (found, None) if last else _split(found, end)
            if len(chosen):
                yield self._pieces(chosen, -(-end // self._size) * self._size)

    def fragments(self) -> Iterator[Fragments]:
        """Yield the whole disk as it is resolved, without regard to clusters."""
        for _, found in self._windows():
            yield found

    def _windows(self) -> Iterator[tuple[Window, Fragments]]:
        for window in self._chain.resolve(digests=self._digests):
            found = self._fragments(window)
            yield window, self._without_holes(found) if self._sparse else found

    def _without_holes(self, parts: Fragments) -> Fragments:
        """Split what comes from raw files into data and holes, as the file system tells."""
        is_raw = np.array([file.cluster_size == 0 for file in self._sources.files], dtype=bool)
        raw = (parts.kind == Kind.DATA) & is_raw[parts.source]
        if not raw.any():
            return parts
        found: list[Fragments] = []
        done = 0
        for place in np.flatnonzero(raw).tolist():
            found.append(parts.take(slice(done, place)))
            found += _data_and_holes(parts.take(slice(place, place + 1)), self._sources.files[parts.source[place]])
            done = place + 1
        found.append(parts.take(slice(done, None)))
        return Fragments.concatenate(found)

    def _fragments(self, window: Window) -> Fragments:
        runs = window.runs()
        source = self._sources.of_layers(runs.layer)
        skip = np.zeros(len(runs), dtype=np.int64)
        compressed = runs.kind == Kind.COMPRESSED
        skip[compressed] = runs.start[compressed] % self._cluster_of_source[source[compressed]]
        found = Fragments(
            runs.start, runs.length, runs.layer, source, runs.kind, runs.host_offset, runs.stored_bytes, skip
        )
        for layer in self._sources.linear_layers:
            found = self._through_index(found, layer)
        return found

    def _through_index(self, parts: Fragments, layer: int) -> Fragments:
        """Replace offsets in an index's linear space by those in the files it points into."""
        packed = parts.kind == Kind.COMPRESSED
        chosen = np.flatnonzero((parts.layer == layer) & ((parts.kind == Kind.DATA) | packed))
        # A compressed cluster's stream lies in one extent, whatever part of the cluster the fragment is.
        length = np.where(packed[chosen], 1, parts.length[chosen])
        part, source, host, part_length = self._sources.place(layer, parts.host_offset[chosen], length)
        times = np.ones(len(parts), dtype=np.int64)
        times[chosen] = np.bincount(part, minlength=len(chosen))
        cut = parts.take(np.repeat(np.arange(len(parts)), times))
        where = np.flatnonzero(np.repeat(np.isin(np.arange(len(parts)), chosen), times))
        cut.source[where] = source
        cut.host_offset[where] = host
        data = where[cut.kind[where] == Kind.DATA]
        cut.length[data] = part_length[cut.kind[where] == Kind.DATA]
        # Pieces of one fragment follow each other.
        again = np.flatnonzero(np.repeat(times > 1, times))
        if len(again):
            offset = np.cumsum(cut.length) - cut.length
            cut.start[again] = cut.start[0] + offset[again]
        return cut

    def _states(self, parts: Fragments) -> NDArray[np.uint8]:
        kind = parts.kind
        state = np.full(len(parts), State.HOLE, dtype=np.uint8)
        state[(kind == Kind.ZERO_PLAIN) | (kind == Kind.ZERO_ALLOC)] = State.ZERO
        state[kind == Kind.DATA] = State.DATA
        state[kind == Kind.COMPRESSED] = State.COMPRESSED
        if self._below is not None:
            state[parts.layer >= self._below.layer] = State.HOLE
            nothing = (kind == Kind.UNALLOCATED) & (parts.layer < 0)
            state[nothing & (parts.start >= self._below.hidden_from)] = State.ZERO
        return state

    def _pieces(self, parts: Fragments, end: int) -> Pieces:
        """Make pieces of fragments that begin at a cluster and end at one, or at the end of the disk."""
        size = self._size
        state = self._states(parts)
        stop = parts.start + parts.length
        stop[-1] = end  # past the disk's end nobody looks
        first, last = -(-parts.start // size), stop // size
        whole = np.flatnonzero(last > first)
        host = parts.host_offset[whole] + first[whole] * size - parts.start[whole]
        whole_state = state[whole]
        unaligned = (whole_state == State.DATA) & (host % size != 0)
        packed = whole_state == State.COMPRESSED
        complete = (
            (parts.start[whole] % size == 0)
            & (stop[whole] - parts.start[whole] == size)
            & (self._cluster_of_source[parts.source[whole]] == size)
        )
        whole_state[unaligned | (packed & ~complete)] = State.MIXED
        host[packed] = parts.host_offset[whole][packed]
        host[(whole_state == State.HOLE) | (whole_state == State.ZERO)] = -1
        broken, broken_state = self._broken(parts, state, stop)
        pieces_first = np.concatenate((first[whole], broken))
        order = np.argsort(pieces_first, kind="stable")
        nothing = np.full(len(broken), -1, dtype=np.int64)
        found = _limited(
            pieces_first[order],
            np.concatenate((last[whole] - first[whole], np.ones(len(broken), dtype=np.int64)))[order],
            np.concatenate((whole_state, broken_state))[order],
            np.concatenate((parts.source[whole], nothing.astype(np.int32)))[order],
            np.concatenate((host, nothing))[order],
            np.concatenate((parts.stored_bytes[whole], np.zeros(len(broken), dtype=np.int32)))[order],
            size,
        )
        return Pieces(*found, self._mixed_fragments(parts, stop, found))

    def _broken(
        self, parts: Fragments, state: NDArray[np.uint8], stop: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Return the clusters that no fragment covers alone, and their states."""
        size = self._size
        at_start, at_end = parts.start % size != 0, stop % size != 0
        touched = np.concatenate((parts.start[at_start] // size, stop[at_end] // size))
        bits = np.concatenate((np.uint8(1) << state[at_start], np.uint8(1) << state[at_end]))
        clusters, place = np.unique(touched, return_inverse=True)
        seen = np.zeros(len(clusters), dtype=np.uint8)
        np.bitwise_or.at(seen, place, bits)
        hole, zero = np.uint8(1 << State.HOLE), np.uint8(1 << State.ZERO)
        result = np.full(len(clusters), State.MIXED, dtype=np.uint8)
        result[seen == hole] = State.HOLE
        result[seen == zero] = State.ZERO
        if self._below is None:
            result[seen == hole | zero] = State.ZERO
        return clusters, result

    def _mixed_fragments(self, parts: Fragments, stop: NDArray[np.int64], found: tuple[NDArray[Any], ...]) -> Fragments:
        first, count, state = found[:3]
        mixed = state == State.MIXED
        begin, end = first[mixed] * self._size, (first[mixed] + count[mixed]) * self._size
        # Each mixed piece overlaps the fragments low to high - 1.
        low = np.searchsorted(stop, begin, side="right")
        high = np.searchsorted(parts.start, end, side="left")
        lengths = high - low
        index = np.repeat(low - np.cumsum(lengths) + lengths, lengths) + np.arange(int(lengths.sum()))
        cut = parts.take(index)
        begin, end = np.repeat(begin, lengths), np.repeat(end, lengths)
        start = np.maximum(cut.start, begin)
        length = np.minimum(cut.start + cut.length, end) - start
        moved = start - cut.start
        data = cut.kind == Kind.DATA
        return Fragments(
            start,
            length,
            cut.layer,
            cut.source,
            cut.kind,
            cut.host_offset + np.where(data, moved, 0),
            cut.stored_bytes,
            cut.skip + np.where(data, 0, moved),
        )


def _data_and_holes(part: Fragments, source: SourceFile) -> list[Fragments]:
    """Split one fragment of a raw file into what is data there and what is a hole."""
    found = []
    begin = int(part.host_offset[0])
    position, end = begin, begin + int(part.length[0])
    while position < end:
        data, hole = (place - source.base for place in source.file.next_data(source.base + position))
        data, hole = min(max(data, position), end), min(max(hole, position), end)
        if hole == position:  # nothing more, or the file ends
            data = hole = end
        for start, stop, is_data in ((position, data, False), (data, hole, True)):
            if stop > start:
                piece = part.copy()
                piece.start[0] += start - begin
                piece.length[0] = stop - start
                piece.host_offset[0] = start
                if not is_data:
                    piece.kind[0], piece.layer[0], piece.source[0], piece.host_offset[0] = Kind.UNALLOCATED, -1, -1, -1
                found.append(piece)
        position = hole
    return found


def _split(parts: Fragments, end: int) -> tuple[Fragments, Fragments | None]:
    """Cut fragments at a guest offset."""
    stop = parts.start + parts.length
    if int(stop[-1]) <= end:
        return parts, None
    index = int(np.searchsorted(stop, end, side="right"))
    before, after = parts.take(slice(0, index + 1)), parts.take(slice(index, None))
    inside = end - int(parts.start[index])
    if inside <= 0:
        return parts.take(slice(0, index)), after
    length = before.length.copy()
    length[-1] = inside
    start, rest, host, skip = (c.copy() for c in (after.start, after.length, after.host_offset, after.skip))
    start[0] += inside
    rest[0] -= inside
    if after.kind[0] == Kind.DATA:
        host[0] += inside
    elif after.kind[0] == Kind.COMPRESSED:
        skip[0] += inside
    return (
        Fragments(before.start, length, *before.columns()[2:]),
        Fragments(start, rest, after.layer, after.source, after.kind, host, after.stored_bytes, skip),
    )


def _join(parts: Fragments) -> Fragments:
    """Join neighbours that continue each other, as they do where windows meet."""
    before, after = parts.take(slice(0, -1)), parts.take(slice(1, None))
    data = after.kind == Kind.DATA
    packed = after.kind == Kind.COMPRESSED
    joined = (
        (after.layer == before.layer)
        & (after.source == before.source)
        & (after.kind == before.kind)
        & (after.host_offset == before.host_offset + np.where(data, before.length, 0))
        & (~packed | (after.skip == before.skip + before.length))
    )
    if not joined.any():
        return parts
    first = np.concatenate((np.zeros(1, dtype=np.int64), np.flatnonzero(~joined) + 1))
    length = np.add.reduceat(parts.length, first)
    kept = parts.take(first)
    return Fragments(kept.start, length, *kept.columns()[2:])


def _limited(
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    state: NDArray[np.uint8],
    source: NDArray[np.int32],
    host: NDArray[np.int64],
    stored: NDArray[np.int32],
    size: int,
) -> tuple[
    NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]
]:
    """Split pieces that are longer than a piece may be."""
    if not len(count) or int(count.max()) <= _MAX_PIECE:
        return first, count, state, source, host, stored
    times = -(-count // _MAX_PIECE)
    index = np.repeat(np.arange(len(count)), times)
    within = (np.arange(len(index)) - np.repeat(np.cumsum(times) - times, times)) * _MAX_PIECE
    moved = np.where(host[index] >= 0, within * size, 0)
    return (
        first[index] + within,
        np.minimum(count[index] - within, _MAX_PIECE),
        state[index],
        source[index],
        host[index] + moved,
        stored[index],
    )
