"""Reads through QEMU's block layer without a guest: ``qemu-img bench`` on the active layer.

Each measurement is a process of its own, so caches start empty and peak memory is that access pattern's own. The
process is held when the chain is open, and again before it closes it: times are those of the requests alone.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.process import describe_end, last_lines
from chainlift.qemu.bench import reading
from chainlift.qemu.memory import read_resident_set
from chainlift.study.cpu import cpu_times

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.binary import Qemu
    from chainlift.study.plan import Plan

_COMPLETED = re.compile(r"Run completed in ([0-9.]+) seconds")
#: Requests of a first run, where nothing is known of what one takes.
_PILOT_REQUESTS = 8
#: A run that used less of its budget than this is made again with more requests.
_LEAST_SHARE = 0.25
#: With which power of the chain's length a request's time is taken to grow, to foresee it: rather too much.
_GROWTH = 2.5
KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Pattern:
    """An access pattern: requests of ``size`` bytes every ``step`` bytes from the disk's start."""

    #: As results name it: ``4k-strided-d1``.
    variant: str
    size: int
    step: int
    depth: int
    requests: int


@dataclass(frozen=True)
class HostRead:
    """What a pattern took; metrics are None where QEMU crashed."""

    metrics: dict[str, float] | None
    #: How QEMU ended, where it crashed.
    crash: str | None = None
    signal: int | None = None


class Pace:
    """What a request took so far, by chain length: how many are affordable is known before a chain is opened."""

    def __init__(self) -> None:
        self._request_s: dict[tuple[str, str], dict[int, float]] = {}

    def learn(self, qemu: str, lift: str, length: int, metrics: dict[str, float]) -> None:
        """Keep what a measurement at this length has shown."""
        self._request_s.setdefault((qemu, lift), {})[length] = metrics["wall_s"] / metrics["requests"]

    def foresee(self, qemu: str, lift: str, length: int) -> float | None:
        """Return about how many seconds a request takes, at most; None where nothing is known."""
        known = self._request_s.get((qemu, lift), {})
        nearest = max((n for n in known if n <= length), default=None)
        return None if nearest is None else known[nearest] * float((length / nearest) ** _GROWTH)


def patterns(plan: Plan) -> list[Pattern]:
    """Return the patterns that a plan asks for, the one that warms the host's page cache first."""
    host, disk = plan.host_read, plan.chain.size
    sequential = min(host.max_bytes, disk)
    found = []
    for depth in host.depths:
        found += [
            Pattern(f"4m-seq-d{depth}", 4 * MIB, 4 * MIB, depth, max(1, sequential // (4 * MIB))),
            Pattern(
                f"64k-seq-d{depth}", 64 * KIB, 64 * KIB, depth, min(host.max_requests, max(1, sequential // (64 * KIB)))
            ),
            Pattern(f"4k-strided-d{depth}", 4 * KIB, host.stride, depth, min(host.max_requests, disk // host.stride)),
        ]
    return found


def host_read(
    qemu: Qemu,
    image: Path | str,
    pattern: Pattern,
    *,
    cache: str,
    aio: str,
    budget_s: float,
    request_s: float | None = None,
) -> HostRead:
    """Measure one pattern on an image.

    :param image: a qcow2 image's path, or a ``json:`` name.
    :param budget_s: make fewer requests where all of them would take longer.
    :param request_s: what one is expected to take, where that is known.
    :raise QemuError: if ``qemu-img bench`` fails without crashing.
    """
    requests = _PILOT_REQUESTS if request_s is None else _affordable(budget_s, request_s)
    while True:
        requests = min(requests, pattern.requests)
        found = _measure(qemu, image, pattern, requests, cache, aio)
        if found.metrics is None or requests == pattern.requests or found.metrics["wall_s"] >= _LEAST_SHARE * budget_s:
            return found
        requests = max(2 * requests, _affordable(budget_s, found.metrics["wall_s"] / requests))


def _affordable(budget_s: float, request_s: float) -> int:
    return max(_PILOT_REQUESTS, int(budget_s / max(request_s, 1e-9)))


def _measure(qemu: Qemu, image: Path | str, pattern: Pattern, requests: int, cache: str, aio: str) -> HostRead:
    began = time.monotonic()
    try:
        with reading(
            qemu,
            image,
            (pattern.size, pattern.step),
            requests=requests,
            depth=min(pattern.depth, requests),
            cache=cache,
            aio=aio,
        ) as work:
            open_s = time.monotonic() - began
            resident = read_resident_set(work.process.pid)
            user, system = cpu_times(work.process.pid)
            work.go()
            cpu = cpu_times(work.process.pid) if work.until_done() else None
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
    if resident is not None:
        metrics["open_rss_bytes"] = resident.own_bytes + resident.shared_bytes
    return HostRead(metrics)
