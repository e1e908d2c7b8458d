"""What each lift would cost and gain for one chain. Nothing is changed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from chainlift.chain.summary import l2_cache_bytes, summarize
from chainlift.errors import ImageError
from chainlift.lift.build.copying import Copier, can_clone
from chainlift.lift.build.descriptor import check_name
from chainlift.lift.build.files import Sources
from chainlift.lift.build.index import GENTLE_EXTENTS, gentle_budget, index_cluster_size
from chainlift.lift.build.merge import Merger, State
from chainlift.lift.lifting import files_of
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.record.source import find_source, require_liftable

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from chainlift.chain import Chain

#: Measured: what a node costs a process beside its cache.
_NODE_BYTES: Final = 100 << 10
#: Measured: what an extent of an index costs.
_EXTENT_BYTES: Final = 32 << 10
_PROBE_BYTES: Final = 64 << 20
#: A copy that a person waits for without a thought, and one that is still worth to be rid of every limit of an index.
_SHORT_COPY_S: Final = 2
_PATIENCE_S: Final = 10


@dataclass(frozen=True)
class Choice:
    """One way to lift a chain."""

    kind: Literal["none", "index", "index with a budget", "squash", "flatten"]
    #: What does it; None for leaving all as it is.
    command: str | None
    #: Layers over the base that QEMU would go through.
    depth: int
    #: Files that QEMU would have open.
    files: int
    copied_bytes: int
    #: At the rate that was measured; with reflinks nothing is copied.
    copy_s: float | None
    #: Of the table caches and nodes, when all of the disk was read; an estimate.
    memory_bytes: int
    #: What speaks against it.
    against: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What could be done with an image."""

    image: str
    length: int
    virtual_size_bytes: int
    #: Layers that own a cluster which can be seen.
    visible_layers: int
    #: Bytes that can be seen above the base, and in all.
    middle_bytes: int
    all_bytes: int
    reflinks: bool
    copy_bytes_per_s: float | None
    free_bytes: int
    choices: tuple[Choice, ...]
    recommended: str
    because: str


def plan_lift(image: str | os.PathLike[str], *, measure: bool = True) -> Plan:
    """Say what each lift would do to this chain.

    :param measure: copy 64 MiB into a file without a name beside the image, to know how fast that is.
    :raise ImageError: if the image has no chain, or it cannot be read.
    """
    source = find_source(image)
    with source.open_original() as chain:
        require_liftable(chain)
        sources = Sources(chain)
        with LayerLocks(files_of(chain, sources)) as locks:
            visible, mixed = _visible(chain, sources)
            directory = source.image.parent
            status = os.statvfs(directory)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                reflinks = can_clone(fd, locks.descriptors[sources.files[0].path])
                rate = _copy_rate(fd, sources, visible, locks.descriptors) if measure else None
            finally:
                os.close(fd)
            return _plan(
                source.image, chain, sources, visible, mixed, reflinks, rate, status.f_bavail * status.f_frsize
            )


def _visible(chain: Chain, sources: Sources) -> tuple[NDArray[np.int64], int]:
    """Return the bytes of each file that can be seen, and how many an index would have to copy."""
    size = index_cluster_size(chain)
    visible = np.zeros(len(sources.files), dtype=np.int64)
    mixed = 0
    for pieces in Merger(chain, sources, size, sparse=True).pieces():
        pointed = (pieces.state == State.DATA) | (pieces.state == State.COMPRESSED)
        np.add.at(visible, pieces.source[pointed], pieces.count[pointed] * size)
        mixed += int(pieces.count[pieces.state == State.MIXED].sum()) * size
        parts = pieces.fragments
        of_file = parts.source >= 0
        np.add.at(visible, parts.source[of_file], parts.length[of_file])
    return visible, mixed


