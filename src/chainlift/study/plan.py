"""A study's plan: a TOML file, checked before anything is touched.

Everything that changes a number has a key here. Unknown keys are refused, values are never converted silently, and an
error names the key and what is allowed. ``chainlift study init`` writes a plan with every key explained; the
explanations are the ``description`` of the fields below.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from chainlift.errors import PlanError
from chainlift.results.model import Lift, Test
from chainlift.units import format_bytes, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The plans that come with chainlift, in the order in which they are listed.
SHIPPED = ("quick", "seed", "long", "versions", "limits", "seed-profile")

GIB = 1 << 30


def _size(value: object) -> object:
    if isinstance(value, str):
        return parse_size(value)
    return value


#: Bytes, written as qemu-img has it: ``"64k"``, ``"20G"``, or a plain number.
Size = Annotated[int, BeforeValidator(_size)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Workload(_Table):
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


class ChainPlan(_Table):
    """The chain: what it is and how it is made.

    A built chain is found again by :meth:`Plan.chain_key`, which leaves out what has its default. So a default here
    never changes its meaning, and a new key gets a default that means what was done before the key existed.
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


class GuestPlan(_Table):
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


class HostReadPlan(_Table):
    """Reads through QEMU's block layer without a guest (qemu-img bench)."""

    stride: Size = Field(260 << 10, ge=4096, description="distance between 4 KiB reads")
    max_requests: int = Field(40_000, ge=10, description="4 KiB or 64 KiB reads of one measurement, at most")
    max_bytes: Size = Field(5 * GIB, ge=4 << 20, description="bytes of one sequential measurement, at most")
    budget_s: float = Field(
        60.0, gt=0, description="a measurement that would take longer makes fewer requests; costs are shown per request"
    )
    depths: tuple[int, ...] = Field((1, 32), min_length=1, description="requests in flight")
    sequential_lengths: tuple[int, ...] = Field(
        (), description="lengths at which 64 KiB and 4 MiB are read; empty: at all"
    )

    @field_validator("depths")
    @classmethod
    def _depths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(value, low=1, high=1024)

    @field_validator("sequential_lengths")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(value, low=1, high=5000)


class RandomPlan(_Table):
    """Random reads of the disk in the guest (fio)."""

    bs: Size = Field(16384, ge=512, le=1 << 22, description="size of a request")
    duration_s: float = Field(20.0, gt=0, le=3600, description="seconds")
    iodepth: int = Field(1, ge=1, le=1024, description="requests in flight")


class ProfilePlan(_Table):
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
        return _distinct(value, low=1, high=5000)

    @field_validator("work")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(value)


class LimitsPlan(_Table):
    """The longest chain that a QEMU opens and reads."""

    within: int = Field(1, ge=1, le=1000, description="the limit is found to this many layers")
    attempt_s: float = Field(
        900.0, ge=1, le=86400, description="seconds that a chain may take to open before it counts as not opened"
    )


