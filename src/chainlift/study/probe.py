"""A probe measures one thing on one chain length; tests of a plan are made of probes, registered by name.

A new test is a new module with a function under :func:`register`; the runner does not change::

    @register("read")
    def probes(plan: Plan) -> Sequence[Probe]:
        return [ReadProbe()]
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from chainlift.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from chainlift.guest.interface import Guest, GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator
    from chainlift.results.model import Lift, Outcome, Test
    from chainlift.study.chain_store import ChainDirectory
    from chainlift.study.plan import Plan
    from chainlift.study.progress import Progress


@dataclass(frozen=True)
class Reading:
    """What a probe measured under one name; the runner adds where and when and makes a sample of it."""

    test: Test
    variant: str
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: Outcome = "ok"
    signal: int | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Setup:
    """What a probe works on: one chain at one length, with one QEMU."""

    plan: Plan
    qemu: Qemu
    accelerator: Accelerator
    kind: GuestKind
    #: The finished chain; nothing in it may be written to.
    chain: ChainDirectory
    length: int
    lift: Lift
    repeat: int
    #: A copy of layer ``length``, lifted where the cell says so; the probe may write to it, it is thrown away.
    image: Path
    #: A directory on the chain's file system that is thrown away afterwards.
    scratch: Path
    #: The result directory, for what is more than numbers (profiles).
    results: Path
    progress: Progress
    #: How host reads read files; empty: as everything else, :attr:`chainlift.study.plan.Plan.aio`.
    host_aio: str = ""
    #: As :attr:`chainlift.results.model.Sample.setting` has it.
    setting: str = ""

    @property
    def readable(self) -> Path | str:
        """:attr:`image`, as QEMU's tools take it: with the plan's caches of L2 tables."""
        if not self.plan.l2_cache_size:
            return self.image
        from chainlift.study.l2_cache import described, with_caches

        return "json:" + json.dumps(with_caches(described(self.image), self.plan))

    def boot(self, *, iothread: bool | None = None) -> AbstractContextManager[Guest]:
        """Boot the plan's guest on :attr:`image`; leaving the context ends what still runs.

        The disk's node is named ``active``.

        :param iothread: as the plan says, where it is not given.
        """
        from chainlift.guest.boot import boot
        from chainlift.qemu.machine import Disk
        from chainlift.study.l2_cache import as_blockdevs, described, with_caches

        options: dict[str, Any] = {}
        layers: list[dict[str, Any]] = []
        if self.plan.l2_cache_size:
            top = with_caches(described(self.image), self.plan)
            layers = as_blockdevs(top, self.plan.cache)
            # Its driver and its file are the disk's own.
            options = {key: value for key, value in top.items() if key.startswith("l2-cache")}
        return boot(
            self.kind,
            self.qemu,
            Disk(self.image, node="active", cache=self.plan.cache, aio=self.plan.aio, options=options, layers=layers),
            accelerator=self.accelerator,
            memory_bytes=self.plan.guest.memory,
            vcpus=self.plan.guest.vcpus,
            deadline_s=self.plan.guest.boot_deadline_s,
            iothread=self.plan.iothread if iothread is None else iothread,
        )


class Probe(Protocol):
    """Measures; one run may give readings under several names."""

    @property
    def title(self) -> str:
        """What stands in the progress line: ``read``, ``host 4k-strided-d1``."""

    @property
    def names(self) -> Sequence[tuple[Test, str]]:
        """Each ``(test, variant)`` that a run gives a reading for, if nothing goes wrong."""

    def lengths(self, plan: Plan) -> Sequence[int]:
        """Return the lengths to run at, most often ``plan.lengths``."""

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """Measure. Readings that were given before something goes wrong are kept.

        :raise QemuCrashed: which the runner records as a result under the names not given yet.
        :raise GuestError: the same, if the probe has worked elsewhere in this study.
        """


#: The modules that register probes; a new one is named here.
_MODULES = tuple(
    f"chainlift.study.{name}"
    for name in ("guest_probes", "boot_probe", "rocksdb", "host_probe", "profile", "limits", "live_pivot")
)


def boots_guest(probe: Probe) -> bool:
    """Whether a probe boots a guest; those that do not say so with ``boots_guest = False``."""
    return getattr(probe, "boots_guest", True)


def repeats_of(probe: Probe, plan: Plan) -> int:
    """How often a probe runs; those that do not run as often as the plan's repeats have ``repeats(plan)``."""
    repeats: Callable[[Plan], int] | None = getattr(probe, "repeats", None)
    return plan.repeats if repeats is None else repeats(plan)


def is_repeatable(probe: Probe) -> bool:
    """Whether a run of a probe that was disturbed may be made again; others say so with ``is_repeatable = False``."""
    return getattr(probe, "is_repeatable", True)


def lifts_itself(probe: Probe) -> bool:
    """Whether a probe measures the plain chain alone: a lifted disk is not what it works on, or it lifts it itself."""
    return getattr(probe, "lifts_itself", False)


_REGISTRY: dict[str, Callable[[Plan], Sequence[Probe]]] = {}


def register(test: Test) -> Callable[[Callable[[Plan], Sequence[Probe]]], Callable[[Plan], Sequence[Probe]]]:
    """Register the function that makes a test's probes for a plan."""

    def keep(make: Callable[[Plan], Sequence[Probe]]) -> Callable[[Plan], Sequence[Probe]]:
        _REGISTRY[test] = make
        return make

    return keep


def probes_of(plan: Plan) -> list[Probe]:
    """Return the probes of a plan's tests, in the plan's order; a name that two of them give is measured once.

    :raise PlanError: if a test is not there.
    """
    for module in _MODULES:
        import_module(module)
    found: list[Probe] = []
    covered: set[tuple[str, str]] = set()
    for test in plan.all_tests:
        if test not in _REGISTRY:
            raise PlanError(f"tests: there is no test {test!r}; there are {', '.join(sorted(_REGISTRY))}")
        for probe in _REGISTRY[test](plan):
            if not covered.issuperset(probe.names):
                found.append(probe)
                covered.update(probe.names)
    return found