def _copy_rate(
    directory: int, sources: Sources, visible: NDArray[np.int64], descriptors: dict[str, int]
) -> float | None:
    """Copy some of the layers into a file that never gets a name; return bytes per second, None if that cannot be."""
    try:
        fd = os.open(f"/proc/self/fd/{directory}", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        started = time.monotonic()
        done = 0
        with Copier(fd, clone=False) as copier:
            for index in np.argsort(-visible, kind="stable").tolist():
                source = sources.files[index]
                length = min(source.length, int(visible[index]), _PROBE_BYTES - done) // 4096 * 4096
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


def _plan(
    image: Path,
    chain: Chain,
    sources: Sources,
    visible: NDArray[np.int64],
    mixed: int,
    reflinks: bool,  # noqa: FBT001
    rate: float | None,
    free: int,
) -> Plan:
    length = len(chain.layers)  # the image itself is one more, the base is not counted
    base_files = np.array([layer == len(chain.layers) - 1 for layer in sources.layer], dtype=bool)
    middle, everything = int(visible[~base_files].sum()), int(visible.sum())
    used = np.sort(visible[visible > 0])
    cluster_size = index_cluster_size(chain)
    # One image with everything has a table for all of the disk.
    cache = l2_cache_bytes(-(-chain.virtual_size // (cluster_size * cluster_size // 8)), cluster_size)
    per_layer = cache + _NODE_BYTES
    # A layer of the chain has tables only where it has clusters.
    held = summarize(chain).l2_cache_bytes
    gentle = gentle_budget(visible.tolist())
    absorbed = gentle + mixed
    migration = "blocks live migration while the VM runs on it: restore first"
    absolute = "the json: name in the image is absolute: after a move, index again"
    unnamable = _unnamable(sources)

    def choice(kind: str, command: str | None, depth: int, files: int, copied: int, *against: str | None) -> Choice:
        seconds = 0.0 if not copied else None if rate is None else copied / rate
        needs = 0 if reflinks else copied
        short = f"needs {needs} bytes, {free} are free" if needs > free else None
        memory = (2 if kind.startswith("index") else depth + 1) * per_layer
        if kind == "none":
            memory = held + (depth + 1) * _NODE_BYTES
        if kind.startswith("index"):
            memory += files * _EXTENT_BYTES
        reasons = tuple(reason for reason in (short, *against) if reason)
        return Choice(kind, command, depth, files, copied, seconds, memory, reasons)  # type: ignore[arg-type]

    nothing_between = "there is nothing between the image and its base" if length < 2 else None
    choices = (
        choice("none", None, length, length + 1, 0),
        choice("index", f"chainlift index {image}", 1, len(used) + 3, mixed, unnamable, migration, absolute),
        choice(
            "index with a budget",
            f"chainlift index {image} --copy-budget {_rounded(absorbed)}",
            1,
            min(len(used), GENTLE_EXTENTS - 1) + 3,
            absorbed,
            unnamable,
            migration,
            absolute,
        ),
        choice("squash", f"chainlift squash {image}", 2, 3, middle, nothing_between),
        choice("flatten", f"chainlift flatten {image} OUT", 0, 1, everything, "snapshots are not in the result"),
    )
    recommended, because = _recommend(length, middle, absorbed if gentle else None, reflinks, free, unnamable, rate)
    return Plan(
        image=str(image),
        length=length,
        virtual_size_bytes=chain.virtual_size,
        visible_layers=len(used),
        middle_bytes=middle,
        all_bytes=everything,
        reflinks=reflinks,
        copy_bytes_per_s=rate,
        free_bytes=free,
        choices=choices,
        recommended=recommended,
        because=because,
    )


def _recommend(
    length: int,
    middle: int,
    absorbed: int | None,
    reflinks: bool,  # noqa: FBT001
    free: int,
    unnamable: str | None,
    rate: float | None,
) -> tuple[str, str]:
    if length < 8:
        return "none", "a chain this short costs next to nothing"
    if reflinks:
        return "squash", "the file system shares blocks: nothing is copied, and no limit comes with it"
    if middle <= free and rate is not None and middle / rate < _PATIENCE_S:
        return "squash", "its copy takes seconds, and no limit comes with it"
    if unnamable is not None:
        return "squash", "the index cannot be had: " + unnamable
    if absorbed is not None and absorbed <= free and rate is not None and absorbed / rate < _SHORT_COPY_S:
        return "index with a budget", f"with {GENTLE_EXTENTS} extents QEMU reads faster and needs less memory"
    return "index", "nothing is copied; squash later, when there is time"


def _rounded(count: int) -> str:
    return f"{-(-count // (1 << 20))}M"


def _unnamable(sources: Sources) -> str | None:
    for source in sources.files:
        try:
            check_name(os.path.abspath(source.path))  # noqa: PTH100 - as it will stand in the descriptor
        except ImageError as error:
            return f"{error.path} {error.what}"
    return None
