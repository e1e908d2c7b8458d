"""Host requests beside reads from the page cache: cold ones, writes, and single ones with the latency of each."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from math import ceil, log2
from random import Random
from typing import TYPE_CHECKING, ClassVar

from chainlift.errors import QemuError
from chainlift.host.durable import write_atomically
from chainlift.qemu.process import run_tool
from chainlift.results.store import LATENCIES
from chainlift.study.active_layer import read_through
from chainlift.study.host_read import CACHED_MODES, HostRead, Pattern, host_read, spread_step
from chainlift.study.page_cache import drop, files_of
from chainlift.study.probe import Probe, Reading, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

_SIZE = 4096
#: What ``read -C`` of qemu-io prints: bytes, requests, time, bytes a second, requests a second (qemu-io-cmds.c).
_REPORT = re.compile(r"^(?:qemu-io> )*(\d+),1,[\d.:]+,[\d.]+,([\d.]+)$", re.MULTILINE)
#: Buckets of a histogram in each doubling of the latency.
_BUCKETS = 8
_PERCENTILES = (50, 95, 99)


def more_probes(plan: Plan) -> list[Probe]:
    """Return the probes that the plan's ``host_read.also`` asks for."""
    found: list[Probe] = []
    for kind in plan.host_read.also:
        if kind in ("cold", "write"):
            found.append(FreshProbe(is_write=kind == "write"))
        else:
            found.append(SingleProbe(read_percent=100 if kind == "single" else plan.host_read.mix_read))
    return found


def _places(plan: Plan) -> int:
    """Return how many requests fall on different places of the disk, at most as many as the plan makes."""
    return min(plan.host_read.requests, plan.chain.size // _SIZE)


class _OfEachLength:
    """One variant at each length, as often as the plan repeats what is no headline."""

    boots_guest: ClassVar[bool] = False

    @property
    def variant(self) -> str:
        """As results name it."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """See :class:`~chainlift.study.probe.Probe`."""
        return f"host {self.variant}"

    @property
    def names(self) -> Sequence[tuple[Test, str]]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return [("host", self.variant)]

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.lengths

    def repeats(self, plan: Plan) -> int:
        """See :func:`~chainlift.study.probe.repeats_of`."""
        return max(plan.repeats, plan.host_read.other_repeats)


@dataclass(frozen=True)
class FreshProbe(_OfEachLength):
    """4 KiB requests that find nothing of an earlier measurement: no page in the cache, no cluster copied up."""

    is_write: bool

    @property
    def variant(self) -> str:
        """As results name it."""
        return "4k-write-d1" if self.is_write else "4k-cold-d1"

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan = setup.plan
        requests = _places(plan)
        pattern = Pattern(self.variant, _SIZE, spread_step(plan.chain.size), 1, requests, is_write=self.is_write)
        files = set() if self.is_write else files_of(setup.image)
        drop(files)
        aio = setup.host_aio or plan.aio
        # One run of so many: a second one would find what the first has left.
        found: HostRead = host_read(
            setup.qemu, setup.readable, pattern, cache=plan.cache, aio=aio, budget_s=1e9, request_s=1e-9
        )
        if plan.cache in CACHED_MODES:
            # For what is measured next.
            read_through(sorted(files))
        if found.metrics is None:
            yield Reading("host", self.variant, outcome="crashed", signal=found.signal, detail=found.crash)
        else:
            yield Reading("host", self.variant, found.metrics)


@dataclass(frozen=True)
class SingleProbe(_OfEachLength):
    """4 KiB requests one by one through qemu-io, which tells what each took; some may be writes."""

    read_percent: int

    @property
    def variant(self) -> str:
        """As results name it."""
        return "4k-single-d1" if self.read_percent == 100 else f"4k-mixed{self.read_percent}-d1"

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        plan = setup.plan
        count, step = _places(plan), spread_step(plan.chain.size)
        # The same requests at each length.
        kinds = Random(plan.seed)
        lines = [
            f"{'read' if kinds.randrange(100) < self.read_percent else 'write'} -C "
            f"{number * step % (plan.chain.size // _SIZE * _SIZE)} {_SIZE}"
            for number in range(count)
        ]
        argv = setup.qemu.command(
            *("io", "-f", "qcow2", "-t", plan.cache, "-i", setup.host_aio or plan.aio, str(setup.readable))
        )
        finished = run_tool(argv, environment=setup.qemu.environment, input_bytes="\n".join([*lines, ""]).encode())
        taken = [1 / float(rate) for size, rate in _REPORT.findall(finished.stdout) if int(size) == _SIZE]
        if len(taken) != count:
            raise QemuError(f"qemu-io answered {len(taken)} of {count} requests", path=setup.image)
        name = f"{self.variant}--{setup.qemu.label}--{setup.length}-layers"
        parts = [part for part in (setup.lift, setup.setting) if part not in ("none", "")]
        write_histogram(setup.results, "--".join([name, *parts, f"{setup.repeat}"]), taken)
        ordered = sorted(taken)
        metrics = {"wall_s": sum(taken), "requests": float(count), "bytes": float(count * _SIZE)}
        metrics |= {f"latency_p{p}_s": ordered[min(count - 1, ceil(count * p / 100) - 1)] for p in _PERCENTILES}
        yield Reading("host", self.variant, metrics | {"latency_max_s": ordered[-1]})


def write_histogram(results: Path, name: str, taken: Sequence[float]) -> Path:
    """Write how many requests took how long, ``latencies/NAME.csv``: buckets that grow with the latency.

    :param taken: what each request took, seconds.
    """
    counts: dict[int, int] = {}
    for seconds in taken:
        bucket = ceil(log2(max(seconds, 1e-9)) * _BUCKETS)
        counts[bucket] = counts.get(bucket, 0) + 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("at_most_s", "requests"))
    for bucket, number in sorted(counts.items()):
        writer.writerow((f"{2 ** (bucket / _BUCKETS):.4g}", number))
    path = results / LATENCIES / f"{re.sub(r'[^A-Za-z0-9._=-]+', '_', name)}.csv"
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text.getvalue())
    return path
