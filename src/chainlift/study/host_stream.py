"""The test ``stream`` without a guest: a storage daemon streams all layers into a new one over them."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chainlift.errors import QemuError
from chainlift.host.cpu import cpu_times
from chainlift.host.process import describe_end, last_lines
from chainlift.qemu.bench import streaming
from chainlift.study.probe import Reading, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

#: A stream that takes longer is recorded as one that timed out.
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class HostStreamProbe:
    """``block-stream`` of everything, timed from the command to the job's completion: without opening the chain."""

    boots_guest: ClassVar[bool] = False

    title = "host stream"
    names: Sequence[tuple[Test, str]] = (("stream", "host"),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.stream_lengths or plan.lengths

    def repeats(self, plan: Plan) -> int:
        """See :func:`~chainlift.study.probe.repeats_of`."""
        return plan.stream_repeats or plan.repeats

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        with streaming(setup.qemu, setup.image, setup.scratch, cache=setup.plan.cache) as work:
            process = work.process
            user, system = cpu_times(process.pid)
            started = time.monotonic()
            work.go()
            work.wait(_TIMEOUT_S)
            wall_s = time.monotonic() - started
            if wall_s >= _TIMEOUT_S:
                yield Reading("stream", "host", outcome="timed out", detail=f"not done after {_TIMEOUT_S:.0f} s")
                return
            user_after, system_after = cpu_times(process.pid)
            process.send_signal(signal.SIGTERM)
            finished = process.wait(60)
            if finished.returncode:
                end = describe_end(finished.returncode)
                raise QemuError(f"qemu-storage-daemon did not end well ({end}): {last_lines(finished.stderr)}")
            yield Reading(
                "stream",
                "host",
                {
                    "wall_s": wall_s,
                    "bytes": float(setup.plan.chain.size),
                    "cpu_user_s": user_after - user,
                    "cpu_sys_s": system_after - system,
                    "peak_rss_bytes": finished.peak_rss_bytes,
                },
            )
