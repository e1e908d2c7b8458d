"""The test ``stream`` without a guest: a storage daemon streams all layers into a new one over them."""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from chainlift.errors import QemuError
from chainlift.host.cpu import cpu_times
from chainlift.host.process import describe_end, last_lines
from chainlift.qemu.bench import streaming
from chainlift.study.probe import Reading, Setup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.host.process import Finished, Process
    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

#: A stream that takes longer is recorded as one that timed out.
_TIMEOUT_S = 1800.0
#: Seconds after which a daemon is asked again to end, and how often.
_AGAIN_S, _MOST_ASKED = 1.0, 60


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
            finished = _end(process)
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


def _end(process: Process) -> Finished:
    """Ask a storage daemon to end until it does.

    SIGTERM sets a flag in it, and one that comes between its look at the flag and its wait for events is seen with the
    next event only (storage-daemon/qemu-storage-daemon.c).

    :raise QemuError: if it does not.
    """
    for _ in range(_MOST_ASKED):
        process.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            return process.wait(_AGAIN_S)
    raise QemuError(f"qemu-storage-daemon does not end, {_MOST_ASKED} s after it was asked to")
