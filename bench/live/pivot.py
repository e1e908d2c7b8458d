"""Measures a pivot under load: how long it takes, how long a client waits, what is gained. One run, ratios count.

    bench/live/pivot.py [--qemu host] [--length 300] [--repeats 3] [--idle] [--stream] [--directory DIR]

Prints a JSON line a repeat, and a table at the end. QEMU 10.0 and 11.1 die when they read through 1,000 layers (their
coroutine's stack overflows): there, the client only reads while the disk is indexed, and nobody waits for a pivot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np

from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.live.stream import stream_live
from chainlift.lift.verbs import index, restore
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

CLUSTER = 65536
#: QEMU from 9.0 on cannot read through more layers than this.
LONGEST_READ = 800


class Reader(threading.Thread):
    """A client that reads 4 KiB at random, one at a time, and notes how long each took."""

    def __init__(self, socket: Path) -> None:
        super().__init__(daemon=True)
        self.client = NbdClient(socket, "disk")
        self.stop = False
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        rng = np.random.default_rng(1)
        while not self.stop:
            began = time.monotonic()
            self.client.read(int(rng.integers(self.client.size_bytes // 4096)) * 4096, 4096)
            self.times.append((began, time.monotonic() - began))

    def finish(self) -> None:
        self.stop = True
        self.join()
        self.client.close()

    def longest_s(self, first: float, last: float) -> float:
        """The longest request of this time; all of the time where none was answered."""
        times = list(self.times)
        return max((took for began, took in times if first <= began + took and began <= last), default=last - first)


def build(directory: Path, length: int, size: int, per_layer: int) -> Path:
    rng = np.random.default_rng(length)
    below = None
    for layer in range(length + 1):
        path = directory / f"layer{layer:04}.qcow2"
        count = size // CLUSTER // 4 if layer == 0 else 0 if layer == length else per_layer
        write_image(
            path, virtual_size=size, backing_file=below, backing_format="qcow2" if below else None,
            clusters=np.sort(rng.choice(size // CLUSTER, count, replace=False)),
            data=lambda cluster, layer=layer: struct.pack("<QQ", layer, cluster) * (CLUSTER // 16),
        )  # fmt: skip
        below = str(path)  # as blockdev-snapshot-sync and libvirt write it
    return path


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class CommandCpu:
    """What each command that changes the graph keeps QEMU's main thread busy for: its stall on an idle machine."""

    def __init__(self, pid: int) -> None:
        self.schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self.longest_s: dict[str, float] = {}
        self.plain = Monitor.execute

    def __enter__(self) -> Self:
        def execute(monitor: Monitor, command: str, arguments: object = None, **more: object) -> object:
            before = self.on_cpu_s()
            try:
                return self.plain(monitor, command, arguments, **more)
            finally:
                took = self.on_cpu_s() - before
                self.longest_s[command] = max(took, self.longest_s.get(command, 0.0))

        Monitor.execute = execute
        return self

    def __exit__(self, *_: object) -> None:
        Monitor.execute = self.plain

    def on_cpu_s(self) -> float:
        return int(self.schedstat.read_text().split()[0]) / 1e9

    def figures(self, verb: str) -> dict[str, float]:
        chosen = ("blockdev-add", "blockdev-reopen", "blockdev-del")
        return {f"{verb}_{name}_cpu_s": self.longest_s.get(name, 0.0) for name in chosen}


