"""The tests that need a guest: ``read``, ``random``, ``stream`` and ``memory``.

Times are the host's clock around the guest's command, because a guest's own clock is emulated too; what the guest
itself says is kept beside it where it says something.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chainlift.errors import GuestError, InputError, QemuError
from chainlift.host.cpu import cpu_times
from chainlift.study.host_stream import HostStreamProbe
from chainlift.study.probe import Probe, Reading, Setup, register

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.guest.interface import Guest
    from chainlift.host.process import Finished
    from chainlift.qemu.monitor import Monitor
    from chainlift.results.model import Test
    from chainlift.study.plan import Plan

#: A guest that reads slower than this is taken for dead: emulated, over a chain of 1,000.
_SLOWEST_BYTES_PER_S = 1 << 20
_JOB = "stream"


def read_disk(guest: Guest, disk_bytes: int) -> tuple[float, float]:
    """Run the experiment's ``dd`` over the whole disk.

    :return: seconds by the host's clock, and by the guest's: not every dd says how long it took (Debian's busybox
        has one that does not), so the guest's uptime is read before and after, to a hundredth of a second.
    """
    command = (
        "read -r began _ </proc/uptime; "
        f"dd if={guest.device} of=/dev/null bs=4M || exit; "
        'read -r ended _ </proc/uptime; echo "$began $ended"'
    )
    started = time.monotonic()
    done = guest.run(command, timeout_s=120 + disk_bytes / _SLOWEST_BYTES_PER_S).require()
    wall_s = time.monotonic() - started
    began, ended = (float(word) for word in done.stdout.split()[-2:])
    return wall_s, ended - began


def _memory(finished: Finished, guest: Guest) -> dict[str, float]:
    return {
        "peak_rss_bytes": finished.peak_rss_bytes,
        "peak_rss_without_guest_bytes": guest.vm.peak_own_bytes,
    }


@dataclass(frozen=True)
class ReadProbe:
    """Boot, read the whole disk to warm QEMU's tables, drop the guest's page cache, read it again measured, halt.

    Boot, read, halt is what the memory test asks for, too: the second reading of the same disk adds nothing to the
    peak, so one run serves both.
    """

    with_read: bool
    with_memory: bool

    title = "read"

    @property
    def names(self) -> Sequence[tuple[Test, str]]:
        """See :class:`~chainlift.study.probe.Probe`."""
        found: list[tuple[Test, str]] = [("read", "")] if self.with_read else []
        return [*found, ("memory", "boot-read-halt")] if self.with_memory else found

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.guest_lengths or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        disk_bytes = setup.plan.chain.size
        started = time.monotonic()
        with setup.boot() as guest:
            pid = guest.vm.process.pid
            first_s, _ = read_disk(guest, disk_bytes)
            if self.with_read:
                guest.run("echo 3 > /proc/sys/vm/drop_caches").require()
                user, system = cpu_times(pid)
                wall_s, guest_s = read_disk(guest, disk_bytes)
                user_after, system_after = cpu_times(pid)
                metrics = {
                    "wall_s": wall_s,
                    "guest_s": guest_s,
                    "first_s": first_s,
                    "bytes": disk_bytes,
                    "cpu_user_s": user_after - user,
                    "cpu_sys_s": system_after - system,
                }
                yield Reading("read", "", metrics)
            finished = guest.halt()
            if self.with_memory:
                metrics = _memory(finished, guest) | {"wall_s": time.monotonic() - started}
                yield Reading("memory", "boot-read-halt", metrics)


@dataclass(frozen=True)
class BootProbe:
    """Boot and halt: what opening the chain and a boot's reads take."""

    title = "boot and halt"
    names: Sequence[tuple[Test, str]] = (("memory", "boot-halt"),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.guest_lengths or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        started = time.monotonic()
        with setup.boot() as guest:
            finished = guest.halt()
            yield Reading("memory", "boot-halt", _memory(finished, guest) | {"wall_s": time.monotonic() - started})


@dataclass(frozen=True)
class RandomProbe:
    """Random direct reads of the disk in the guest for a fixed time."""

    title = "random read"
    names: Sequence[tuple[Test, str]] = (("random", ""),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.guest_lengths or plan.lengths

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        random = setup.plan.random
        with setup.boot() as guest:
            if guest.run("command -v fio").status != 0:
                raise InputError("the guest has no fio", hint="install fio in it")
            done = guest.run(
                f"fio --name=random --filename={guest.device} --readonly --rw=randread --bs={random.bs} --direct=1 "
                f"--ioengine=libaio --iodepth={random.iodepth} --time_based --runtime={random.duration_s:g} "
                "--norandommap --randrepeat=1 --output-format=json --eta=never",
                timeout_s=120 + 4 * random.duration_s,
            ).require()
            yield Reading("random", "", fio_metrics(done.stdout))
            guest.halt()


def fio_metrics(output: str) -> dict[str, float]:
    """Read the figures out of fio's JSON.

    :raise GuestError: if it is none.
    """
    try:
        # fio may warn before the document begins.
        document: Any = json.loads(output[output.index("{") :])
        read = document["jobs"][0]["read"]
        percentiles = read["clat_ns"]["percentile"]
        return {
            "iops": float(read["iops"]),
            "bytes_per_s": float(read["bw_bytes"]),
            "latency_p50_s": percentiles["50.000000"] / 1e9,
            "latency_p95_s": percentiles["95.000000"] / 1e9,
            "latency_p99_s": percentiles["99.000000"] / 1e9,
            "duration_s": read["runtime"] / 1e3,
        }
    except (ValueError, LookupError, TypeError) as error:
        raise GuestError(f"fio in the guest did not give its figures: {output.strip()[-200:]!r}") from error


def stream_all(monitor: Monitor) -> int:
    """Stream all layers into the active one and wait for the end; return the job's length in bytes.

    :raise QemuError: if the job fails.
    """
    monitor.execute("block-stream", device="active", job_id=_JOB)
    event = monitor.wait_event("BLOCK_JOB_COMPLETED", lambda data: data.get("device") == _JOB)
    if problem := event.data.get("error"):
        raise QemuError(f"block-stream failed: {problem}")
    return int(event.data["len"])


@dataclass(frozen=True)
class StreamProbe:
    """With the guest up, ``block-stream`` of all layers into the active one, timed to the job's completion event."""

    title = "stream"
    names: Sequence[tuple[Test, str]] = (("stream", ""),)

    def lengths(self, plan: Plan) -> Sequence[int]:
        """See :class:`~chainlift.study.probe.Probe`."""
        return plan.stream_lengths or plan.lengths

    def repeats(self, plan: Plan) -> int:
        """See :func:`~chainlift.study.probe.repeats_of`."""
        return plan.stream_repeats or plan.repeats

    def measure(self, setup: Setup) -> Iterator[Reading]:
        """See :class:`~chainlift.study.probe.Probe`."""
        with setup.boot() as guest:
            pid = guest.vm.process.pid
            user, system = cpu_times(pid)
            started = time.monotonic()
            streamed = stream_all(guest.vm.monitor)
            wall_s = time.monotonic() - started
            user_after, system_after = cpu_times(pid)
            finished = guest.halt()
            metrics = {
                "wall_s": wall_s,
                "bytes": float(streamed),
                "cpu_user_s": user_after - user,
                "cpu_sys_s": system_after - system,
            }
            yield Reading("stream", "", metrics | _memory(finished, guest))


@register("read")
def read_probes(plan: Plan) -> Sequence[Probe]:
    """Return the probe of the read test."""
    return [ReadProbe(with_read=True, with_memory="memory" in plan.tests)]


@register("memory")
def memory_probes(plan: Plan) -> Sequence[Probe]:
    """Return the probes of the memory test."""
    return [BootProbe(), ReadProbe(with_read="read" in plan.tests, with_memory=True)]


@register("random")
def random_probes(plan: Plan) -> Sequence[Probe]:  # noqa: ARG001 - every test's function takes the plan
    """Return the probe of the random-read test."""
    return [RandomProbe()]


@register("stream")
def stream_probes(plan: Plan) -> Sequence[Probe]:
    """Return the probe of the stream test."""
    return [StreamProbe()] if plan.stream_in == "guest" else [HostStreamProbe()]
