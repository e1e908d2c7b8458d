"""Reads through QEMU's block layer without a guest: ``qemu-img bench`` on the active layer.

Each measurement is a process of its own, so caches start empty and peak memory is that access pattern's own. Time is
what ``qemu-img bench`` takes for the requests; the opening of the chain, which takes seconds on a long one, is
measured by a run with a single request and taken off the CPU time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import QemuError
from chainlift.host.process import describe_end, last_lines
from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.host.process import Finished
    from chainlift.qemu.binary import Qemu
    from chainlift.study.plan import Plan

_COMPLETED = re.compile(r"Run completed in ([0-9.]+) seconds")
#: Requests of the run that decides how many are affordable.
_PILOT_REQUESTS = 8
#: CPU time that is less than this times the opening's cannot be told from the opening's own spread.
_OPENING_NOISE = 1.0
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


def host_read(qemu: Qemu, image: Path | str, pattern: Pattern, *, cache: str, aio: str, budget_s: float) -> HostRead:
    """Measure one pattern on an image.

    :param image: a qcow2 image's path, or a ``json:`` name.
    :param budget_s: make fewer requests where all of them would take longer.
    :raise QemuError: if ``qemu-img bench`` fails without crashing.
    """
    opened = _bench(qemu, image, pattern, 1, cache, aio)
    if opened.returncode < 0:
        return _crashed(opened)
    pilot = _bench(qemu, image, pattern, min(_PILOT_REQUESTS, pattern.requests), cache, aio)
    if pilot.returncode < 0:
        return _crashed(pilot)
    per_request_s = _run_s(pilot) / min(_PILOT_REQUESTS, pattern.requests)
    affordable = int(budget_s / per_request_s) if per_request_s > 0 else pattern.requests
    requests = min(pattern.requests, max(affordable, _PILOT_REQUESTS))
    finished = _bench(qemu, image, pattern, requests, cache, aio)
    if finished.returncode < 0:
        return _crashed(finished)
    metrics = {
        "wall_s": _run_s(finished),
        "requests": requests,
        "bytes": requests * pattern.size,
        "peak_rss_bytes": finished.peak_rss_bytes,
        "open_s": max(0.0, opened.wall_s - _run_s(opened)),
        "open_peak_rss_bytes": opened.peak_rss_bytes,
    }
    opening_s = opened.cpu_user_s + opened.cpu_sys_s
    if finished.cpu_user_s + finished.cpu_sys_s - opening_s > _OPENING_NOISE * opening_s:
        metrics["cpu_user_s"] = max(0.0, finished.cpu_user_s - opened.cpu_user_s)
        metrics["cpu_sys_s"] = max(0.0, finished.cpu_sys_s - opened.cpu_sys_s)
    return HostRead(metrics)


def _bench(qemu: Qemu, image: Path | str, pattern: Pattern, requests: int, cache: str, aio: str) -> Finished:
    argv = qemu.command(
        "img", "bench", "-f", "qcow2", "-t", cache, "-i", aio,
        "-c", str(requests), "-d", str(min(pattern.depth, requests)),
        "-s", str(pattern.size), "-S", str(pattern.step), str(image),
    )  # fmt: skip
    finished = run_tool(argv, check=False, environment=qemu.environment)
    if finished.returncode > 0:
        said = last_lines(finished.stderr) or last_lines(finished.stdout)
        raise QemuError(f"qemu-img bench failed ({describe_end(finished.returncode)}): {said}", path=str(image))
    return finished


def _run_s(finished: Finished) -> float:
    match = _COMPLETED.search(finished.stdout)
    if match is None:
        raise QemuError(f"qemu-img bench did not say how long it took: {last_lines(finished.stdout)}")
    return float(match[1])


def _crashed(finished: Finished) -> HostRead:
    return HostRead(None, crash=f"qemu-img ended by {describe_end(finished.returncode)}", signal=finished.signal)