class Plan(_Table):
    """A study's plan."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the study in its report")
    lengths: tuple[int, ...] = Field(min_length=1, description="chain lengths to measure at, at most chain.length")
    tests: tuple[Test, ...] = Field(
        ("read", "random", "host", "stream", "memory"), min_length=1, description="what is measured at each length"
    )
    repeats: int = Field(3, ge=1, le=100, description="times that everything is measured; interleaved over lengths")
    qemu: tuple[str, ...] = Field(
        ("host",), min_length=1, description='QEMUs to measure: "host", "debian:SUITE", or the directory of a build'
    )
    lift: tuple[Lift, ...] = Field(
        ("none",), min_length=1, description='"none", "index", "squash": the disk as it is and lifted'
    )
    guest_lengths: tuple[int, ...] = Field(
        (), description="lengths at which the tests that boot a guest are made; empty: at all"
    )
    lift_lengths: tuple[int, ...] = Field((), description="lengths at which lifted disks are measured; empty: at all")
    stream_in: Literal["guest", "host"] = Field(
        "guest",
        description="guest: block-stream under a running guest; host: the same in a storage daemon, without one",
    )
    stream_lengths: tuple[int, ...] = Field((), description="lengths at which streams are measured; empty: at all")
    stream_repeats: int = Field(0, ge=0, le=100, description="times that streams are measured; 0: as all else")
    live: bool = Field(
        default=False,
        description='also switch the longest chain to an index and back while a guest reads, as the test "live" does; '
        "each of its three parts takes random.duration_s",
    )
    accelerator: Literal["auto", "kvm", "tcg"] = Field(
        "auto", description="auto: KVM where a guest really boots under it, else emulation"
    )
    cache: Literal["writeback", "none", "writethrough", "directsync", "unsafe"] = Field(
        "writeback", description="cache mode of the disk and of host reads, as qemu-img's -t has it"
    )
    aio: Literal["threads", "native", "io_uring"] = Field("threads", description="how QEMU reads files")
    chains: str = Field("", description="directory that built chains are kept in; empty: chainlift's cache")
    guest: GuestPlan = Field(default_factory=GuestPlan)
    chain: ChainPlan
    host_read: HostReadPlan = Field(default_factory=HostReadPlan)
    random: RandomPlan = Field(default_factory=RandomPlan)
    profile: ProfilePlan = Field(default_factory=ProfilePlan)
    limits: LimitsPlan = Field(default_factory=LimitsPlan)

    @field_validator("lengths", "guest_lengths", "lift_lengths", "stream_lengths")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _distinct(value, low=1, high=5000)

    @field_validator("tests", "qemu", "lift")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _distinct(value)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if max(self.lengths) > self.chain.length:
            raise ValueError(f"lengths: at most chain.length ({self.chain.length}), {max(self.lengths)} is more")
        chosen = {
            "guest_lengths": self.guest_lengths,
            "lift_lengths": self.lift_lengths,
            "stream_lengths": self.stream_lengths,
            "profile.lengths": self.profile.lengths,
            "host_read.sequential_lengths": self.host_read.sequential_lengths,
        }
        for key, lengths in chosen.items():
            if unknown := set(lengths) - set(self.lengths):
                raise ValueError(f"{key}: {min(unknown)} is not among lengths")
        if self.aio == "native" and self.cache not in {"none", "directsync"}:
            raise ValueError('aio: "native" needs cache "none" or "directsync", as in QEMU')
        return self

    @property
    def all_tests(self) -> tuple[Test, ...]:
        """The tests, with the one that :attr:`live` asks for."""
        return (*self.tests, "live") if self.live and "live" not in self.tests else self.tests

    def chain_key(self) -> str:
        """Name the chain by what it is made from; plans that differ only in what they measure share one."""
        part: dict[str, Any] = {"chain": self.chain.model_dump(exclude_defaults=True)}
        if self.chain.build == "live":
            part |= self.guest.chain_part()
        text = json.dumps(part, sort_keys=True)
        return f"{self.chain.build}-{self.chain.length}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def load_plan(name: str) -> Plan:
    """Load a shipped plan by its name, or a plan from a file.

    :raise PlanError: if there is none of that name, or it does not hold.
    """
    if name in SHIPPED:
        return parse_plan(shipped_text(name), path=f"{name}.toml")
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        shipped = ", ".join(SHIPPED)
        raise PlanError("no such plan", path=name, hint=f"name a TOML file or one of {shipped}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise PlanError(f"cannot be read: {reason}", path=name) from error
    return parse_plan(text, path=name)


def shipped_text(name: str) -> str:
    """Return the text of a shipped plan."""
    return (resources.files("chainlift.study") / "plans" / f"{name}.toml").read_text(encoding="utf-8")


def parse_plan(text: str, *, path: str | None = None) -> Plan:
    """Check a plan's text.

    :raise PlanError: if it is no TOML, or a key or a value does not hold; the text names the key and what is allowed.
    """
    try:
        tables = tomllib.loads(text)
        # Through JSON: pydantic's strict mode then takes an array for a tuple, and still no string for a number.
        return Plan.model_validate_json(json.dumps(tables))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"is not TOML: {error}", path=path) from error
    except TypeError as error:
        raise PlanError("has a date or time, no key takes one", path=path) from error
    except ValidationError as error:
        raise PlanError(_explain(error), path=path) from error


def _explain(error: ValidationError) -> str:
    """Say the first thing that is wrong in one line; pydantic's own texts where they are good enough."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key; allowed here: {', '.join(_keys_at(where[:-1]))}"
    if first["type"] == "missing":
        return f"{key}: this key is needed"
    said = str(first["msg"]).removeprefix("Value error, ").replace("Input should be ", "should be ")
    if not key or isinstance(first["input"], dict):
        return said if not key or ":" in said else f"{key}: {said}"
    shown = json.dumps(first["input"], default=str)
    return f"{key}: {said}" + (f", not {shown}" if len(shown) <= 60 else "")


def _keys_at(where: Sequence[str]) -> list[str]:
    table: type[BaseModel] = Plan
    for part in where:
        annotation = table.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        table = annotation
    return list(table.model_fields)


def _distinct(value: tuple[Any, ...], low: int | None = None, high: int | None = None) -> tuple[Any, ...]:
    for item in value:
        if low is not None and high is not None and not low <= item <= high:
            raise ValueError(f"each from {low} to {high}")
        if value.count(item) > 1:
            raise ValueError(f"{item!r} stands twice")
    return value
