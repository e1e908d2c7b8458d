"""Whether a lift has the room it needs, asked before anything is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.build.copying import can_clone
from chainlift.lift.build.merge import Merger, State
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.chain import Chain
    from chainlift.lift.build.files import Sources
    from chainlift.lift.build.merge import Below


def require_room(directory: Path, needed_bytes: int) -> None:
    """Refuse where a file system is read-only or has less room than is needed.

    :raise ImageError: naming the directory.
    """
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=directory) from error
    if status.f_flag & os.ST_RDONLY:
        raise ImageError("is on a read-only file system", path=directory, hint="a lift needs a place to write to")
    free = status.f_bavail * status.f_frsize
    if needed_bytes > free:
        raise ImageError(
            f"{format_bytes(needed_bytes)} are needed, {format_bytes(free)} are free",
            path=directory,
            hint="make room there and run it again",
        )


def require_room_for_copy(
    directory: Path,
    chain: Chain,
    sources: Sources,
    descriptors: dict[str, int],
    cluster_size: int,
    *,
    below: Below | None = None,
    sparse: bool = False,
) -> None:
    """Refuse where what can be seen of a chain does not fit into a directory's file system.

    :param descriptors: an open file descriptor for each file of the sources, by its path.
    :param cluster_size: of the image that is to be written.
    :param below: layers that are not copied.
    :param sparse: holes of raw layers are not copied.
    :raise ImageError: naming the directory.
    """
    # The header, the L1 table, and for each cluster an L2 entry and a refcount.
    clusters = -(-chain.virtual_size // cluster_size)
    tables = clusters * 10 + 8 * cluster_size
    status = os.statvfs(directory)
    if status.f_bavail * status.f_frsize > chain.virtual_size + tables and not status.f_flag & os.ST_RDONLY:
        return  # the rule: the whole disk would fit
    if _shares_blocks(directory, sources, descriptors):
        require_room(directory, 8 * cluster_size)
        return
    data = mapped = 0
    for pieces in Merger(chain, sources, cluster_size, below=below, sparse=sparse).pieces():
        packed = pieces.state == State.COMPRESSED
        copied = (pieces.state == State.DATA) | (pieces.state == State.MIXED)
        data += int(pieces.count[copied].sum()) * cluster_size + int(pieces.stored_bytes[packed].sum())
        mapped += int(pieces.count[pieces.state != State.HOLE].sum())
    require_room(directory, data + mapped * 10 + 8 * cluster_size)


def _shares_blocks(directory: Path, sources: Sources, descriptors: dict[str, int]) -> bool:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return can_clone(fd, descriptors[sources.files[0].path])
    finally:
        os.close(fd)
