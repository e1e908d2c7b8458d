"""Building a chain under a live guest: a fio job writes, and every interval a snapshot is taken over QMP.

The guest boots on the base. Snapshot ``n`` makes layer ``n`` the active one and leaves everything under it immutable;
after the last one the guest works for one more interval, so that every layer holds an interval's writes. A build that
was interrupted continues on the last layer that was complete: the layer that was active is thrown away and made anew,
and the guest's journal recovers as after a power cut.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from chainlift.errors import GuestError, InputError
from chainlift.guest.boot import boot
from chainlift.qemu.machine import Disk
from chainlift.qemu.process import run_tool
from chainlift.results.model import ChainShape
from chainlift.study.chain_store import layer_name
from chainlift.study.rocksdb import lay_database_down
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.guest.interface import Guest, GuestKind
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator
    from chainlift.study.chain_store import ChainDirectory, Manifest
    from chainlift.study.plan import Plan
    from chainlift.study.plan_tables import ChainPlan
    from chainlift.study.progress import Progress

#: The job's name; fio then works in the file ``fio.0.0``, which the base has from the start.
JOB = "fio"
_DEFAULT_CLUSTER = 65536
#: Snapshots between two looks at whether fio still runs.
_LOOK_EVERY = 25
#: A guest that writes slower than this is taken for dead.
_SLOWEST_BYTES_PER_S = 4 << 20
#: By how many intervals one is drawn out at most for a guest that has not written its share.
_MOST_STRETCH = 20
#: How much faster than its rate a guest may write in compressed time: the file system's own writes come on top.
_HEADROOM = 1.25
_POLL_S = 0.01


@dataclass(frozen=True)
class LiveBuilder:
    """Builds one chain.

    :param plan: its ``chain`` and ``guest`` parts count.
    :param chain: where it is built; the caller holds its lock.
    """

    plan: Plan
    chain: ChainDirectory
    kind: GuestKind
    qemu: Qemu
    accelerator: Accelerator
    progress: Progress

    def build(self) -> Manifest:
        """Build the chain, or what is left of it after an interruption.

        :raise GuestError: if the guest does not come up or its fio ends.
        :raise InputError: if the guest has no fio.
        """
        chain, spec = self.chain, self.plan.chain
        earlier = chain.snapshots()
        done = len(earlier)
        chain.keep_snapshots(done)
        if done:
            self.progress.note(f"{chain.path}: continuing after snapshot {done} of {spec.length}")
            self._create_overlay(done)
        else:
            self.progress.stage("making the base image")
            self._make_base()
        self.progress.stage(f"booting the {self.plan.guest.kind} guest on layer {done}")
        active = Disk(chain.layer(done), node=_node(done), cache=self.plan.cache, aio=self.plan.aio)
        before_s = earlier[-1]["at_s"] if earlier else 0.0
        with boot(
            self.kind,
            self.qemu,
            active,
            accelerator=self.accelerator,
            memory_bytes=self.plan.guest.memory,
            vcpus=self.plan.guest.vcpus,
            deadline_s=self.plan.guest.boot_deadline_s,
        ) as guest:
            self._start_job(guest, seed=done)
            self._limit_writes(guest, _node(done))
            build_s = self._take_snapshots(guest, done, before_s)
            self._stop_job(guest)
            self.progress.stage("halting the guest")
            guest.halt()
        shape = ChainShape(
            built="live",
            virtual_size_bytes=spec.size,
            cluster_size_bytes=spec.cluster_size,
            layer_bytes=chain.sizes(spec.length),
            interval_s=spec.interval_s,
            pace=spec.pace,
            build_s=build_s,
        )
        made_from: dict[str, object] = {"chain": spec.model_dump(mode="json"), "guest": self.plan.guest.kind}
        resumed = sum(1 for note in earlier if note.get("resumed")) + (1 if done else 0)
        return chain.finish(shape, made_from, resumed=resumed)

    def _make_base(self) -> None:
        spec, base = self.plan.chain, self.chain.layer(0)
        self.kind.make_disk(base, spec.size, data_bytes=spec.workload.size)
        if spec.cluster_size != _DEFAULT_CLUSTER:
            other = base.with_name(f".{base.name}.converting")
            options = ["-O", "qcow2", "-o", f"cluster_size={spec.cluster_size}"]
            run_tool(
                self.qemu.command("img", "convert", "-W", *options, str(base), str(other)),
                environment=self.qemu.environment,
            )
            other.replace(base)

    def _create_overlay(self, number: int) -> None:
        create_overlay(
            self.qemu,
            self.chain.layer(number),
            backing=layer_name(number - 1),
            virtual_size=self.plan.chain.size,
            cluster_size=self.plan.chain.cluster_size,
        )

    def _start_job(self, guest: Guest, seed: int) -> None:
        if guest.run("command -v fio").status != 0:
            if seed == 0:
                self.chain.keep_snapshots(0)  # nothing half-made stays behind
            raise InputError("the guest has no fio", hint="install fio in it")
        directory = guest.work_directory()
        if seed == 0:
            self._lay_file_down(guest, directory)
            if self.plan.chain.rocksdb_keys:
                self.progress.stage("laying the database down")
                lay_database_down(guest, directory, self.plan.chain.rocksdb_keys)
        job = " ".join(map(quote, fio_arguments(self.plan.chain, directory, seed=seed)))
        guest.run(
            f"(setsid {job} --output=/dev/null </dev/null >/dev/null 2>/tmp/fio.err & echo $! >/tmp/fio.pid)"
        ).require()

    def _limit_writes(self, guest: Guest, node: str) -> None:
        """Keep fio from catching up, in compressed time, on what a busy host has kept it from writing.

        It would do so at full speed, and all of it would be in one layer.
        """
        spec = self.plan.chain
        if spec.pace <= 1:
            return
        limits = dict.fromkeys(("bps", "bps_rd", "iops", "iops_rd", "iops_wr"), 0)
        rate = int(spec.workload.write_rate * spec.pace * _HEADROOM)
        # The device's limit, so that snapshots do not reset it.
        guest.vm.monitor.execute("block_set_io_throttle", {"id": f"{node}-device", "bps_wr": rate, **limits})

    def _lay_file_down(self, guest: Guest, directory: str) -> None:
        """Have the file written before the first snapshot, where the base came without it: a person's own image."""
        size = self.plan.chain.workload.size
        found = guest.run(f"stat -c %s {quote(directory)}/{JOB}.0.0").stdout.strip()
        if found != str(size):
            self.progress.stage("writing the job's file")
            job = " ".join(map(quote, fio_arguments(self.plan.chain, directory, seed=0)))
            guest.run(
                f"{job} --create_only=1 --fallocate=none && sync", timeout_s=600 + size / _SLOWEST_BYTES_PER_S
            ).require()

    def _stop_job(self, guest: Guest) -> None:
        self._require_job(guest)
        guest.run('kill -INT "$(cat /tmp/fio.pid)"; sync').require()

    def _require_job(self, guest: Guest) -> None:
        if guest.run('kill -0 "$(cat /tmp/fio.pid)"').status != 0:
            said = guest.run("tail -n 1 /tmp/fio.err").stdout.strip()
            raise GuestError(f"fio ended in the guest while snapshots were taken: {said or 'it said nothing'}")

    def _take_snapshots(self, guest: Guest, done: int, before_s: float) -> float:
        """Take the snapshots after the first ``done``; return the seconds they all took, earlier runs included."""
        spec = self.plan.chain
        interval_s = spec.interval_s / spec.pace
        self.progress.stage("building the chain", spec.length)
        started = last = time.monotonic()
        if done < spec.length:
            self._prepare_overlay(guest, done + 1)
        for number in range(done + 1, spec.length + 1):
            # From the snapshot before, not from a schedule: a late snapshot is not followed by an empty one.
            self._wait_for_writes(last + interval_s, number - 1)
            last = time.monotonic()
            self._snapshot(guest, number)
            took_s = time.monotonic() - last
            if number < spec.length:
                self._prepare_overlay(guest, number + 1)
            self.chain.note_snapshot({
                "snapshot": number,
                "at_s": round(before_s + last - started, 3),
                "took_s": round(took_s, 4),
                "resumed": float(bool(done) and number == done + 1),
            })  # fmt: skip
            size = self.chain.layer(number - 1).stat().st_blocks * 512
            self.progress.step(number, f"snapshot {number}, the layer before took {format_bytes(size)}")
            if number % _LOOK_EVERY == 1 or number == done + 1:
                self._require_job(guest)
        self._wait_for_writes(last + interval_s, spec.length)
        return before_s + time.monotonic() - started

    def _prepare_overlay(self, guest: Guest, number: int) -> None:
        self._create_overlay(number)
        self._add_node(guest, number)

    def _wait_for_writes(self, until: float, number: int) -> None:
        """Sleep until the interval is over and, where time is compressed, the active layer holds an interval's writes.

        An emulated guest on a busy host falls behind a compressed pace; what a snapshot holds is to stay the same, so
        the interval stretches, up to :data:`_MOST_STRETCH` times, rather than the content shrinks. The layer's size is
        asked of the file system: QEMU would describe every layer of the chain to say it.

        :param until: the interval's end, by the monotonic clock.
        :param number: the active layer.
        """
        spec = self.plan.chain
        time.sleep(max(0.0, until - time.monotonic()))
        if spec.pace <= 1:
            return
        deadline = until + _MOST_STRETCH * spec.interval_s / spec.pace
        layer, share = self.chain.layer(number), written_share(spec)
        while time.monotonic() < deadline and layer.stat().st_size < share:
            time.sleep(_POLL_S)

    def _add_node(self, guest: Guest, number: int) -> None:
        cache = {"direct": self.plan.cache in {"none", "directsync"}, "no-flush": self.plan.cache == "unsafe"}
        guest.vm.monitor.execute(
            "blockdev-add",
            {
                "driver": "qcow2",
                "node-name": _node(number),
                # The header names the layer below; here it is not opened a second time but attached by the snapshot.
                "backing": None,
                "cache": cache,
                "file": {
                    "driver": "file",
                    "filename": str(self.chain.layer(number)),
                    "aio": self.plan.aio,
                    "cache": cache,
                },
            },
        )

    def _snapshot(self, guest: Guest, number: int) -> None:
        if self.plan.chain.freeze:
            guest.freeze()
        try:
            guest.vm.monitor.execute("blockdev-snapshot", node=_node(number - 1), overlay=_node(number))
        finally:
            if self.plan.chain.freeze:
                guest.thaw()


