"""A study's plan: what is measured, on what, and how often.

``chainlift study init`` writes a plan with every key explained; the explanations are the ``description`` of its fields.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from chainlift.qemu.machine import Aio, CacheMode
from chainlift.results.model import Lift, Test
from chainlift.study.plan_tables import (
    ChainPlan,
    GuestPlan,
    HostReadPlan,
    LimitsPlan,
    ProfilePlan,
    QuietPlan,
    RandomPlan,
    Size,
    Table,
    VaryPlan,
    distinct,
)


class Plan(Table):
    """A study's plan."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="names the study in its report")
    lengths: tuple[int, ...] = Field(min_length=1, description="chain lengths to measure at, at most chain.length")
    tests: tuple[Test, ...] = Field(
        ("read", "random", "host", "stream", "memory"), min_length=1, description="what is measured at each length"
    )
    repeats: int = Field(3, ge=1, le=100, description="times that everything is measured; interleaved over lengths")
    seed: int = Field(1, ge=0, description="in which order the cells of a repeat are measured follows from this number")
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
    cache: CacheMode = Field(
        "writeback", description="cache mode of the disk and of host reads, as qemu-img's -t has it"
    )
    aio: Aio = Field("threads", description="how QEMU reads files")
    l2_cache_size: Size = Field(
        0, ge=0, le=1 << 40, description="bytes of QEMU's caches of L2 tables; 0: as QEMU chooses"
    )
    l2_cache: Literal["each", "all"] = Field(
        "each", description="whether l2_cache_size is each layer's, or that of all, which share it alike"
    )
    iothread: bool = Field(default=False, description="serve the guest's disk by a thread of its own")
    pin: tuple[int, ...] = Field((), description="CPUs that everything is measured on, by number; empty: all of them")
    chains: str = Field("", description="directory that built chains are kept in; empty: chainlift's cache")
    guest: GuestPlan = Field(default_factory=GuestPlan)
    chain: ChainPlan
    host_read: HostReadPlan = Field(default_factory=HostReadPlan)
    random: RandomPlan = Field(default_factory=RandomPlan)
    profile: ProfilePlan = Field(default_factory=ProfilePlan)
    limits: LimitsPlan = Field(default_factory=LimitsPlan)
    quiet: QuietPlan = Field(default_factory=QuietPlan)
    vary: VaryPlan = Field(default_factory=VaryPlan)

    @field_validator("lengths", "guest_lengths", "lift_lengths", "stream_lengths")
    @classmethod
    def _lengths(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, low=1, high=5000)

    @field_validator("pin")
    @classmethod
    def _pin(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return distinct(value, low=0, high=8191)

    @field_validator("tests", "qemu", "lift")
    @classmethod
    def _once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return distinct(value)

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
        if "rocksdb" in self.tests:
            if not self.chain.rocksdb_keys:
                raise ValueError('tests: "rocksdb" reads a database: say how many keys in chain.rocksdb_keys')
            if self.guest.kind == "micro":
                raise ValueError('tests: "rocksdb" needs guest.kind "debian", or an image of your own with db_bench')
        if self.chain.rocksdb_keys and self.chain.build != "live":
            raise ValueError('chain.rocksdb_keys: needs chain.build "live", where a guest writes the database')
        if not (self.vary.aio or self.vary.cache):
            self._require_direct()
        caches = self.l2_cache_size or any(self.vary.l2_cache_size)
        without = {"profile", "limits", "live"} & set(self.all_tests)
        if self.stream_in == "host" and "stream" in self.tests:
            without.add('stream with stream_in = "host"')
        if caches and without:
            raise ValueError(f"l2_cache_size: not for the tests {', '.join(sorted(without))}")
        return self

    def _require_direct(self) -> None:
        if self.aio == "native" and self.cache not in {"none", "directsync"}:
            raise ValueError('aio: "native" needs cache "none" or "directsync", as in QEMU')

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
