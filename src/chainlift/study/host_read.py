"""Reads through QEMU's block layer without a guest: ``qemu-img bench`` on the active layer.

Each measurement is a process of its own, so caches start empty and peak memory is that access pattern's own. The
process is held when the chain is open, and again before it closes it: times are those of the requests alone.

How many requests it makes follows from the time that there is for it, so that a clock of milliseconds does not decide
over the figure. Of reads from the page cache that time is QEMU's CPU time: the same work on a quiet machine and on a
busy one. The first requests load every layer's tables, which takes as long as hundreds of others: a run of those alone
comes first, and what it took is taken off.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from math import ceil, gcd
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.cpu import cpu_times
from chainlift.host.process import describe_end, last_lines
from chainlift.qemu.bench import reading
from chainlift.qemu.memory import read_resident_set

if TYPE_CHECKING:
    from chainlift.qemu.binary import Qemu
    from chainlift.study.plan import Plan

_COMPLETED = re.compile(r"Run completed in ([0-9.]+) seconds")
#: Requests of a first run, where nothing is known of what one takes.
_PILOT_REQUESTS = 8
#: A run that used less of its budget than this is made again with more requests.
_LEAST_SHARE = 0.5
#: What qemu-img says how long it took is in whole milliseconds.
_CLOCK_S = 1e-3
#: Requests of one run at most, and bytes of a step: both are an ``int`` in ``img_bench()`` (qemu-img.c).
_INT_MAX = (1 << 31) - 1
#: A step of this share of the disk spreads any number of requests evenly over it.
_GOLDEN = 0.6180339887498949
#: Cache modes in which reads come from the host's page cache.
CACHED_MODES = frozenset({"writeback", "writethrough", "unsafe"})
#: With which power of the chain's length a request's time is taken to grow, to foresee it: rather too much.
_GROWTH = 2.5
#: What is of requests, and not of a process.
_OF_REQUESTS = frozenset({"wall_s", "requests", "bytes", "cpu_user_s", "cpu_sys_s"})
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Pattern:
    """An access pattern: requests of ``size`` bytes every ``step`` bytes from the disk's start."""

    #: As results name it: ``4k-strided-d1``.
    variant: str
    size: int
    step: int
    depth: int
    #: At most.
    requests: int
    #: Offset of the first one.
    start: int = 0
    #: Requests until all tables are loaded; they are not counted.
    warm_up: int = 0
    #: Write, and not read.
    is_write: bool = False

    @property
    def is_sequential(self) -> bool:
        """Whether one request begins where the one before ended."""
        return self.step == self.size


@dataclass(frozen=True)
class HostRead:
    """What a pattern took; metrics are None where QEMU crashed, or nothing was run."""

    metrics: dict[str, float] | None
    #: How QEMU ended, where it crashed.
    crash: str | None = None
    signal: int | None = None
    settled: Settled | None = None


@dataclass(frozen=True)
class Settled:
    """What the first measurement of a cell has settled for the later ones."""

    #: Requests that are counted.
    requests: int
    #: What one takes.
    request_s: float
    #: What a run of the requests before them showed; None where there are none.
    warm_up: dict[str, float] | None


