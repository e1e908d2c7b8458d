"""How much disk space a plan takes, estimated before anything is written."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.host.filesystem import free_bytes
from chainlift.study.rocksdb import database_bytes
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.study.plan import Plan
    from chainlift.study.plan_tables import ChainPlan

#: What stays free in any case.
RESERVE_BYTES = 128 << 20
#: A guest's own files in the base; a full Debian takes more than a micro guest.
_BASE_EXTRA_BYTES = {"micro": 64 << 20, "debian": 3 << 30}
#: A file system's own structures, as a share of the disk: 380 MiB of 20 GiB were measured.
_STRUCTURES = 50
#: Lifted and throw-away active layers, logs and samples.
_SCRATCH_BYTES = 64 << 20
#: Clusters of a layer that hold no data: header, L1, refcount table and block, the journal's and inodes' own.
_FIXED_CLUSTERS = 16


def layer_bytes(chain: ChainPlan) -> int:
    """Estimate what a snapshot's layer takes: each random write copies a cluster, and each L2 table that it touches."""
    writes = ceil(chain.workload.write_rate * chain.interval_s / chain.workload.bs)
    if chain.workload.rw in {"write", "rw"}:
        clusters = ceil(writes * chain.workload.bs / chain.cluster_size)
    else:
        clusters = writes * max(1, ceil(chain.workload.bs / chain.cluster_size))
    clusters = min(clusters, ceil(chain.workload.size / chain.cluster_size))
    tables = ceil(chain.size / (chain.cluster_size * chain.cluster_size // 8))
    return (clusters + min(tables, clusters) + _FIXED_CLUSTERS) * chain.cluster_size


def base_bytes(plan: Plan) -> int:
    """Estimate what the base takes."""
    if plan.chain.build == "offline":
        # The journal and the data, without a file system.
        extra = 64 << 20
    else:
        extra = _BASE_EXTRA_BYTES.get(plan.guest.kind, 8 << 30) + plan.chain.size // _STRUCTURES
    extra += database_bytes(plan.chain.rocksdb_keys)
    return min(plan.chain.workload.size + extra, plan.chain.size + plan.chain.size // 1024)


def chain_bytes(plan: Plan) -> int:
    """Estimate what the whole chain takes."""
    return base_bytes(plan) + plan.chain.length * layer_bytes(plan.chain)


def measuring_bytes(plan: Plan) -> int:
    """Estimate what measuring takes beside the chain.

    Streaming copies everything into a throw-away active layer, a squash the middle layers into one; what is lifted is
    kept until the study ends.
    """
    profiled = plan.profile.work if "profile" in plan.tests else ()
    streams = "stream" in plan.tests or not {"stream", "host-stream"}.isdisjoint(profiled)
    needed = _SCRATCH_BYTES + 2 * layer_bytes(plan.chain)
    if "host" in plan.tests and not {"write", "mixed"}.isdisjoint(plan.host_read.also):
        # Each write copies a cluster up, and an L2 table where it is the first below that.
        needed += min(2 * plan.host_read.requests * plan.chain.cluster_size, plan.chain.size)
    if "squash" in plan.lift:
        lifted_at = [min(n, plan.chain.length) for n in plan.lift_lengths or plan.lengths]
        needed += len(plan.qemu) * sum(min(n * layer_bytes(plan.chain), plan.chain.size) for n in lifted_at)
    if streams:
        needed += min(chain_bytes(plan), plan.chain.size)
    return needed


def require_space(directory: Path, needed: int, what: str) -> None:
    """Refuse to begin what will not fit.

    :param directory: where it is to go.
    :param needed: in bytes.
    :param what: it is for, a phrase.
    :raise InputError: saying how much is needed and how much there is.
    """
    free = free_bytes(directory)
    if free < needed + RESERVE_BYTES:
        raise InputError(
            f"{what} needs about {format_bytes(needed + RESERVE_BYTES)} free, there are {format_bytes(free)}",
            path=directory,
            hint="make room or choose another directory with --chains",
        )
