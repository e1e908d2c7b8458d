"""What stock QEMU reads from many images, by one storage daemon that opens each for a moment.

It opens with ``force-share``, like ``qemu-img -U``: an image that a running QEMU writes to can be looked at as well.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Self

from tests.support.running import Qmp, QmpError, end

from chainlift.errors import QemuError
from chainlift.qemu.nbd import NbdClient

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A chain that loops takes every descriptor there is: let that be few.
MOST_FILES = 400


def digest(content: bytes) -> str:
    return f"{len(content)} bytes, {hashlib.blake2b(content, digest_size=8).hexdigest()}"


def read_all(client: NbdClient) -> bytes:
    size = client.size_bytes
    return b"".join(client.read(at, min(1 << 20, size - at)) for at in range(0, size, 1 << 20))


class Reader:
    """The daemon."""

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="reader-")
        self._place = Path(self._temporary.name)
        self._numbers = itertools.count()
        self._start()

    def _start(self) -> None:
        for socket in ("qmp", "nbd"):
            (self._place / socket).unlink(missing_ok=True)
        self._process = subprocess.Popen(
            ["prlimit", f"--nofile={MOST_FILES}", "setpriv", "--pdeathsig", "KILL", "--", "qemu-storage-daemon",
             "--chardev", f"socket,id=qmp,path={self._place}/qmp,server=on,wait=off", "--monitor", "chardev=qmp",
             "--nbd-server", f"addr.type=unix,addr.path={self._place}/nbd,max-connections=0"],
            stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while True:
            try:
                self._qmp = Qmp(self._place / "qmp")
                break
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.002)

    def digests(self, images: Iterable[Path]) -> dict[Path, str | None]:
        """Return a digest of what is read from each image; None for one that does not open or read."""
        found: dict[Path, str | None] = {}
        nodes = []
        try:
            for image in images:
                node = f"r{next(self._numbers)}"
                found[image] = None
                try:
                    file = {"driver": "file", "filename": str(image)}
                    self._qmp.execute(
                        "blockdev-add", driver="qcow2", node_name=node, read_only=True, force_share=True, file=file
                    )
                    nodes.append(node)
                    self._qmp.execute("block-export-add", type="nbd", id=node, node_name=node, name=node)
                    found[image] = digest(self._read(node))
                except (QmpError, QemuError):
                    continue
        except ConnectionError:
            # An image ended QEMU itself: a chain that loops does.
            self._process.kill()
            self._process.wait()
            self._start()
            return self._one_by_one(found, images)
        self._forget(nodes)
        return found

    def _one_by_one(self, found: dict[Path, str | None], images: Iterable[Path]) -> dict[Path, str | None]:
        """Read each by itself; what ends QEMU does not open."""
        images = list(images)
        if len(images) == 1:
            return dict.fromkeys(images)
        for image in images:
            found.update(self.digests([image]))
        return found

    def contents(self, image: Path) -> bytes | None:
        """Return what is read from an image; None if it does not open or read."""
        node = f"r{next(self._numbers)}"
        file = {"driver": "file", "filename": str(image)}
        try:
            self._qmp.execute(
                "blockdev-add", driver="qcow2", node_name=node, read_only=True, force_share=True, file=file
            )
        except QmpError:
            return None
        try:
            self._qmp.execute("block-export-add", type="nbd", id=node, node_name=node, name=node)
            return self._read(node)
        except (QmpError, QemuError):
            return None
        finally:
            self._forget([node])

    def _read(self, node: str) -> bytes:
        with NbdClient(self._place / "nbd", node) as client:
            return read_all(client)

    def _forget(self, nodes: list[str]) -> None:
        for export in self._qmp.execute("query-block-exports"):
            self._qmp.execute("block-export-del", id=export["id"], mode="hard")
        while self._qmp.execute("query-block-exports"):
            time.sleep(0.0005)
        for node in reversed(nodes):
            self._qmp.execute("blockdev-del", node_name=node)

    def close(self) -> None:
        self._qmp.close()
        end(self._process, self._process.terminate)
        self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
