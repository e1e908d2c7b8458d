"""What each lift would cost and gain for one chain. Nothing is changed."""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from chainlift.chain import open_chain
from chainlift.chain.descriptor import check_name
from chainlift.chain.libvirt_limits import near_limit
from chainlift.chain.summarize import summarize
from chainlift.chain.summary import l2_cache_bytes
from chainlift.errors import ImageError
from chainlift.lift.build.copying import Copier, can_clone
from chainlift.lift.build.extents import Seen
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.free_space import RewriteSize, measure_rewrite
from chainlift.lift.build.index import GENTLE_EXTENTS, gentle_budget, index_cluster_size, least_room
from chainlift.lift.build.merge import Merger, State
from chainlift.lift.build.squash import layers_below, squash_cluster_size
from chainlift.lift.flatten import flat_cluster_size
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.record.image_state import read_image_state
from chainlift.lift.record.liftable import require_liftable
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from chainlift.chain import Chain
    from chainlift.chain.summary import ChainSummary
    from chainlift.lift.disk import Disk

#: Measured: what a node costs a process beside its cache.
_NODE_BYTES: Final = 100 << 10
#: Measured: what an extent of an index costs.
_EXTENT_BYTES: Final = 32 << 10
_PROBE_BYTES: Final = 64 << 20
#: A copy that a person waits for without a thought, and one that is still worth to be rid of every limit of an index.
_SHORT_COPY_S: Final = 2
_PATIENCE_S: Final = 10
#: Layers from which on a chain costs anything.
_SHORT_CHAIN: Final = 8
_MIB: Final = 1 << 20
_INDEX_LIMITS: Final = (
    "blocks live migration while the VM runs on it: restore first",
    "the json: name in the image is absolute: after a move, index again",
)
_NO_SNAPSHOTS: Final = "snapshots are not in the result"
_LATER: Final = "; squash later, when there is time"

#: A way to lift a chain.
Way = Literal["none", "index", "index with a budget", "squash", "flatten"]


