"""A QEMU that has a disk open, as small and quick to start as it goes, and its client.

Either a storage daemon with an NBD export, or a system emulator that stands still with a virtio disk. Each has two
monitors: one is ours, the other is chainlift's.
"""

from __future__ import annotations

import json
import select
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Self

from chainlift.qemu.nbd import NbdClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_START_S = 30.0


class QmpError(Exception):
    """QEMU's refusal of a command."""


class Qmp:
    """A monitor's socket; events are left out."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self._send("qmp_capabilities", {})
        # A QEMU that has just begun to listen may stand in accept() until one client more comes.
        if not select.select([self._socket], [], [], 1.0)[0]:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as other:
                other.connect(str(path))
        self._answer("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> Any:
        """Run a command; ``_`` in a name stands for ``-``.

        :raise QmpError: if QEMU refuses.
        :raise ConnectionError: if it goes away.
        """
        self._send(command, {key.replace("_", "-"): value for key, value in arguments.items()})
        return self._answer(command)

    def _send(self, command: str, arguments: dict[str, object]) -> None:
        try:
            self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
            self._file.flush()
        except OSError as error:
            raise ConnectionError(f"{command}: {error}") from error

    def _answer(self, command: str) -> Any:
        try:
            while line := self._file.readline():
                answer = json.loads(line)
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error']['desc']}")
                if "return" in answer:
                    return answer["return"]
        except OSError as error:
            raise ConnectionError(f"{command}: {error}") from error
        raise ConnectionError(f"{command}: QEMU has gone")

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def connected(path: Path, process: subprocess.Popen[bytes]) -> Qmp:
    """Connect to the monitor of a QEMU that is starting.

    :raise ConnectionError: if it ends instead, or takes too long.
    """
    end = time.monotonic() + _START_S
    while True:
        try:
            return Qmp(path)
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                raise ConnectionError("QEMU does not start") from None
            time.sleep(0.002)


def end(process: subprocess.Popen[Any], how: Callable[[], None]) -> None:
    """Ask a process to end until it does.

    A storage daemon is told by a flag. A signal that comes between its look at the flag and its wait for events is
    seen with the next one only (storage-daemon/qemu-storage-daemon.c).
    """
    for _ in range(120):
        how()
        try:
            process.wait(1)
        except subprocess.TimeoutExpired:
            continue
        return
    process.kill()
    process.wait()
    raise AssertionError(f"{process.args} did not end")


class Running:
    """A QEMU with one disk; what its client writes, it flushes.

    :param image: the disk's active layer.
    :param emulator: a system emulator instead of a storage daemon.
    :param driver: of the image's file.
    """

    def __init__(self, image: Path, *, emulator: bool = False, driver: str = "file") -> None:
        self.image = image
        self.emulator = emulator
        #: A name for people.
        self.name = ""
        #: What its client must read, as far as that is known: what it read last, and what it wrote since.
        self.expected: bytearray | None = None
        self._place = Path(mkdtemp(prefix="qemu-"))
        self.qmp_path = self._place / "qmp"
        #: The disk's active node, which a snapshot changes.
        self.node = "disk0"
        self._snapshots = 0
        file = {"driver": driver, "node-name": "disk0-file", "filename": str(image)}
        top = {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file"}
        self.argv = [*(self._emulator() if emulator else self._daemon())]
        dashes = "-" if emulator else "--"
        self.argv += [f"{dashes}blockdev", json.dumps(file), f"{dashes}blockdev", json.dumps(top)]
        if emulator:
            self.argv += ["-device", "virtio-blk-pci,drive=disk0,id=vda"]
        else:
            self.argv += ["--nbd-server", f"addr.type=unix,addr.path={self._place}/nbd,max-connections=0"]
            self.argv += ["--export", "type=nbd,id=exp0,node-name=disk0,name=disk,writable=on"]
        self._log = (self._place / "log").open("w+")
        # It ends with us, however we end.
        self._process = subprocess.Popen(
            ["prlimit", "--nofile=400", "setpriv", "--pdeathsig", "KILL", "--", *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._own = self._connect()
            if emulator:
                address = {"type": "unix", "data": {"path": f"{self._place}/nbd"}}
                self._own.execute("nbd-server-start", addr=address, max_connections=0)
        except BaseException:
            self.kill()
            raise

    def _daemon(self) -> list[str]:
        parts = ["qemu-storage-daemon"]
        for name in ("qmp", "own"):
            parts += ["--chardev", f"socket,id={name},path={self._place}/{name},server=on,wait=off"]
            parts += ["--monitor", f"chardev={name}"]
        return parts

    def _emulator(self) -> list[str]:
        parts = ["qemu-system-x86_64", "-S", "-M", "q35", "-nodefaults", "-display", "none", "-m", "16"]
        for name in ("qmp", "own"):
            parts += ["-qmp", f"unix:{self._place}/{name},server=on,wait=off"]
        return parts

    def _connect(self) -> Qmp:
        try:
            return connected(self._place / "own", self._process)
        except ConnectionError as error:
            raise ConnectionError(f"{error}: {self.said()}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """What it wrote to its standard error."""
        self._log.seek(0)
        return self._log.read()[-2000:]

    def execute(self, command: str, **arguments: object) -> Any:
        return self._own.execute(command, **arguments)

    def write(self, pattern: int, offset: int, length: int) -> None:
        """Write and flush as the guest does."""
        if self.expected is not None:
            self.expected[offset : offset + length] = bytes([pattern]) * length
        if self.emulator:
            for line in (f"write -P {pattern} {offset} {length}", "flush"):
                device = "/machine/peripheral/vda/virtio-backend"
                # What qemu-io says goes to QEMU's standard output.
                self.execute("human-monitor-command", command_line=f'qemu-io -d {device} "{line}"')
            with self._client() as client:
                assert client.read(offset, length) == bytes([pattern]) * length, self.said()
            return
        with self._client() as client:
            client.write(offset, bytes([pattern]) * length)
            client.flush()

    def read(self) -> bytes:
        """Return what the guest reads."""
        with self._client() as client:
            # What a block job has written is on the disk then, too.
            client.flush()
            size = client.size_bytes
            return b"".join(client.read(at, min(1 << 20, size - at)) for at in range(0, size, 1 << 20))

    @contextmanager
    def _client(self) -> Iterator[NbdClient]:
        if self.emulator:
            self.execute("block-export-add", type="nbd", id="look", node_name=self.node, name="disk")
        try:
            with NbdClient(self._place / "nbd", "disk") as client:
                yield client
        finally:
            if self.emulator:
                self._remove_export()

    def _remove_export(self) -> None:
        self.execute("block-export-del", id="look", mode="hard")
        while any(export["id"] == "look" for export in self.execute("query-block-exports")):
            time.sleep(0.001)

    def snapshot(self, overlay: Path, *, existing: bool = False) -> None:
        """Take a snapshot: by blockdev-snapshot-sync, or by blockdev-snapshot with an overlay that is made before.

        :raise QmpError: if QEMU refuses.
        """
        self._snapshots += 1
        node = f"disk0-{self._snapshots}"
        if existing:
            file = {"driver": "file", "filename": str(overlay)}
            self.execute("blockdev-add", driver="qcow2", node_name=node, file=file, backing=None)
            self.execute("blockdev-snapshot", node=self.node, overlay=node)
        else:
            self.execute(
                "blockdev-snapshot-sync",
                node_name=self.node,
                snapshot_file=str(overlay),
                snapshot_node_name=node,
                format="qcow2",
            )
        self.node, self.image = node, overlay

    def look_again(self) -> None:
        """Find the disk's active node again, after others have changed the graph."""
        if self.emulator:
            devices = self.execute("query-block")
            self.node = next(each["inserted"]["node-name"] for each in devices if "vda" in each.get("qdev", ""))

    def drivers(self) -> set[str]:
        """The drivers of all nodes: with an index in use, vmdk is one."""
        return {node["drv"] for node in self.execute("query-named-block-nodes", flat=True)}

    def backing_files(self) -> list[str]:
        """The file names of the disk's nodes as QEMU has them, the active one first."""
        node = next(each for each in self.execute("query-named-block-nodes") if each["node-name"] == self.node)
        names, image = [], node["image"]
        while image is not None:
            names.append(image["filename"])
            image = image.get("backing-image")
        return names

    def kill(self) -> None:
        """End it without a chance to write anything."""
        self._end(self._process.kill)

    def stop(self) -> None:
        """End it in good order."""
        self._end(self._process.terminate)

    def _end(self, how: Any) -> None:
        if hasattr(self, "_own"):
            self._own.close()
        end(self._process, how)
        self._log.close()
        shutil.rmtree(self._place, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