class Pace:
    """What was settled so far, by chain length.

    A cell that is measured again makes as many requests as before; of a longer chain it is foreseen how many are
    affordable, before it is opened.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[int, Settled]] = {}

    def learn(self, where: tuple[str, str], length: int, settled: Settled) -> None:
        """Keep what a measurement at this length has settled.

        :param where: QEMU's label and the lift that the image stood on.
        :param length: of the chain, in layers.
        :param settled: what was.
        """
        self._known.setdefault(where, {}).setdefault(length, settled)

    def settled(self, where: tuple[str, str], length: int) -> Settled | None:
        """Return what is settled of this very cell.

        :param where: QEMU's label and the lift that the image stands on.
        :param length: of the chain, in layers.
        """
        return self._known.get(where, {}).get(length)

    def foresee(self, where: tuple[str, str], length: int) -> float | None:
        """Return about how many seconds a request takes, at most; None where nothing is known.

        :param where: QEMU's label and the lift that the image stands on.
        :param length: of the chain, in layers.
        """
        known = self._known.get(where, {})
        nearest = max((n for n in known if n <= length), default=None)
        return None if nearest is None else known[nearest].request_s * float((length / nearest) ** _GROWTH)


def patterns(plan: Plan) -> list[Pattern]:
    """Return the patterns that a plan asks for, the one that warms the host's page cache first."""
    host, disk = plan.host_read, plan.chain.size
    step = host.stride or spread_step(disk)
    # An L2 table is a cluster of entries of 8 bytes.
    tables = ceil(disk / (plan.chain.cluster_size**2 // 8))
    found = []
    for depth in host.depths:
        found += [
            _pattern("4m-seq", 4 * MIB, 4 * MIB, depth, disk, host.max_bytes // (4 * MIB)),
            _pattern(
                *("64k-seq", 64 * KIB, 64 * KIB, depth, disk),
                min((n for n in (host.max_bytes // (64 * KIB), host.max_requests) if n), default=0),
            ),
            _pattern("4k-strided", 4 * KIB, step, depth, disk, host.max_requests, tables),
        ]
    return found


def _pattern(name: str, size: int, step: int, depth: int, disk: int, most: int, tables: int = 1) -> Pattern:
    """Make a pattern.

    :param most: requests at most, 0 for no limit.
    :param tables: L2 tables of a layer that it meets from the start.
    """
    # qemu-img goes on at the offset modulo the disk's size (from 10.1 on: less a request). No request reaches past the
    # end where both are multiples of a request; else it goes over the disk once.
    once = gcd(step, disk) % size != 0
    limit = max(1, disk // step) if once else _INT_MAX
    # A number that the plan has fixed is what is made.
    warm_up = 0 if once or most else max(_PILOT_REQUESTS, 4 * tables) + depth
    return Pattern(f"{name}-d{depth}", size, step, depth, min(limit, most or limit), warm_up=warm_up)


def spread_step(disk: int) -> int:
    """Return a distance between 4 KiB reads that spreads any number of them evenly over a disk.

    Steps of the golden ratio fall into the largest gap that the ones before have left; steps of a part of it do after
    some rounds. All places of the disk come before one comes again.

    :param disk: its size, bytes.
    """
    places = disk // (4 * KIB)
    parts = ceil(_GOLDEN * disk / _INT_MAX)
    step = max(1, int(_GOLDEN * places / parts))
    while gcd(step, places) > 1:
        step -= 1
    return step * 4 * KIB


def host_read(
    qemu: Qemu,
    image: Path | str,
    pattern: Pattern,
    *,
    cache: str,
    aio: str,
    budget_s: float,
    request_s: float | None = None,
    settled: Settled | None = None,
) -> HostRead:
    """Measure one pattern on an image.

    :param image: a qcow2 image's path, or a ``json:`` name.
    :param budget_s: what the requests should take, as :func:`cost_s` has it; runs that are not kept find out how many
        that are.
    :param request_s: what one is expected to take, where that is known.
    :param settled: what an earlier measurement of the same cell has settled; measure alike.
    :raise QemuError: if ``qemu-img bench`` fails without crashing.
    """

    def run(requests: int) -> HostRead:
        return _measure(qemu, image, pattern, requests, cache, aio)

    if settled is not None:
        return _without(run(settled.requests + pattern.warm_up), settled.warm_up, settled)
    warm_up = run(pattern.warm_up) if pattern.warm_up else HostRead(metrics=None)
    if warm_up.crash is not None:
        return warm_up
    if request_s is None and warm_up.metrics is not None:
        # More than the others take: these load tables.
        request_s = max(cost_s(warm_up.metrics, cache), _CLOCK_S) / pattern.warm_up
    requests = _PILOT_REQUESTS if request_s is None else _affordable(budget_s, request_s)
    while True:
        requests = min(requests, pattern.requests - pattern.warm_up)
        found = _without(run(requests + pattern.warm_up), warm_up.metrics)
        if found.metrics is None:
            return found
        cost = cost_s(found.metrics, cache)
        request_s = max(cost, _CLOCK_S) / requests
        most = pattern.requests - pattern.warm_up
        if cost >= _LEAST_SHARE * budget_s or requests == most:
            # However many it took to find out, later ones make as many as that is enough for.
            later = min(most, _affordable(budget_s, request_s))
            return replace(found, settled=Settled(later, request_s, warm_up.metrics))
        requests = max(2 * requests, _affordable(budget_s, request_s))


def _without(found: HostRead, warm_up: dict[str, float] | None, settled: Settled | None = None) -> HostRead:
    """Take off what the requests took that are not counted."""
    if found.metrics is None or warm_up is None:
        return replace(found, settled=settled)
    metrics = dict(found.metrics)
    for name in _OF_REQUESTS & metrics.keys():
        metrics[name] = max(0.0, metrics[name] - warm_up.get(name, 0.0))
    metrics["warm_up_requests"] = warm_up["requests"]
    return replace(found, metrics=metrics, settled=settled)


def cost_s(metrics: dict[str, float], cache: str) -> float:
    """Return what a measurement took: of reads from the page cache QEMU's CPU time, where it is known."""
    if cache in CACHED_MODES and "cpu_user_s" in metrics:
        return metrics["cpu_user_s"] + metrics["cpu_sys_s"]
    return metrics["wall_s"]


def _affordable(budget_s: float, request_s: float) -> int:
    return max(_PILOT_REQUESTS, int(budget_s / max(request_s, 1e-9)))


def _measure(qemu: Qemu, image: Path | str, pattern: Pattern, requests: int, cache: str, aio: str) -> HostRead:
    began = time.monotonic()
    try:
        with reading(
            qemu,
            image,
            (pattern.size, pattern.step),
            start=pattern.start,
            write=pattern.is_write,
            requests=requests,
            depth=min(pattern.depth, requests),
            cache=cache,
            aio=aio,
        ) as work:
            open_s = time.monotonic() - began
            pid = work.process.pid
            resident = read_resident_set(pid)
            stored = _bytes_from_storage(pid)
            user, system = cpu_times(pid)
            work.go()
            held = work.until_done()
            cpu = cpu_times(pid) if held else None
            stored = None if stored is None or not held else (_bytes_from_storage(pid) or stored) - stored
            work.go()
            finished = work.process.wait()
            said = work.said()
    except QemuCrashed as error:
        end = describe_end(error.returncode)
        return HostRead(None, crash=f"qemu-img ended by {end} when it opened the chain", signal=error.signal)
    if finished.returncode < 0:
        return HostRead(None, crash=f"qemu-img ended by {describe_end(finished.returncode)}", signal=finished.signal)
    match = _COMPLETED.search(said)
    if finished.returncode or match is None:
        text = last_lines(finished.stderr) or last_lines(said)
        raise QemuError(f"qemu-img bench failed ({describe_end(finished.returncode)}): {text}", path=image)
    metrics = {
        "wall_s": float(match[1]),
        "requests": requests,
        "bytes": requests * pattern.size,
        "peak_rss_bytes": finished.peak_rss_bytes,
        "open_s": open_s,
        "open_cpu_s": user + system,
    }
    if cpu is not None:  # requests so few and fast that it was done before it could be held have no CPU time
        metrics |= {"cpu_user_s": max(0.0, cpu[0] - user), "cpu_sys_s": max(0.0, cpu[1] - system)}
    if stored is not None:
        metrics["storage_bytes"] = stored
    if resident is not None:
        metrics["open_rss_bytes"] = resident.own_bytes + resident.shared_bytes
    return HostRead(metrics)


def _bytes_from_storage(pid: int) -> int | None:
    """Return the bytes that a process has made the kernel fetch from storage so far; None where it does not tell."""
    try:
        # proc(5): of a file in the page cache, none.
        for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "read_bytes":
                return int(value)
    except OSError:
        pass  # it has ended, or the kernel counts nothing (CONFIG_TASK_IO_ACCOUNTING)
    return None
