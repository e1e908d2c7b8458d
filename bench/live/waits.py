"""Tells what a lift through libvirt makes a request wait from what the machine does: many windows, in turns.

    bench/live/waits.py [--lengths 50,190] [--cycles 10] [--idle 4] [--size 1024] [--per-layer 12] [--directory DIR]

A domain's disk has a chain. A client reads and writes 4 KiB at random, one at a time, and checks what it reads; QEMU's
main loop serves it, as it serves the disk of a guest without an iothread (an NBD export, which a monitor of the bench's
own makes). In each cycle nobody does anything for some seconds, then `chainlift squash --libvirt` runs, then nothing
again, then `chainlift restore --libvirt --clean`, where this libvirt takes the chain.

Of each request three things are noted: how long it took, and how long the client and QEMU's main thread were ready to
run meanwhile and had no processor (/proc/PID/task/TID/schedstat). Without these two ("net") it is what a request would
have waited where nobody else wants the processor. Which command of libvirt's ran is read in chainlift's log. A lift's
longest wait is compared with the longest of as long a time right before it; the difference's interval comes from
drawing the cycles again (bootstrap, 95 %).

--directory on a tmpfs (/dev/shm) leaves the disk's own waits out, too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from domains import build, give_away, libvirtd, options_of_chains, virsh

from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.host.virsh import daemon_version
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

BLOCK: Final = 4096
#: libvirt 10.8 to 11.10 starts no domain on more: the rest comes as snapshots while it runs.
STARTS_WITH: Final = 20
#: Native I/O is begun by the main thread: no request waits for a thread of a pool. The export shares the device's node.
DOMAIN: Final = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>bench</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' io='native' discard='unmap'/>
<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices>
<qemu:commandline><qemu:arg value='-qmp'/><qemu:arg value='unix:{qmp},server=on,wait=off'/></qemu:commandline>
<qemu:override><qemu:device alias='virtio-disk0'><qemu:frontend>
<qemu:property name='share-rw' type='bool' value='true'/></qemu:frontend></qemu:device></qemu:override></domain>
"""
#: What libvirt does in a lift, by the command that chainlift logs; what lies between has names, too.
COMMANDS: Final = {"blockcopy": "copy begins", "blockjob --pivot": "pivot"}
PHASES: Final = ("built, compared", "copy begins", "copied", "pivot", "afterwards")
_LINE: Final = re.compile(r"^(\S+) \d+ \w+ chainlift\.virsh: (blockcopy|blockjob)(.*)\((\d+\.\d+) s\)", re.MULTILINE)
#: Draws of the cycles.
DRAWS: Final = 10_000


def delay_s(task: Path) -> float:
    """How long a thread was ready and did not run, in all."""
    return int(task.read_text().split()[1]) / 1e9


