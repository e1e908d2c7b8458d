"""The tables of a study's plan, each with its keys: what they mean is in their ``description``.

Everything that changes a number has a key here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from chainlift.qemu.machine import Aio, CacheMode
from chainlift.units import format_bytes, parse_size

GIB = 1 << 30


def _size(value: object) -> object:
    if isinstance(value, str):
        return parse_size(value)
    return value


#: Bytes, written as qemu-img has it: ``"64k"``, ``"20G"``, or a plain number.
Size = Annotated[int, BeforeValidator(_size)]


class Table(BaseModel):
    """A table of the file, strict: no other keys, no values of other types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Workload(Table):
    """The fio job that writes while snapshots are taken; fio's own names."""

    rw: Literal["randrw", "randwrite", "rw", "write"] = Field("randrw", description="fio's rw")
    rwmixread: int = Field(90, ge=0, le=99, description="percent of reads in the mix")
    bs: Size = Field(16384, ge=512, le=1 << 22, description="size of a request")
    direct: bool = Field(default=True, description="O_DIRECT in the guest")
    ioengine: Literal["libaio", "psync", "io_uring"] = Field("libaio", description="fio's ioengine")
    write_rate: Size = Field(
        53 * 1024, ge=1024, description="bytes written a second (fio's rate=,53k); times `pace` when the chain is built"
    )
    read_rate: Size = Field(0, ge=0, description="bytes read a second, times `pace`; 0: as fast as it goes")
    size: Size = Field(10 * GIB, ge=1 << 20, description="size of the file the job works in; it lies in the base")


class ChainPlan(Table):
    """The chain: what it is and how it is made.

    A built chain is found again by :meth:`chainlift.study.plan.Plan.chain_key`, which leaves out what has its default.
    So a default here never changes its meaning, and a new key gets a default that means what was done before the key
    existed.
    """

    build: Literal["live", "offline"] = Field(
        "live",
        description="live: a guest runs the fio job while snapshots are taken over QMP; "
        "offline: the same distribution of writes laid down layer by layer, without a guest",
    )
    length: int = Field(ge=1, le=5000, description="snapshots, that is layers over the base")
    size: Size = Field(ge=256 << 20, le=64 << 40, description="virtual size of the disk")
    cluster_size: Size = Field(65536, ge=512, le=1 << 21, description="cluster size of every layer, a power of two")
    interval_s: float = Field(10.0, gt=0, le=86400, description="seconds between snapshots, divided by `pace`")
    pace: float = Field(
        1.0,
        ge=0.01,
        le=1000,
        description="speeds interval and write rate up alike, so that a snapshot's content stays the same",
    )
    freeze: bool = Field(default=False, description="freeze the guest's file systems around each snapshot")
    rocksdb_keys: int = Field(
        0,
        ge=0,
        le=1_000_000_000,
        description="keys of a RocksDB database in the base, some 1.1 KiB each, for the test rocksdb; 0: none",
    )
    workload: Workload = Field(default_factory=Workload)

    @field_validator("cluster_size")
    @classmethod
    def _power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("a power of two from 512 to 2M")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.size % self.cluster_size:
            raise ValueError(f"chain.size: a multiple of chain.cluster_size ({format_bytes(self.cluster_size)})")
        if self.workload.size > self.size * 9 // 10:
            limit = format_bytes(self.size * 9 // 10)
            raise ValueError(f"chain.workload.size: at most nine tenths of chain.size ({limit})")
        if self.workload.size < self.workload.bs:
            raise ValueError("chain.workload.size: at least one request (chain.workload.bs)")
        return self


class GuestPlan(Table):
    """The virtual machine that reads the disk."""

    kind: str = Field(
        "micro",
        min_length=1,
        description="micro: Debian's cloud kernel and a busybox initramfs, made here; debian: a full Debian with "
        "systemd; or the path of your own disk image with the guest agent or an SSH server in it",
    )
    memory: Size = Field(1 * GIB, ge=512 << 20, description="RAM, at least 512M")
    vcpus: int = Field(2, ge=1, le=255, description="virtual CPUs")
    boot_deadline_s: float = Field(180.0, gt=0, description="a guest that is not up by then is an error")
    suite: str = Field("", description="micro, debian: the Debian release to make it of; empty: the host's own")
    firmware: Literal["bios", "uefi"] = Field("bios", description="your own image: what its boot loader needs")
    kernel: str = Field("", description="your own image: a kernel to boot instead of its boot loader")
    initrd: str = Field("", description="your own image: the kernel's initrd")
    append: str = Field("", description="your own image: the kernel's command line")
    ssh_key: str = Field("", description="your own image: a private key to log in with; empty: it has the guest agent")
    ssh_user: str = Field("root", min_length=1, description="your own image: root, or who may use sudo unasked")
    ssh_port: int = Field(22, ge=1, le=65535, description="your own image: its SSH server's port")
    directory: str = Field("", description="your own image: where fio works, on its disk; empty: /var/lib/chainlift")

    def chain_part(self) -> dict[str, Any]:
        """Return what decides over a chain's content, as far as it is not the default."""
        part = self.model_dump(
            include={"suite", "firmware", "kernel", "initrd", "append", "directory"}, exclude_defaults=True
        )
        image = Path(self.kind).expanduser()
        if self.kind not in ("micro", "debian") and image.is_file():
            # Another image in the same place is another chain.
            found = image.stat()
            part["image"] = {"size_bytes": found.st_size, "modified_ns": found.st_mtime_ns}
        return {"guest": self.kind} | ({"guest_options": part} if part else {})


class HostReadPlan(Table):
    """Reads through QEMU's block layer without a guest (qemu-img bench)."""

    aio: Literal["", "auto", "threads", "native", "io_uring"] = Field(
        "",
        description="how QEMU reads files in this test; empty: as in all others; auto: by io_uring where QEMU and the "
        "kernel have it, since waking a thread takes longer than the block layer does through a short chain",
    )
    repeats: int = Field(
        0,
        ge=0,
        le=1000,
        description="times that 4 KiB reads with the fewest in flight are measured, if more often than all else",
    )
    other_repeats: int = Field(0, ge=0, le=1000, description="the same of the other host reads")
    budget_s: float = Field(
        1.0,
        gt=0,
        description="CPU seconds that a measurement takes (without the page cache: seconds); "
        "it makes as many requests as that is enough for",
    )
    stride: Size = Field(
        0,
        ge=0,
        description="distance between 4 KiB reads; 0: about 0.62 of the disk or a part of that, so that any number of "
        "reads is spread evenly over the disk",
    )
    max_requests: int = Field(0, ge=0, description="4 KiB or 64 KiB reads of one measurement, at most; 0: no limit")
    max_bytes: Size = Field(0, ge=0, description="bytes of one sequential measurement, at most; 0: no limit")
    depths: tuple[int, ...] = Field((1, 32), min_length=1, description="requests in flight")
    sequential_lengths: tuple[int, ...] = Field(
        (), description="lengths at which 64 KiB and 4 MiB are read; empty: at all"
    )
    also: tuple[Literal["cold", "write", "single", "mixed"], ...] = Field(
        (),
        description="4 KiB requests beside the reads from the page cache. cold: reads that the page cache was emptied "
        "for; write: writes, which copy a cluster up where it lies below; single: reads one by one, with the latency "
        "of each; mixed: the same, some of them writes",
    )
    requests: int = Field(1000, ge=10, le=1_000_000, description="requests of one measurement of those, at most")
    mix_read: int = Field(70, ge=1, le=99, description="percent of reads in the mix")

    @field_validator("stride")
    @classmethod
    def _strides(cls, value: int) -> int:
        if value % 4096:
            raise ValueError("0, or a multiple of 4k")
        return value

    @field_validator("depths")
    @classmethod
    def _depths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, low=1, high=1024)

    @field_validator("also")
    @classmethod
    def _also(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(value)

    @field_validator("sequential_lengths")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, low=1, high=5000)


