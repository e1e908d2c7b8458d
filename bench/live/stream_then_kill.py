"""Is a disk whole if QEMU is killed right after its block-stream has completed? With stock QEMU alone.

    bench/live/stream_then_kill.py [--qemu host --qemu debian:trixie ...]

A chain of three is streamed into its active layer in a storage daemon, which is killed by SIGKILL when the job is
done; the image is then compared with what it was. Once as QEMU does it; once with the job held before its end
(``auto-finalize`` off) and the node reopened as it is, which flushes it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess, run_tool

if TYPE_CHECKING:
    from chainlift.qemu.binary import Qemu

CLUSTER, CLUSTERS = 65536, 512


def stream_and_kill(qemu: Qemu, directory: Path, *, flushed: bool) -> str:
    below = None
    for number in range(3):
        path = directory / f"layer{number}.qcow2"
        write_image(
            path, virtual_size=CLUSTERS * CLUSTER, backing_file=below, backing_format="qcow2" if below else None,
            clusters=np.arange(CLUSTERS) if number == 0 else np.arange(0), data=lambda _: b"x" * CLUSTER,
        )  # fmt: skip
        below = path.name
    file = {"driver": "file", "node-name": "file0", "filename": str(path)}
    argv = qemu.command(
        "storage-daemon",
        *("--chardev", f"socket,id=qmp,path={directory}/qmp,server=on,wait=off", "--monitor", "chardev=qmp"),
        *("--blockdev", json.dumps(file)),
        *("--blockdev", json.dumps({"driver": "qcow2", "node-name": "disk0", "file": "file0"})),
    )
    with (
        QemuProcess(argv, environment=qemu.environment) as process,
        Monitor.connect(directory / "qmp", process) as monitor,
    ):
        monitor.execute("block-stream", {"job-id": "job0", "device": "disk0", "auto-finalize": not flushed})
        if flushed:
            while monitor.execute("query-jobs")[0]["status"] != "pending":
                time.sleep(0.05)
            graph = monitor.execute("x-debug-query-block-graph")
            names = {item["id"]: item["name"] for item in graph["nodes"]}
            children = {e["name"]: names[e["child"]] for e in graph["edges"] if names[e["parent"]] == "disk0"}
            monitor.execute("blockdev-reopen", options=[{"driver": "qcow2", "node-name": "disk0", **children}])
            monitor.execute("job-finalize", {"id": "job0"})
        event = monitor.wait_event("BLOCK_JOB_COMPLETED", timeout_s=60)
        assert "error" not in event.data
        process.kill()
    compare = qemu.command("img", "compare", "-f", "qcow2", "-F", "qcow2", str(path), str(directory / "layer0.qcow2"))
    done = run_tool(compare, environment=qemu.environment, check=False)
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", action="append")
    for name in parser.parse_args().qemu or ["host"]:
        qemu = find_qemu(name, need=("storage-daemon", "img"))
        for flushed in (False, True):
            with tempfile.TemporaryDirectory() as place:
                said = stream_and_kill(qemu, Path(place), flushed=flushed)
            sys.stdout.write(f"{qemu.version_text}, {'flushed before' if flushed else 'as it is':<14}  {said}\n")


if __name__ == "__main__":
    main()
