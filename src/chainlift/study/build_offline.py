"""Laying a chain down layer by layer without a guest, with the distribution of writes that a live guest makes.

What a light random write load leaves in a snapshot's layer is clusters spread evenly over the file it works in (each
small write copies a whole cluster), an L2 table for each part of the disk that was hit, and a few clusters that every
snapshot has: the inode's block, and the journal, which goes round in its own place. The base has data wherever a layer
may write. There is no file system in it: what is measured reads the disk, not files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.writer import write_image
from chainlift.results.model import ChainShape
from chainlift.study.chain_store import layer_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from chainlift.study.chain_store import ChainDirectory, Manifest
    from chainlift.study.plan_tables import ChainPlan
    from chainlift.study.progress import Progress

#: A journal of 64 MiB, as mke2fs makes it on a disk of some gigabytes, and how much of it a commit takes.
_JOURNAL_BYTES = 64 << 20
_COMMIT_BYTES = 12 << 10
#: ext4 commits its journal every five seconds.
_COMMIT_INTERVAL_S = 5.0
_POOL_BYTES = 16 << 20


@dataclass(frozen=True)
class Layout:
    """Where a disk of the plan's size has what, in guest clusters."""

    inode: int
    journal_start: int
    journal_count: int
    file_start: int
    file_count: int

    @classmethod
    def of(cls, spec: ChainPlan) -> Layout:
        """Lay out a disk: superblock and inodes, the journal, the file."""
        journal_start = max(2, (1 << 20) // spec.cluster_size)
        journal_count = max(1, min(_JOURNAL_BYTES, spec.size // 64) // spec.cluster_size)
        file_start = journal_start + journal_count
        return cls(
            inode=1,
            journal_start=journal_start,
            journal_count=journal_count,
            file_start=file_start,
            file_count=min(-(-spec.workload.size // spec.cluster_size), spec.size // spec.cluster_size - file_start),
        )

    def base_clusters(self) -> NDArray[np.int64]:
        """Return the clusters that the base has."""
        return np.arange(self.file_start + self.file_count, dtype=np.int64)


def changed_clusters(spec: ChainPlan, seed: int = 1) -> Iterator[NDArray[np.int64]]:
    """Yield the guest clusters that each snapshot's layer has, sorted, the first layer first; the same for a seed."""
    layout = Layout.of(spec)
    generator = np.random.default_rng(seed)
    owed = committed = 0.0
    sequential = spec.workload.rw in {"write", "rw"}
    slots = layout.file_count * spec.cluster_size // spec.workload.bs
    position = 0
    for _ in range(spec.length):
        owed += spec.workload.write_rate * spec.interval_s / spec.workload.bs
        writes, owed = int(owed), owed % 1.0
        numbers = (position + np.arange(writes)) % slots if sequential else generator.integers(slots, size=writes)
        position += writes
        first = numbers.astype(np.int64) * spec.workload.bs // spec.cluster_size
        last = (numbers.astype(np.int64) * spec.workload.bs + spec.workload.bs - 1) // spec.cluster_size
        file = np.concatenate([first + k for k in range(int((last - first).max(initial=0)) + 1)])
        end = committed + max(1.0, spec.interval_s / _COMMIT_INTERVAL_S) * _COMMIT_BYTES
        journal = np.arange(int(committed // spec.cluster_size), int(end // spec.cluster_size) + 1, dtype=np.int64)
        committed = end
        hot = np.concatenate(([layout.inode], layout.journal_start + journal % layout.journal_count))
        limit = layout.file_start + layout.file_count - 1
        yield np.unique(np.concatenate((hot, np.minimum(layout.file_start + file, limit))))


def build_offline(spec: ChainPlan, chain: ChainDirectory, progress: Progress) -> Manifest:
    """Lay the chain down; what an interrupted build has left is kept as far as it is noted.

    :param chain: where it is built; the caller holds its lock.
    """
    done = len(chain.snapshots())
    # A snapshot is noted here when its layer is whole, so layer `done` itself stays.
    chain.keep_snapshots(done + 1 if done else 0)
    started = time.monotonic()
    content = _Content(spec.cluster_size)
    if done == 0:
        progress.stage("making the base image")
        _write(chain, spec, 0, Layout.of(spec).base_clusters(), content)
    progress.stage("building the chain", spec.length)
    counts = []
    for number, clusters in enumerate(changed_clusters(spec), start=1):
        counts.append(len(clusters))
        if number <= done:
            continue
        _write(chain, spec, number, clusters, content)
        chain.note_snapshot({"snapshot": number, "at_s": round(time.monotonic() - started, 3)})
        progress.step(number, f"layer {number}")
    shape = ChainShape(
        built="offline",
        virtual_size_bytes=spec.size,
        cluster_size_bytes=spec.cluster_size,
        layer_bytes=chain.sizes(spec.length),
        layer_clusters=[len(Layout.of(spec).base_clusters()), *counts],
        interval_s=spec.interval_s,
        build_s=time.monotonic() - started,
    )
    return chain.finish(shape, {"chain": spec.model_dump(mode="json")}, resumed=int(done > 0))


def _write(chain: ChainDirectory, spec: ChainPlan, number: int, clusters: NDArray[np.int64], content: _Content) -> None:
    path = chain.layer(number)
    path.unlink(missing_ok=True)
    content.layer = number
    write_image(
        path,
        virtual_size=spec.size,
        cluster_size=spec.cluster_size,
        backing_file=layer_name(number - 1) if number else None,
        backing_format="qcow2" if number else None,
        clusters=clusters,
        data=content,
    )


class _Content:
    """Data that nothing makes smaller, and that says which cluster of which layer it is."""

    def __init__(self, cluster_size: int) -> None:
        self.layer = 0
        self._size = cluster_size
        self._pool = np.random.default_rng(0).bytes(_POOL_BYTES + cluster_size)

    def __call__(self, cluster: int) -> bytes:
        start = (cluster * 7919 + self.layer * 104729) % (_POOL_BYTES // 512) * 512
        stamp = f"layer {self.layer} cluster {cluster}\n".encode()
        return stamp + self._pool[start + len(stamp) : start + self._size]