class RandomPlan(Table):
    """Random reads of the disk in the guest (fio)."""

    bs: Size = Field(16384, ge=512, le=1 << 22, description="size of a request")
    duration_s: float = Field(20.0, gt=0, le=3600, description="seconds")
    iodepth: int = Field(1, ge=1, le=1024, description="requests in flight")


class ProfilePlan(Table):
    """Profiles of QEMU with perf, in runs of their own."""

    work: tuple[Literal["read", "stream", "host-4k", "host-64k", "host-4m", "host-stream"], ...] = Field(
        ("read", "stream", "host-4k"),
        min_length=1,
        description="what is profiled: dd and block-stream in a guest, or the same kinds of work without one",
    )
    lengths: tuple[int, ...] = Field((), description="lengths at which profiles are made; empty: at all")
    repeats: int = Field(1, ge=1, le=100, description="times that each is made; at most as often as all is measured")
    seconds: float = Field(5.0, ge=0.5, le=600, description="how long host work is recorded; a guest's is, to its end")

    @field_validator("lengths")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, low=1, high=5000)

    @field_validator("work")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(value)


class LimitsPlan(Table):
    """The longest chain that a QEMU opens and reads."""

    within: int = Field(1, ge=1, le=1000, description="the limit is found to this many layers")
    attempt_s: float = Field(
        900.0, ge=1, le=86400, description="seconds that a chain may take to open before it counts as not opened"
    )


class QuietPlan(Table):
    """When the machine counts as quiet, and what is done about it where it is not."""

    limit_s: float = Field(
        0.0,
        ge=0,
        le=86400,
        description="seconds that a study may spend in all on waiting for a quiet machine and on measuring again what "
        "was disturbed; 0: it measures at once. What else ran is recorded with every sample",
    )
    others_share: float = Field(
        0.1, ge=0, le=1, description="share of the CPUs' time that other programs may take on a quiet machine"
    )
    slowdown: float = Field(
        1.15, gt=1, le=100, description="how many times longer than at its fastest a fixed loop may take on one"
    )


class VaryPlan(Table):
    """Lists of settings, each measured with each: empty is as the key of the same name says."""

    cache: tuple[CacheMode, ...] = Field((), description="values of cache")
    aio: tuple[Aio, ...] = Field((), description="values of aio")
    l2_cache_size: tuple[Size, ...] = Field((), description="values of l2_cache_size")
    iothread: tuple[bool, ...] = Field((), description="values of iothread")
    cluster_size: tuple[Size, ...] = Field((), description="values of chain.cluster_size; a chain is built for each")
    size: tuple[Size, ...] = Field((), description="values of chain.size; a chain is built for each")

    @field_validator("*")
    @classmethod
    def _once(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        return distinct(value)


def distinct(value: tuple[Any, ...], low: int | None = None, high: int | None = None) -> tuple[Any, ...]:
    """Return what a key has, if no item of it stands twice or is out of range.

    :param low: the least that an item may be; None: any.
    :param high: the most.
    :raise ValueError: saying which one is.
    """
    for item in value:
        if low is not None and high is not None and not low <= item <= high:
            raise ValueError(f"each from {low} to {high}")
        if value.count(item) > 1:
            raise ValueError(f"{item!r} stands twice")
    return value
