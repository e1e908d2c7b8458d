"""What a study leaves behind: the environment it ran in, the chain it built and every sample it took.

A result directory holds::

    plan.toml           the plan as it ran, every default written out
    environment.json    :class:`Environment`, one entry a QEMU
    chain.json          :class:`ChainShape`
    parameters.json     of a study with host reads: what the model of costs knows of each QEMU on this host
    samples.jsonl       one :class:`Sample` a line, appended and synced as it was taken; never rewritten
    attempts.jsonl      one :class:`LimitAttempt` a line: each length that the limits test tried
    state.json          :class:`State`: how far the study is
    results.csv         the samples, tidy: one row a sample and metric
    latencies/          histograms of single host requests: at_most_s,requests
    profiles/           folded stacks, speedscope files and flame graphs
    report.html         drawn from the files above, and from nothing else

Raw samples are kept; medians and spreads are derived when they are shown. Units are in the names:
``_s`` seconds, ``_bytes`` bytes, ``_iops`` requests a second, ``_bytes_per_s``.

History of :data:`SCHEMA`: 1, the first.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = 1

Lift = Literal["none", "index", "squash"]
Test = Literal["read", "random", "host", "stream", "memory", "profile", "limits", "live", "boot", "rocksdb"]
Outcome = Literal["ok", "crashed", "timed out", "failed"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(_Frozen):
    """What else the machine did while a sample was taken."""

    #: CPU time that other programs took, of all that the CPUs had.
    others_share: float = Field(ge=0, le=1)
    #: CPU time that the hypervisor gave to others, the same.
    steal_share: float = Field(ge=0, le=1)
    #: CPU time of a fixed loop beside the cell, over that of its fastest run in the study.
    slowdown: float = Field(gt=0)
    #: Whether that is more than the plan calls quiet.
    is_disturbed: bool
    #: How often the cell was measured; the least disturbed run is this one.
    runs: int = Field(default=1, ge=1)
    #: How long the study waited for a quiet machine before it.
    waited_s: float = Field(default=0.0, ge=0)


class Sample(_Frozen):
    """One measurement, as it was taken.

    ``(test, variant, qemu, lift, setting, length, repeat)`` names it; a resumed study skips the names it already has.
    """

    test: Test
    #: What of the test this is: host ``4k-strided-d1``; memory ``boot-halt``; else ``""``.
    variant: str = ""
    #: Chain length: layers over the base.
    length: int = Field(ge=0)
    qemu: str = "host"
    lift: Lift = "none"
    #: What the plan varies and has here: ``cache=none, aio=native``; empty where it varies nothing.
    setting: str = ""
    repeat: int = Field(ge=0)
    started_at: datetime
    outcome: Outcome = "ok"
    #: The signal that ended QEMU, where it crashed.
    signal: int | None = None
    #: One line on what happened, where the outcome is not ``ok``.
    detail: str | None = None
    #: Name with unit -> value; :data:`chainlift.results.metrics.METRICS` says which a test has and what they mean.
    metrics: dict[str, float] = Field(default_factory=dict)
    #: Load average of the host when the sample began: a noisy machine shows.
    load_1m: float | None = None
    #: Missing in samples from before 2026-11-26.
    conditions: Conditions | None = None
    #: The version of chainlift that took it; missing in samples from before 2026-11-26.
    chainlift: str | None = None

    @property
    def name(self) -> tuple[str, str, str, str, str, int, int]:
        """What makes the sample the one it is."""
        return (self.test, self.variant, self.qemu, self.lift, self.setting, self.length, self.repeat)


class State(_Frozen):
    """How far a study is."""

    #: Runs of probes that the plan asks for, and those that are made.
    cells: int = Field(ge=0)
    done: int = Field(ge=0)

    @property
    def is_complete(self) -> bool:
        """Whether everything that was planned is there."""
        return self.done >= self.cells


class LimitAttempt(_Frozen):
    """What happened to a QEMU at one length, when the longest chain was looked for."""

    qemu: str
    repeat: int = Field(ge=0)
    length: int = Field(ge=1)
    started_at: datetime
    #: Until the chain was open; missing where it never was.
    open_s: float | None = None
    #: Open ones then.
    file_descriptors: int | None = None
    #: What ended QEMU; missing where every read was answered. SIGALRM (14): it took too long, and we ended it.
    signal: int | None = None


class FilePlace(_Frozen):
    """Where a file of the study lies."""

    path: str
    file_system: str
    device: str
    mount_options: str = ""
    rotational: bool | None = None


class QemuFacts(_Frozen):
    """One QEMU that was measured."""

    label: str
    binary: str
    #: As ``-version`` prints it, package version included.
    version: str
    #: Where it came from: ``host``, ``debian:trixie``, ``path``.
    source: str
    #: The function that was taken out of it and the label of the QEMU that it is a copy of, where it is one.
    without: str = ""
    copy_of: str = ""
    accelerator: Literal["kvm", "tcg"]
    #: Why this accelerator: ``a guest booted under KVM in 1.2 s``, ``no guest booted under KVM in 20 s``.
    accelerator_reason: str = ""
    machine: str = ""
    has_symbols: bool | None = None
    #: How host reads read files, where that was left to chainlift (``host_read.aio = "auto"``).
    host_aio: str = ""
    #: SHA-256 of its programs, by their names; missing in results from before 2026-11-26, as the others are.
    sha256: dict[str, str] = Field(default_factory=dict)


class GuestFacts(_Frozen):
    """The guest that ran the tests."""

    kind: str
    kernel: str = ""
    description: str = ""
    memory_bytes: int
    vcpus: int
    #: SHA-256 of its kernel and initrd.
    sha256: dict[str, str] = Field(default_factory=dict)


class Environment(_Frozen):
    """The machine and the software of a study; what a number means depends on it."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    chainlift: str
    started_at: datetime
    hostname_hash: str = ""
    cpu: str
    cpus: int
    memory_bytes: int
    host_kernel: str
    operating_system: str
    cache_mode: str
    aio: str = ""
    l2_cache_size: str = "default"
    qemus: list[QemuFacts]
    guest: GuestFacts | None = None
    files: list[FilePlace] = Field(default_factory=list)
    #: How the kernel clocks the CPUs; empty where that is not the kernel's to say.
    governor: str = ""
    #: What the kernel does about each weakness of the CPU.
    mitigations: dict[str, str] = Field(default_factory=dict)
    #: The commit of chainlift's sources, ``+`` where they were changed; empty for an installed chainlift.
    commit: str = ""
    #: SHA-256 of the SHA-256s of the chain's files, the base's first.
    chain_sha256: str = ""
    #: What this machine could not show: no KVM, no symbols, no perf.
    limits: list[str] = Field(default_factory=list)

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ChainShape(_Frozen):
    """The chain that was measured."""

    #: How it was made: by a live guest with fio, or laid down offline with the same distribution.
    built: Literal["live", "offline", "given"]
    virtual_size_bytes: int
    cluster_size_bytes: int
    #: Size on disk of the base and of each layer over it, bottom first: ``layer_bytes[0]`` is the base.
    layer_bytes: list[int]
    #: Clusters that each layer has allocated, bottom first, where they were counted.
    layer_clusters: list[int] = Field(default_factory=list)
    interval_s: float | None = None
    #: By how much interval and write rate were sped up together.
    pace: float = 1.0
    build_s: float | None = None

    @property
    def length(self) -> int:
        """Layers over the base."""
        return len(self.layer_bytes) - 1
