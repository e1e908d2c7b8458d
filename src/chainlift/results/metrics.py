"""What the tests measure: each metric that a sample of a test may have, and what it means.

A sample has those that could be measured; what is missing was not measured, and is not zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chainlift.results.model import Test

_CPU = {
    "cpu_user_s": "user CPU time of QEMU, all of its threads, during wall_s",
    "cpu_sys_s": "system CPU time, the same",
}
_PEAK = {"peak_rss_bytes": "most memory that QEMU had resident at once, from its start to its end"}
_OWN_PEAK = _PEAK | {"peak_rss_without_guest_bytes": "the same without the guest's RAM"}

#: Test -> metric -> what it means. Units are in the names.
METRICS: Mapping[Test, Mapping[str, str]] = {
    "read": {
        "wall_s": "dd of the whole disk in the guest, the second time, by the host's clock",
        "guest_s": "the same by the guest's clock",
        "first_s": "the first time, which fills QEMU's caches",
        "bytes": "size of the disk",
        **_CPU,
    },
    "random": {
        "iops": "requests a second, by fio in the guest",
        "bytes_per_s": "bytes a second",
        "latency_p50_s": "median of a request's completion latency",
        "latency_p95_s": "95th percentile",
        "latency_p99_s": "99th percentile",
        "duration_s": "how long fio ran",
    },
    "host": {
        "wall_s": "the requests that are counted, without opening and closing the chain",
        "requests": "how many those are",
        "warm_up_requests": "how many came before, which load the layers' tables; a run of its own told their time",
        "bytes": "read by them",
        **_CPU,
        **_PEAK,
        "storage_bytes": "of them, what came from storage and not from the page cache",
        "latency_p50_s": "median of what single requests took",
        "latency_p95_s": "95th percentile",
        "latency_p99_s": "99th percentile",
        "latency_max_s": "the longest one",
        "open_s": "from the start of qemu-img until the chain is open",
        "open_cpu_s": "user and system CPU time of that",
        "open_rss_bytes": "resident memory when the chain is open",
        "open_peak_rss_bytes": "most memory of opening (results before 2026-11-23)",
    },
    "stream": {
        "wall_s": "from block-stream to BLOCK_JOB_COMPLETED",
        "bytes": "size of the disk",
        **_CPU,
        **_OWN_PEAK,
    },
    "memory": {"wall_s": "from the start of QEMU to its end", **_OWN_PEAK},
    "profile": {
        "samples": "samples that perf took",
        "share_is_inserted": "share of them with bdrv_is_inserted or bdrv_co_is_inserted on the stack",
        "unknown_share": "share of them whose running function has no name",
        "vcpu_share": "share of them in threads of virtual CPUs",
        "share_is_inserted_without_vcpus": "share_is_inserted of the other threads' samples",
    },
    "limits": {
        "longest": "layers of the longest chain that worked",
        "open_s": "until that chain was open",
        "file_descriptors": "open files then",
        "signal": "what ended QEMU with more layers",
    },
    "live": {
        "stall_s": "longest request while the running disk was switched to the index",
        "restore_stall_s": "longest request while it was switched back",
        "quiet_stall_s": "longest request before, when nothing was switched",
        "bytes_per_s_before": "bytes a second over the chain",
        "bytes_per_s_during": "bytes a second while it was switched",
        "bytes_per_s_after": "bytes a second over the index",
        "pivot_s": "the switch to the index, all steps",
        "restore_s": "the switch back, all steps",
        "longest_command_s": "the longest QMP command of the switch",
        "extents": "files that the index points into",
    },
    "boot": {
        "wall_s": "from the start of QEMU until the guest answers",
        "open_s": "from the start of QEMU until it has opened the chain and answers",
        **_CPU,
    },
    "rocksdb": {
        "ops_per_s": "keys read a second, by db_bench in the guest",
        "operations": "how many were read",
        "latency_p50_s": "median of the time that a key takes",
        "latency_p99_s": "99th percentile",
    },
}