@dataclass(frozen=True)
class Choice:
    """One way to lift a chain."""

    #: Which one.
    kind: Way
    #: What does it; None for leaving all as it is.
    command: str | None
    #: Layers over the base that QEMU would go through.
    depth: int
    #: Files that QEMU would have open.
    files: int
    #: What would be copied.
    copied_bytes: int
    #: At the rate that was measured; with reflinks nothing is copied.
    copy_s: float | None
    #: Of the table caches and nodes, when all of the disk was read; an estimate.
    memory_bytes: int
    #: Why it cannot be done, as things are; None where it can.
    impossible: str | None
    #: What speaks against it: that, or what one should mind.
    against: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What could be done with an image."""

    #: The disk's active layer; absolute.
    image: str
    #: Layers over the base.
    length: int
    #: Of the disk.
    virtual_size_bytes: int
    #: Layers that own a cluster which can be seen.
    visible_layers: int
    #: Whether the file system shares blocks: then nothing is copied.
    reflinks: bool
    #: As it was measured; None where it was not, or could not be.
    copy_bytes_per_s: float | None
    #: On the image's file system.
    free_bytes: int
    #: Leaving all as it is, an index, one with a budget, a squash, flattening.
    choices: tuple[Choice, ...]
    #: The one to take, by its kind.
    recommended: Way
    #: Why, a phrase.
    because: str
    #: What is below the image, as it would be without a lift.
    below: ChainSummary = field(repr=False)


def plan(disk: Disk, *, named: str | None = None, measure: bool = True) -> Plan:
    """Say what each lift would do to this chain. Nothing is changed.

    >>> with open_disk("disk.qcow2") as disk:
    ...     found = plan(disk, measure=False)
    >>> found.recommended, found.because
    ('none', 'a chain this short costs next to nothing')
    >>> [(choice.kind, choice.depth) for choice in found.choices]
    [('none', 4), ('index', 1), ('index with a budget', 1), ('squash', 2), ('flatten', 0)]

    :param disk: from :func:`~chainlift.lift.open.open_disk`.
    :param named: the words that name the disk in the commands; None: its image.
    :param measure: copy 64 MiB into a file without a name beside the image, to know how fast that is.
    :return: the ways there are, and the one to take.
    :raise ImageError: if the image has no chain, or it cannot be read.
    """
    standing = disk.standing()
    state = read_image_state(disk.image, standing[0].pointer if standing else None)
    with state.open_original() as chain:
        require_liftable(chain)
        sources = ClusterFiles(chain)
        with LayerLocks(files_of(chain, sources)) as locks:
            seen = _look(chain, sources)
            directory = state.image.parent
            status = os.statvfs(directory)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reflinks = can_clone(fd, locks.descriptors[sources.files[0].path])
                rate = copy_rate(fd, sources, seen.visible_bytes, locks.descriptors) if measure else None
            finally:
                os.close(fd)
            free = status.f_bavail * status.f_frsize
            below = summarize(chain)
            choices = _choices(
                named or shlex.quote(str(state.image)),
                state.image,
                chain,
                sources,
                seen,
                _Means(reflinks, rate, free),
                below.l2_cache_bytes,
            )
            recommended, because = recommend(choices, reflinks=reflinks)
            return Plan(
                image=str(state.image),
                length=len(chain.layers),  # the image itself is one more, the base is not counted
                virtual_size_bytes=chain.virtual_size,
                visible_layers=len(seen.visible_files),
                reflinks=reflinks,
                copy_bytes_per_s=rate,
                free_bytes=free,
                choices=choices,
                recommended=recommended,
                because=because,
                below=below,
            )


@dataclass(frozen=True)
class _Means:
    """What there is to copy with, and to copy to."""

    reflinks: bool
    rate: float | None
    free_bytes: int


@dataclass(frozen=True)
class _Look:
    """What an index of a chain would point at."""

    cluster_size: int
    pointed: Seen
    mixed_clusters: int
    #: Files with something that can be seen, in clusters of an index or parts of them.
    visible_files: list[int]

    @property
    def visible_bytes(self) -> NDArray[np.int64]:
        """Bytes of each file that can be pointed at."""
        return self.pointed.visible * self.cluster_size


def _look(chain: Chain, sources: ClusterFiles) -> _Look:
    seen, mixed = Seen.none(sources.files), 0
    in_parts = np.zeros(len(sources.files), dtype=bool)
    size = index_cluster_size(chain)
    for pieces in Merger(chain, sources, size).pieces():
        seen.add(pieces)
        mixed += int(pieces.count[pieces.state == State.MIXED].sum())
        parts = pieces.fragments.source
        in_parts[parts[parts >= 0]] = True
    return _Look(size, seen, mixed, np.flatnonzero((seen.visible > 0) | in_parts).tolist())


def copy_rate(
    directory: int, sources: ClusterFiles, visible_bytes: NDArray[np.int64], descriptors: dict[str, int]
) -> float | None:
    """Copy some of the layers into a file that never gets a name; return bytes per second, None if that cannot be.

    :param directory: a descriptor of it.
    :param visible_bytes: how much of each file there is to copy at most.
    :param descriptors: an open file descriptor for each file of the sources, by its path.
    """
    try:
        fd = os.open(f"/proc/self/fd/{directory}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        started = time.monotonic()
        done = 0
        with Copier(fd, clone=False) as copier:
            for index in np.argsort(-visible_bytes, kind="stable").tolist():
                source = sources.files[index]
                length = min(source.length, int(visible_bytes[index]), _PROBE_BYTES - done) // 4096 * 4096
                if length <= 0:
                    break
                copier.add(descriptors[source.path], source.base, length, done)
                done += length
        os.fsync(fd)
        return done / (time.monotonic() - started) if done else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _choices(
    name: str, image: Path, chain: Chain, sources: ClusterFiles, seen: _Look, means: _Means, cache_bytes: int
) -> tuple[Choice, ...]:
    length = len(chain.layers)
    # One image with everything has a table for all of the disk.
    size = seen.cluster_size
    per_layer = l2_cache_bytes(-(-chain.virtual_size // (size * size // 8)), size) + _NODE_BYTES

    def choice(
        kind: Way,
        command: str | None,
        depth: int,
        files: int,
        takes: RewriteSize,
        memory_bytes: int,
        impossible: str | None = None,
        mind: tuple[str, ...] = (),
    ) -> Choice:
        copied, rate = takes.copied_bytes, means.rate
        needs = takes.table_bytes + (0 if means.reflinks else copied)
        if impossible is None and needs > means.free_bytes:
            impossible = f"needs {format_bytes(needs)}, {format_bytes(means.free_bytes)} are free"
        seconds = 0.0 if not copied else None if rate is None else copied / rate
        against = mind if impossible is None else (impossible, *mind)
        return Choice(kind, command, depth, files, copied, seconds, memory_bytes, impossible, against)

    def index(kind: Way, budget_bytes: int) -> Choice:
        extents = seen.pointed.choose(seen.mixed_clusters, budget_bytes // size)
        takes = RewriteSize(extents.copied_clusters * size, least_room(chain))
        budget = f" --copy-budget {budget_bytes >> 20}M" if budget_bytes else ""
        files = len(extents.kept) + 3
        memory = 2 * per_layer + files * _EXTENT_BYTES
        cannot = _unnamable(sources, extents.kept)
        return choice(kind, f"chainlift index {name}{budget}", 1, files, takes, memory, cannot, _INDEX_LIMITS)

    # A layer of the chain has tables only where it has clusters.
    held = cache_bytes + (length + 1) * _NODE_BYTES
    squash, nothing_between = RewriteSize(0, 0), None
    if length < 2:  # the base may be raw, and say no cluster size
        nothing_between = "there is nothing between the image and its base"
    else:
        squash = _squash_size(chain, sources)
    gentle = gentle_budget(seen.visible_bytes.tolist())
    limit = near_limit(chain.layers, above=1)
    mind = () if limit is None else (limit.describe(),)
    flat = _flat_size(image, chain, sources)
    return (
        choice("none", None, length, length + 1, RewriteSize(0, 0), held, mind=mind),
        index("index", 0),
        index("index with a budget", -(-gentle // _MIB) * _MIB),
        choice("squash", f"chainlift squash {name}", 2, 3, squash, 3 * per_layer, nothing_between),
        choice("flatten", f"chainlift flatten {name} OUT", 0, 1, flat, per_layer, mind=(_NO_SNAPSHOTS,)),
    )


def _squash_size(chain: Chain, sources: ClusterFiles) -> RewriteSize:
    size = squash_cluster_size(chain)
    return measure_rewrite(
        Merger(chain, sources, size, below=layers_below(chain, len(chain.layers) - 1)), sources, size
    )


def _flat_size(image: Path, chain: Chain, sources: ClusterFiles) -> RewriteSize:
    try:
        with open_chain(image) as whole:
            size = flat_cluster_size(whole)
            found = ClusterFiles(whole)
            return measure_rewrite(Merger(whole, found, size, sparse=True), found, size)
    except ImageError:  # its lift is broken, say: the chain below it is most of it
        size = flat_cluster_size(chain)
        return measure_rewrite(Merger(chain, sources, size, sparse=True), sources, size)


def recommend(choices: tuple[Choice, ...], *, reflinks: bool) -> tuple[Way, str]:
    """Choose among what can be done.

    :return: the kind, and why.
    """
    none, index, budget, squash, _ = choices
    if none.depth < _SHORT_CHAIN:
        return "none", "a chain this short costs next to nothing"
    if squash.impossible is None:
        if reflinks:
            return "squash", "the file system shares blocks: nothing is copied, and no limit comes with it"
        if squash.copy_s is not None and squash.copy_s < _PATIENCE_S:
            return "squash", "its copy takes seconds, and no limit comes with it"
        if index.impossible is not None:
            return "squash", f"the index cannot be had: {index.impossible}"
    if (
        budget.impossible is None
        and budget.command != index.command
        and budget.copy_s is not None
        and budget.copy_s < _SHORT_COPY_S
    ):
        return "index with a budget", f"with {GENTLE_EXTENTS} extents QEMU reads faster and needs less memory"
    if index.impossible is None:
        return "index", ("it copies the least" if index.copied_bytes else "nothing is copied") + _LATER
    if budget.impossible is None:
        return "index with a budget", f"without the budget it cannot be had: {index.impossible}"
    return "none", f"neither an index nor a squash can be had: {index.impossible}"


def _unnamable(sources: ClusterFiles, kept: Sequence[int]) -> str | None:
    """Return why a descriptor cannot name one of the files that an index points into."""
    for number in kept:
        try:
            check_name(os.path.abspath(sources.files[number].path))  # noqa: PTH100 - as it will stand in the descriptor
        except ImageError as error:
            return f"{error.path} {error.what}"
    return None