def written_share(chain: ChainPlan) -> int:
    """Return the bytes that the workload allocates in a layer during one interval, by its plan.

    Each random write smaller than a cluster takes a whole one.
    """
    job = chain.workload
    written = int(job.write_rate * chain.interval_s)
    if job.rw.startswith("rand") and job.bs < chain.cluster_size:
        written = written // job.bs * chain.cluster_size
    return written


def create_overlay(qemu: Qemu, path: Path, *, backing: str, virtual_size: int, cluster_size: int) -> None:
    """Create an empty overlay without opening what is below it.

    :param backing: the name that goes into the header.
    """
    run_tool(
        qemu.command(
            "img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing,
            "-o", f"cluster_size={cluster_size}", str(path), str(virtual_size),
        ),
        environment=qemu.environment,
    )  # fmt: skip


def fio_arguments(chain: ChainPlan, directory: str, *, seed: int) -> list[str]:
    """Return the fio command of the workload, sped up by the chain's pace.

    :param seed: of the offsets; a build that continues must not write where it has written before.
    """
    job = chain.workload
    rate = [str(int(rate * chain.pace)) if rate else "" for rate in (job.read_rate, job.write_rate)]
    return [
        "fio",
        f"--name={JOB}",
        f"--directory={directory}",
        f"--rw={job.rw}",
        f"--rwmixread={job.rwmixread}",
        f"--bs={job.bs}",
        f"--direct={int(job.direct)}",
        f"--ioengine={job.ioengine}",
        f"--rate={','.join(rate)}",
        f"--size={job.size}",
        "--time_based",
        "--runtime=100d",
        f"--randseed={seed + 1}",
        # No line of progress a second into nowhere.
        "--eta=never",
    ]


def _node(number: int) -> str:
    return f"layer-{number:04d}"
