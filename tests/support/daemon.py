"""Storage daemons that export a chain by NBD, and what their clients read."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Daemon:
    """A storage daemon with one disk, exported by NBD as ``disk``, and two monitors: one is left to chainlift."""

    process: QemuProcess
    qmp: Path
    nbd: Path
    monitor: Monitor

    def nodes(self) -> set[str]:
        return {node["node-name"] for node in self.monitor.execute("query-named-block-nodes", flat=True)}

    def open_files(self) -> int:
        """Files that it has open; what it still has to close of a client that is gone does not count."""
        counts = []
        while len(counts) < 3 or counts[-1] != counts[-3]:
            counts.append(self._open_files())
            time.sleep(0.02)
        return counts[-1]

    def _open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def resident_bytes(self) -> int:
        text = Path(f"/proc/{self.process.pid}/statm").read_text()
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def last_words(self) -> str:
        return self.process.crash_error("the test").what

    def client(self) -> NbdClient:
        return NbdClient(self.nbd, "disk")


def blockdev(image: Path, node: str = "disk0", **options) -> list[str]:
    protocol = {"driver": "file", "node-name": f"{node}-file", "filename": str(image)}
    top = {"driver": "qcow2", "node-name": node, "file": f"{node}-file", **options}
    return ["--blockdev", json.dumps(protocol), "--blockdev", json.dumps(top)]


@contextlib.contextmanager
def starting_daemons(directory: Path) -> Iterator[Callable[..., Daemon]]:
    """Give a function that starts a storage daemon over an image; all are killed at the end."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count(1)

        def start(image: Path, *, qemu: str = "host", disks: list[str] | None = None, export: str = "", extra=()):
            place = directory / f"daemon{next(numbers)}"
            place.mkdir()
            found = find_qemu(qemu, need=("storage-daemon",))
            qmp, own, nbd = place / "qmp", place / "own", place / "nbd"
            argv = found.command(
                "storage-daemon",
                *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
                *("--chardev", f"socket,id=own,path={own},server=on,wait=off", "--monitor", "chardev=own"),
                *extra,
                *(disks if disks is not None else blockdev(image)),
                *("--nbd-server", f"addr.type=unix,addr.path={nbd},max-connections=0"),
                *("--export", f"type=nbd,id=exp0,node-name=disk0,name=disk,writable=on{export}"),
            )
            process = stack.enter_context(QemuProcess(argv, environment=found.environment))
            monitor = stack.enter_context(Monitor.connect(own, process))
            return Daemon(process, qmp, nbd, monitor)

        yield start


def read_all(client: NbdClient) -> bytes:
    """Return what a client reads of the whole disk."""
    return b"".join(client.read(offset, 1 << 20) for offset in range(0, client.size_bytes, 1 << 20))
