"""What there is to write new files with: room, blocks that can be shared, and how fast a copy is."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.chain import Chain
from chainlift.lift.build.copying import can_clone
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.free_space import require_room
from chainlift.lift.build.replacement import measure_merge, most_merged_bytes
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.plan import copy_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.lift.build.replacement import Merge

#: A run without anything to copy: QEMU's start, and a look at who else is there, several times.
_LEAST_S: Final = 0.5
#: What was written is read twice to be compared, most of it from the disk.
_COMPARING: Final = 1.0


@dataclass(frozen=True)
class Means:
    """What a copy beside an image takes."""

    #: Whether the file system shares blocks.
    clones: bool
    #: Of a copy; None where it could not be measured.
    bytes_per_s: float | None

    @classmethod
    def of(cls, chain: Chain) -> Means:
        """Look at the directory of a chain's image: 64 MiB are copied to a file without a name.

        :param chain: what lies under its image is read.
        """
        part = Chain(chain.layers[1:])
        sources = ClusterFiles(part)
        directory = os.open(
            os.path.dirname(os.path.realpath(chain.layers[0].path)),  # noqa: PTH120
            os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
        )
        try:
            with LayerLocks(files_of(part, sources)) as locks:
                clones = can_clone(directory, locks.descriptors[sources.files[0].path])
                lengths = np.array([file.file.allocated_bytes for file in sources.files], dtype=np.int64)
                rate = None if clones else copy_rate(directory, sources, lengths, locks.descriptors)
        finally:
            os.close(directory)
        return cls(clones, rate)

    def seconds(self, copied_bytes: int) -> float | None:
        """Return how long a run takes that copies so much; None where that is not known."""
        if self.clones or not copied_bytes:
            return _LEAST_S
        return None if self.bytes_per_s is None else _LEAST_S + copied_bytes * (1 + _COMPARING) / self.bytes_per_s


def as_many_as_fit(chain: Chain, merges: Sequence[Merge]) -> list[Merge]:
    """Choose merges whose new files can lie beside the old ones at the same time, the first of them in any case.

    :raise ImageError: if there is no room for that either.
    """
    chosen: list[Merge] = []
    free: dict[int, int] = {}
    clones: dict[int, bool] = {}
    for merge in merges:
        path = Path(os.path.realpath(chain.layers[merge.into].path))
        device = path.stat().st_dev
        if device not in free:
            status = os.statvfs(path.parent)
            free[device] = status.f_bavail * status.f_frsize
            clones[device] = _can_clone_beside(path)
        most = most_merged_bytes(chain, merge)
        if most is not None and most <= free[device]:
            chosen.append(merge)
            free[device] -= 0 if clones[device] else most
            continue
        size = measure_merge(chain, merge)
        needed = size.table_bytes + (0 if clones[device] else size.copied_bytes)
        if not chosen:
            require_room(path.parent, needed)
        elif needed > free[device]:
            continue
        chosen.append(merge)
        free[device] -= needed
    return chosen


def _can_clone_beside(path: Path) -> bool:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return can_clone(directory, file)
        finally:
            os.close(file)
    finally:
        os.close(directory)
