"""What a report shows: each quantity with the samples it is taken from, its unit, and its name in a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from chainlift.units import format_bytes, format_seconds, parse_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from chainlift.results.model import Sample

Unit = Literal["s", "bytes", "iops", "bytes_per_s"]


#: Key of the CPU time of a host read.
HOST_CPU = "cpu_request_s"


@dataclass(frozen=True)
class Measure:
    """One quantity of one test."""

    #: Name with unit, as it is called in ``--json``.
    key: str
    test: str
    variant: str
    #: Heading: ``Read in the guest``.
    title: str
    #: Subject of a sentence: ``a 4 KiB read``.
    subject: str
    unit: Unit
    #: The quantity of a sample, or None where the sample does not have it.
    value: Callable[[Sample], float | None]
    larger_is_better: bool = False

    def format(self, value: float) -> str:
        """Write a value with its unit."""
        match self.unit:
            case "s":
                return format_seconds(value)
            case "bytes":
                return format_bytes(value)
            case "bytes_per_s":
                return f"{format_bytes(value)}/s"
            case "iops":
                return f"{value:,.0f} /s" if value >= 99.5 else f"{value:.1f} /s"

    @staticmethod
    def host(variant: str) -> Measure:
        """Return time a request of a host read: variant ``4k-strided-d1`` is 4 KiB, strided, queue depth 1."""
        size, pattern, depth = [*variant.split("-"), "", ""][:3]
        text = size.upper().replace("K", " KiB").replace("M", " MiB")
        how = {"seq": "sequential", "strided": "strided"}.get(pattern, pattern)
        what = f"{text} read"
        if pattern == "cold":
            how, what = "cold", f"cold {text} read"
        elif pattern == "write":
            how, what = "written", f"{text} write"
        elif pattern == "single":
            how, what = "one by one", f"single {text} read"
        elif pattern.startswith("mixed"):
            how, what = f"one by one, {pattern[5:]} % reads", f"{text} read or write"
        deep = f", depth {depth[1:]}" if depth[1:].isdigit() else ""
        return Measure(
            key="request_s",
            test="host",
            variant=variant,
            title=f"{text} {how}{deep}".strip(),
            subject=f"a {what}" + (f" at depth {depth[1:]}" if deep and depth != "d1" else ""),
            unit="s",
            value=_per_request,
        )


def host_parts(variant: str) -> tuple[int, str, int]:
    """Take a host read's variant apart, to be sorted by: size of a request in bytes, pattern, requests in flight."""
    size, pattern, depth = [*variant.split("-"), "", ""][:3]
    try:
        size_bytes = parse_size(size)
    except ValueError:
        size_bytes = 1 << 62  # unknown kinds come last
    # Reads from the page cache are the experiment's; what else is made stands behind them.
    kind = "" if pattern in ("strided", "seq") else pattern
    return size_bytes, kind, int(depth[1:]) if depth[1:].isdecimal() else 0


def host_cpu(measure: Measure) -> Measure:
    """Return the CPU time of a host read: a busy machine changes it less than the time that passes."""
    return replace(
        measure,
        key=HOST_CPU,
        title=f"{measure.title}, CPU time",
        subject=f"the CPU time of {measure.subject}",
        value=cpu_per_request,
    )


def cpu_time(measure: Measure) -> Measure:
    """Return the CPU time of what a measure is the time of: of a host read, of a read in the guest, of a stream."""
    if measure.key == "request_s":
        return host_cpu(measure)
    title, subject = f"{measure.title}, CPU time", f"the CPU time of {measure.subject}"
    return replace(measure, key="cpu_s", title=title, subject=subject, value=cpu_s)


def _metric(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: sample.metrics.get(name)


def _per_request(sample: Sample) -> float | None:
    requests, wall = sample.metrics.get("requests"), sample.metrics.get("wall_s")
    return wall / requests if requests and wall is not None else None


def cpu_s(sample: Sample) -> float | None:
    """Return CPU time of QEMU, user and system, where it was measured."""
    user = sample.metrics.get("cpu_user_s")
    return None if user is None else user + sample.metrics.get("cpu_sys_s", 0.0)


def cpu_per_request(sample: Sample) -> float | None:
    """Return CPU seconds a request."""
    requests, cpu = sample.metrics.get("requests"), cpu_s(sample)
    return cpu / requests if requests and cpu is not None else None


def own_memory(sample: Sample) -> float | None:
    """Return QEMU's peak memory without the guest's RAM where it could be told apart, else all of it."""
    own = sample.metrics.get("peak_rss_without_guest_bytes")
    return sample.metrics.get("peak_rss_bytes") if own is None else own


READ = Measure("wall_s", "read", "", "Reading the disk in the guest", "a read of the disk in the guest", "s",
               _metric("wall_s"))  # fmt: skip
STREAM = Measure("wall_s", "stream", "", "Streaming all layers", "streaming all layers into one", "s",
                 _metric("wall_s"))  # fmt: skip
STREAM_MEMORY = Measure("memory_bytes", "stream", "", "Memory while streaming", "QEMU's memory while it streams",
                        "bytes", own_memory)  # fmt: skip
STREAM_HOST = Measure("wall_s", "stream", "host", "Streaming without a guest", "streaming all layers without a guest",
                      "s", _metric("wall_s"))  # fmt: skip
STREAM_HOST_MEMORY = Measure("memory_bytes", "stream", "host", "Memory while streaming without a guest",
                             "QEMU's memory while it streams", "bytes", own_memory)  # fmt: skip
RANDOM = Measure("iops", "random", "", "Random reads in the guest", "the rate of random reads in the guest", "iops",
                 _metric("iops"), larger_is_better=True)  # fmt: skip
LATENCIES = tuple(
    Measure(f"latency_p{p}_s", "random", "", f"Random read, {p}th percentile", f"the {p}th percentile of a random read",
            "s", _metric(f"latency_p{p}_s"))
    for p in (50, 95, 99)
)  # fmt: skip
BOOT = Measure("wall_s", "boot", "", "Booting the guest", "a guest's boot", "s", _metric("wall_s"))
ROCKSDB = Measure("ops_per_s", "rocksdb", "", "RocksDB reads in the guest", "the rate of RocksDB reads in the guest",
                  "iops", _metric("ops_per_s"), larger_is_better=True)  # fmt: skip
MEMORY_BOOT = Measure("memory_bytes", "memory", "boot-halt", "Boot and halt", "QEMU's memory after boot and halt",
                      "bytes", own_memory)  # fmt: skip
MEMORY_READ = Measure("memory_bytes", "memory", "boot-read-halt", "Boot, read the disk, halt",
                      "QEMU's memory after reading the disk", "bytes", own_memory)  # fmt: skip
HOST_VARIANTS = (
    "4k-strided-d1", "4k-strided-d32", "64k-seq-d1", "64k-seq-d32", "4m-seq-d1", "4m-seq-d32",
)  # fmt: skip
HOST = tuple(Measure.host(variant) for variant in HOST_VARIANTS)
HOST_MEMORY = Measure("memory_bytes", "host", "4k-strided-d1", "Memory of host reads", "QEMU's memory for 4 KiB reads",
                      "bytes", own_memory)  # fmt: skip

MEASURES: tuple[Measure, ...] = (
    *HOST, READ, BOOT, RANDOM, *LATENCIES, ROCKSDB, STREAM, STREAM_HOST, MEMORY_BOOT, MEMORY_READ, STREAM_MEMORY,
    STREAM_HOST_MEMORY, HOST_MEMORY,
)  # fmt: skip
