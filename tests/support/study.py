"""A small study of a chain that is built under a guest, and studies as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from chainlift.study.build_live import LiveBuilder

LIVE = """
name = "live"
lengths = [1, 5]
tests = ["read", "host", "stream", "memory"]
repeats = 1
accelerator = "tcg"
chains = "{chains}"
[guest]
memory = "512M"
vcpus = 1
[chain]
length = 5
size = "256M"
pace = 20
freeze = true
[chain.workload]
rw = "randwrite"
size = "32M"
[host_read]
max_requests = 500
max_bytes = "32M"
depths = [1]
"""

#: A chain without a guest, read without one.
OFFLINE = """
name = "offline"
lengths = [1, 3]
tests = ["host"]
repeats = 2
accelerator = "tcg"
chains = "{chains}"
[chain]
build = "offline"
length = 3
size = "256M"
[chain.workload]
size = "32M"
[host_read]
max_requests = 200
max_bytes = "16M"
depths = [1]
"""


class WatchedBuilder(LiveBuilder):
    """Writes a marker before each snapshot and keeps what the disk held when the snapshot was taken."""

    def _snapshot(self, guest, number):
        guest.run(f"echo 'before snapshot {number}' > {guest.work_directory()}/marker && sync").require()
        freeze = guest.freeze

        def freeze_and_copy():
            frozen = freeze()
            assert frozen >= 1
            self.copy_disk(number - 1, self.chain.path / f"seen-{number}.raw")
            return frozen

        guest.freeze = freeze_and_copy
        try:
            super()._snapshot(guest, number)
        finally:
            guest.freeze = freeze

    def copy_disk(self, layer, target):
        # -U: the running QEMU holds the image's lock; the file systems are frozen, so nothing changes meanwhile.
        subprocess.run(
            ["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", self.chain.layer(layer), target], check=True
        )


class Command:
    """``chainlift`` as a process of its own, and the programs that it starts."""

    def __init__(self, *arguments, marker):
        # Their command lines name a file below the marker, or their console in a directory made while they run.
        self.marker = str(marker)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chainlift", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def programs(self):
        """Return the pids of QEMU's programs that have a file below the marker open or named."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes()
            except OSError:
                continue
            program = Path(os.fsdecode(words.split(b"\0")[0])).name
            if program.startswith("qemu-") and self.marker.encode() in words:
                found.append(int(path.name))
        return found

    def wait_until(self, condition, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, "it did not come to that"
            time.sleep(0.02)

    def end(self, number):
        """Send a signal, wait for the end, and see that every program of QEMU ends too; return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(60)
        self.process.stdout.close()
        deadline = time.monotonic() + 60
        while left := self.programs():
            assert time.monotonic() < deadline, f"{left} outlived the study"
            time.sleep(0.02)
        return status