class Bench:
    def __init__(self, arguments: argparse.Namespace, directory: Path) -> None:
        self.qemu = find_qemu(arguments.qemu, need=("storage-daemon", "img"))
        self.directory = directory
        self.reads_unlifted = not arguments.idle and (self.qemu.version < (9, 0, 0) or arguments.length <= LONGEST_READ)
        self.image = build(directory, arguments.length, arguments.size << 20, arguments.per_layer)
        self.qmp, self.own, self.nbd = (directory / name for name in ("qmp", "own", "nbd"))

    def daemon(self) -> QemuProcess:
        disk = {"driver": "qcow2", "node-name": "disk0", "file": {"driver": "file", "filename": str(self.image)}}
        argv = self.qemu.command(
            "storage-daemon",
            *("--chardev", f"socket,id=q,path={self.qmp},server=on,wait=off", "--monitor", "chardev=q"),
            *("--blockdev", json.dumps(disk), "--nbd-server", f"addr.type=unix,addr.path={self.nbd},max-connections=0"),
            *("--export", "type=nbd,id=exp0,node-name=disk0,name=disk,writable=on"),
        )
        process = QemuProcess(argv, environment=self.qemu.environment)
        Monitor.connect(self.qmp, process).close()
        return process

    def pivot(self, copy_budget: int | None) -> dict[str, float]:
        with self.daemon() as process:
            pid = process.pid
            result: dict[str, float] = {}
            reader = self.reader() if self.reads_unlifted else None
            if reader is not None:
                result["reads_per_s_before"], result["reads_per_cpu_s_before"] = self.rate(reader, pid)
                # What a client waits for on this machine while nothing happens: subtract it in mind.
                result["quiet_stall_s"] = reader.longest_s(time.monotonic() - 2, time.monotonic())
            result["rss_before_bytes"] = resident_bytes(pid)
            began = time.monotonic()
            with CommandCpu(pid) as cost, open_session(self.qmp) as session:
                disk = RunningDisk(session, qemu=None)
                manifest = index(disk, copy_budget_bytes=copy_budget).manifest
            ended = time.monotonic()
            result |= {
                "extents": manifest.extents,
                "copied_bytes": manifest.copied_bytes,
                "index_verb_s": ended - began,
                "index_commands_s": disk.timings.total_s(),
                "index_reopen_s": disk.timings.longest_s("blockdev-reopen"),
                "index_add_s": disk.timings.longest_s("blockdev-add"),
                **cost.figures("index"),
            }
            if reader is not None:
                result["index_stall_s"] = reader.longest_s(began, ended)
            else:
                reader = self.reader()
            result["reads_per_s_after"], result["reads_per_cpu_s_after"] = self.rate(reader, pid)
            result["rss_after_bytes"] = resident_bytes(pid)
            if not self.reads_unlifted:
                reader.finish()
            began = time.monotonic()
            with CommandCpu(pid) as cost, open_session(self.qmp) as session:
                back = RunningDisk(session, qemu=None)
                restore(back, clean=True)
            result |= {
                "restore_verb_s": time.monotonic() - began,
                "restore_commands_s": back.timings.total_s(),
                **cost.figures("restore"),
            }
            if self.reads_unlifted:
                result["restore_stall_s"] = reader.longest_s(began, time.monotonic())
                reader.finish()
        return result

    def reader(self) -> Reader:
        reader = Reader(self.nbd)
        reader.start()
        return reader

    def rate(self, reader: Reader, pid: int) -> tuple[float, float]:
        """Reads a second, and in a second of QEMU's CPU time: steadier on a machine that others use."""
        time.sleep(0.5)
        count, cpu, began = len(reader.times), cpu_s(pid), time.monotonic()
        time.sleep(2)
        done, took = len(reader.times) - count, time.monotonic() - began
        return done / took, done / max(cpu_s(pid) - cpu, 0.01)

    def stream(self) -> dict[str, float]:
        result: dict[str, float] = {}
        for way in ("plain", "through an index"):
            copy = self.directory / "copy.qcow2"
            shutil.copy(self.image, copy)
            image, self.image = self.image, copy
            with self.daemon() as process, Monitor.connect(self.qmp, process) as monitor:
                cpu, began = cpu_s(process.pid), time.monotonic()
                if way == "plain":
                    monitor.execute("block-stream", {"job-id": "job0", "device": "disk0"})
                    monitor.wait_event("BLOCK_JOB_COMPLETED", timeout_s=3600)
                else:
                    monitor.close()
                    with open_session(self.qmp) as session:
                        stream_live(session, qemu=None)
                result[f"stream {way}, wall_s"] = time.monotonic() - began
                result[f"stream {way}, cpu_s"] = cpu_s(process.pid) - cpu
                result[f"stream {way}, rss_bytes"] = resident_bytes(process.pid)
            self.image = image
            copy.unlink()
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", default="host")
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--size", type=int, default=2048, help="of the disk, in MiB")
    parser.add_argument("--per-layer", type=int, default=12, help="clusters of 64 KiB")
    parser.add_argument("--copy-budget", type=int, help="in MiB; without: as chainlift chooses")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--idle", action="store_true", help="nobody reads while the disk is switched")
    parser.add_argument("--stream", action="store_true", help="also block-stream of everything, plain and by an index")
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        bench = Bench(arguments, Path(place))
        runs = []
        for _ in range(arguments.repeats):
            budget = arguments.copy_budget
            runs.append(bench.pivot(None if budget is None else budget << 20))
            sys.stdout.write(json.dumps(runs[-1]) + "\n")
            sys.stdout.flush()
        streams = [bench.stream() for _ in range(arguments.repeats)] if arguments.stream else []
    sys.stdout.write(f"\n{bench.qemu.version_text}, length {arguments.length}: median (most)\n")
    for name in runs[0]:
        values = [run[name] for run in runs]
        sys.stdout.write(f"  {name:<30} {statistics.median(values):14.3f} ({max(values):.3f})\n")
    for name in streams[0] if streams else ():
        values = [stream[name] for stream in streams]
        sys.stdout.write(f"  {name:<40} {statistics.median(values):14.3f} ({max(values):.3f})\n")


if __name__ == "__main__":
    main()