class Client(threading.Thread):
    """Reads and writes, one request at a time, and notes of each when it began, and what it took with the delays and
    without."""

    def __init__(self, nbd: Path, pid: int) -> None:
        super().__init__(daemon=True)
        self.nbd, self.pid = nbd, pid
        self.stop = False
        self.wrong = 0
        self.requests: list[tuple[float, float, float]] = []

    def run(self) -> None:
        own = Path(f"/proc/self/task/{threading.get_native_id()}/schedstat")
        main = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat")
        rng = np.random.default_rng(1)
        known: dict[int, bytes] = {}
        with NbdClient(self.nbd, "disk") as client:
            while not self.stop:
                block = int(rng.integers(client.size_bytes // BLOCK))
                if rng.random() < 0.3:
                    known[block] = data = rng.bytes(BLOCK)
                else:
                    data = b""
                delays, began = delay_s(own) + delay_s(main), time.time()
                if data:
                    client.write(block * BLOCK, data)
                else:
                    read = client.read(block * BLOCK, BLOCK)
                took = time.time() - began
                self.requests.append((began, took, max(0.0, took - (delay_s(own) + delay_s(main) - delays))))
                self.wrong += not data and read != known.setdefault(block, read)

    def finish(self) -> None:
        self.stop = True
        self.join()

    def longest(self, first: float, last: float) -> tuple[float, float]:
        """Return the longest wait of the requests that were under way in a time, as it was and without the delays."""
        there = [each for each in self.requests if each[0] <= last and each[0] + each[1] >= first]
        return max((each[1] for each in there), default=0.0), max((each[2] for each in there), default=0.0)


class Machine:
    """The domain, with the export."""

    def __init__(self, place: Path, files: list[Path]) -> None:
        qmp, self.nbd = place / "run/qmp", place / "run/nbd"
        for socket in (qmp, self.nbd):
            socket.unlink(missing_ok=True)
        first = min(len(files) - 1, STARTS_WITH)
        xml = place / "bench.xml"
        xml.write_text(DOMAIN.format(image=files[first], qmp=qmp))
        virsh("define", xml)
        virsh("start", "bench")
        for file in files[first + 1 :]:
            words = ("--disk-only", "--no-metadata", "--reuse-external", "--diskspec", f"vda,file={file}")
            virsh("snapshot-create-as", "bench", file.stem, *words)
        self.pid = int((place / "run/libvirt/qemu/run/bench.pid").read_text())
        with Monitor.connect(qmp) as monitor:
            node = next(each["inserted"]["node-name"] for each in monitor.execute("query-block") if "inserted" in each)
            monitor.execute("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(self.nbd)}}})
            export = {"type": "nbd", "id": "disk", "node-name": node, "name": "disk", "writable": True}
            monitor.execute("block-export-add", export)
            # libvirt asks this when it begins a copy and when it ends one, as it does before a snapshot.
            before_s = self.main_thread_s()
            monitor.execute("query-named-block-nodes", {"flat": True})
            self.query_s = self.main_thread_s() - before_s

    def main_thread_s(self) -> float:
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9

    def close(self) -> None:
        virsh("destroy", "bench", check=False)
        virsh("undefine", "bench", check=False)


def lift(verb: list[str], log: Path) -> tuple[float, float, list[tuple[str, float, float]]]:
    """Run a verb; return when it began and ended, and when each of its phases did."""
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "chainlift", "--log", log, *verb, "--libvirt", "bench", "--device", "vda"]
    began = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode != 0:
        sys.exit(f"chainlift {verb[0]}: {done.stderr}")
    at = [("", began)]
    for when, name, words, took in _LINE.findall(log.read_text()):
        if name == "blockcopy" or "--pivot" in words:
            end = datetime.fromisoformat(when).timestamp()
            at += [("", end - float(took)), ("", end)]
    bounds = [time_s for _, time_s in [*at, ("", ended)]]
    return began, ended, [(phase, *bound) for phase, bound in zip(PHASES, pairwise(bounds), strict=True)]


def cycle(place: Path, length: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    directory = place / "images/chain"
    files = build(directory, length, arguments.size << 20, arguments.per_layer)
    verbs = [["squash"]]
    if length <= libvirt_limit(daemon_version()).longest:
        verbs.append(["restore", "--clean"])
    try:
        machine = Machine(place, files)
        client = Client(machine.nbd, machine.pid)
        client.start()
        found = []
        for verb in verbs:
            time.sleep(arguments.idle)
            give_away(directory)
            began, ended, phases = lift(verb, place / "log.txt")
            time.sleep(0.2)
            took = ended - began
            entry = {"verb": verb[0], "length": length, "took_s": took, "query_s": machine.query_s}
            # As long a time of nothing, as much of it as there was.
            for name, first, last in (("quiet", began - min(took, arguments.idle), began), ("lift", began, ended)):
                entry[f"{name}_wait_s"], entry[f"{name}_net_s"] = client.longest(first, last)
            for phase, first, last in phases:
                entry[f"{phase}: wait_s"], entry[f"{phase}: net_s"] = client.longest(first, last)
                entry[f"{phase}: took_s"] = last - first
            found.append(entry)
        client.finish()
        if client.wrong:
            sys.exit(f"{client.wrong} reads had other bytes than were written")
        return found
    finally:
        machine.close()
        shutil.rmtree(directory)


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean and the interval in which it lies in 95 of 100 draws."""
    drawn = np.random.default_rng(0).choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return statistics.mean(values), float(low), float(high)


def table(entries: list[dict[str, Any]]) -> str:
    """Say what one verb did, in milliseconds."""
    lines = []

    def row(name: str, waits: list[float], nets: list[float], more: str = "") -> None:
        figures = (statistics.median(waits), max(waits), statistics.median(nets), max(nets))
        lines.append(f"  {name:<16}" + "".join(f"{1000 * figure:10.1f}" for figure in figures) + more)

    lines.append(f"  {'longest wait, ms':<16}{'median':>10}{'most':>10}{'net':>10}{'most':>10}")
    for name in ("quiet", "lift"):
        row(name, [entry[f"{name}_wait_s"] for entry in entries], [entry[f"{name}_net_s"] for entry in entries])
    for phase in PHASES:
        waits, nets, took = ([entry[f"{phase}: {what}_s"] for entry in entries] for what in ("wait", "net", "took"))
        row(f"  {phase}", waits, nets, f"   of {1000 * statistics.median(took):.0f} ms")
    query_s = statistics.median(entry["query_s"] for entry in entries)
    lines.append(f"  query-named-block-nodes takes {1000 * query_s:.0f} ms of the main thread")
    for name, what in (("wait", "wait_s"), ("net", "net_s")):
        mean, low, high = interval([1000 * (entry[f"lift_{what}"] - entry[f"quiet_{what}"]) for entry in entries])
        lines.append(f"  a lift adds to the longest ({name}): {mean:.0f} ms ({low:.0f} to {high:.0f})")
    return "\n".join(lines)


def chosen(entries: Iterable[dict[str, Any]], length: int, verb: str) -> list[dict[str, Any]]:
    return [entry for entry in entries if (entry["length"], entry["verb"]) == (length, verb)]


def main() -> None:
    parser = options_of_chains(__doc__)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--idle", type=float, default=4.0, help="seconds before each lift")
    arguments = parser.parse_args()
    entries: list[dict[str, Any]] = []
    with libvirtd(arguments.directory) as place:
        sys.stdout.write(virsh("version").stdout)
        for length in arguments.lengths:
            for _ in range(arguments.cycles):
                for entry in cycle(place, length, arguments):
                    entries.append({"load": os.getloadavg()[0], **entry})
                    sys.stdout.write(json.dumps(entries[-1]) + "\n")
                    sys.stdout.flush()
    for length in arguments.lengths:
        for verb in ("squash", "restore"):
            if there := chosen(entries, length, verb):
                sys.stdout.write(f"\n{verb}, {length} layers, {len(there)} times\n{table(there)}\n")


if __name__ == "__main__":
    main()
