"""Chains, storage daemons and clients that check every byte, for the tests of live lifts."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient
from chainlift.qemu.process import QemuProcess

CLUSTER = 65536
BLOCK = 4096


def content(layer: int, cluster: int) -> bytes:
    """What a layer of a test chain has in a cluster: every 4 KiB block says whose it is."""
    return b"".join(
        struct.pack("<QQ", layer + 1, cluster * (CLUSTER // BLOCK) + block) * (BLOCK // 16)
        for block in range(CLUSTER // BLOCK)
    )


@dataclass
class TestChain:
    """A chain on disk and what a reader must see."""

    __test__ = False
    directory: Path
    #: Bottom first; the last is the active layer, which is empty.
    files: list[Path]
    virtual_size: int
    #: For each 4 KiB block the layer that has it, plus one; 0 for zeros.
    owner: np.ndarray = field(repr=False)

    @property
    def active(self) -> Path:
        return self.files[-1]

    def block(self, number: int) -> bytes:
        owner = int(self.owner[number])
        return struct.pack("<QQ", owner, number) * (BLOCK // 16) if owner else bytes(BLOCK)


@pytest.fixture
def make_chain(tmp_path):
    """Return a function that writes a chain of so many layers over a base, with an empty active layer on top."""

    def make(
        length: int,
        *,
        virtual_size: int = 32 << 20,
        per_layer: int = 8,
        directory: Path | None = None,
        absolute_names: bool = False,
    ):
        directory = directory or tmp_path / "chain"
        directory.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(length)
        clusters = virtual_size // CLUSTER
        owner = np.zeros(virtual_size // BLOCK, np.int64)
        files: list[Path] = []
        for layer in range(length + 1):
            path = directory / (f"layer{layer:04}.qcow2" if layer < length else "active.qcow2")
            count = clusters // 2 if layer == 0 else 0 if layer == length else per_layer
            mine = np.sort(rng.choice(clusters, count, replace=False))
            write_image(
                path,
                virtual_size=virtual_size,
                backing_file=(str(files[-1]) if absolute_names else files[-1].name) if files else None,
                backing_format="qcow2" if files else None,
                clusters=mine,
                data=lambda cluster, layer=layer: content(layer, cluster),
            )
            for cluster in mine:
                owner[cluster * (CLUSTER // BLOCK) : (cluster + 1) * (CLUSTER // BLOCK)] = layer + 1
            files.append(path)
        return TestChain(directory, files, virtual_size, owner)

    return make


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


@pytest.fixture
def start_daemon(tmp_path):
    """Return a function that starts a storage daemon over an image and kills it at the end."""
    with contextlib.ExitStack() as stack:
        number = 0

        def start(image: Path, *, qemu: str = "host", disks: list[str] | None = None, export: str = "", extra=()):
            nonlocal number
            number += 1
            place = tmp_path / f"daemon{number}"
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


@pytest.fixture
def same_bytes():
    """Return a function that asserts, by stock qemu-img, that two images read the same (even while open)."""

    def check(first: Path, second: Path) -> None:
        done = subprocess.run(
            ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", first, second], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return check


def read_all(client: NbdClient) -> bytes:
    return b"".join(client.read(offset, 1 << 20) for offset in range(0, client.size_bytes, 1 << 20))
