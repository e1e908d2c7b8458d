"""Domains of a real libvirt whose disk has a chain, and a guest's part: writes that a model knows."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.support.libvirt import virsh
from tests.support.stock import create, img, make_pool, read

from chainlift.host.virsh import Domain
from chainlift.lift.live.libvirt_monitor import VirshMonitor
from chainlift.lift.neighbours.domain_xml import read_disks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.lift.neighbours.domain_xml import DiskDefinition

XML = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disks}</devices></domain>
"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='{cache}' discard='unmap'/>
<source file='{image}'/>{store}<target dev='{target}' bus='virtio'/>{more}</disk>"""
BACKUP = """<domainbackup>{since}<disks><disk name='vda' type='file'>
<target file='{target}'/><driver type='qcow2'/></disk></disks></domainbackup>"""
DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"
SIZE = 8 << 20
_FULL = 20


class Machine:
    """A domain whose disk has a chain, and which libvirt runs.

    :param place: of a running libvirtd.
    :param layers: over the base, an empty active layer not counted.
    :param transient: not defined, only started.
    """

    def __init__(
        self,
        place: Path,
        layers: int = 4,
        *,
        transient: bool = False,
        name: str = "vm",
        more: str = "",
        cache: str = "none",
        metadata: str = "",
        start: bool = True,
    ) -> None:
        self.place, self.name = place, name
        self.images = place / "images" / str(time.monotonic_ns())
        names = ["base.qcow2", *(f"s{number}.qcow2" for number in range(1, layers + 1))]
        # The disk has room for so many layers' data.
        self.files = make_pool(self.images, *names[:_FULL], size=SIZE, absolute=True)
        for more_name in names[_FULL:]:
            self.files.append(create(self.images / more_name, self.files[-1], named=str(self.files[-1])))
        self.files.append(create(self.images / "disk.qcow2", self.files[-1], named=str(self.files[-1])))
        self.give_to_libvirt()
        self.transient = transient
        disk = DISK.format(image=self.files[-1], target="vda", store="", more=more, cache=cache)
        text = XML.format(name=name, disks=disk).replace("</name>", f"</name>{metadata}")
        self.tell("create" if transient else "define", text, domain=False)
        if start and not transient:
            virsh("start", name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """End and forget the domain; what its guest's requests have said is in the log by then."""
        ended = subprocess.run(["virsh", "destroy", self.name], capture_output=True)
        # A test may have ended it itself, or never started it.
        there = ended.returncode == 0 or (self.place / f"cache/libvirt/qemu/log/{self.name}.log").exists()
        said = self.log if there else ""
        for kind in ("checkpoint", "snapshot"):
            listed = subprocess.run(
                ["virsh", "-q", f"{kind}-list", self.name, "--name"], capture_output=True, text=True
            )
            for part in listed.stdout.split():
                subprocess.run(["virsh", f"{kind}-delete", self.name, part, "--metadata"], capture_output=True)
        subprocess.run(["virsh", "undefine", self.name], capture_output=True)
        # qemu-io writes to QEMU's standard output, whoever asks.
        wrong = [line for line in said.splitlines() if "Pattern verification failed" in line or " failed: " in line]
        assert not wrong, wrong

    def give_to_libvirt(self) -> None:
        owner = self.place.stat()
        for path in (self.images, *self.images.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)

    def tell(self, command: str, text: str, *arguments: object, domain: bool = True) -> str:
        """Run a command of virsh that takes a file of XML."""
        file = self.images / "some.xml"
        file.write_text(text)
        return virsh(command, *([self.name] if domain else []), file, *arguments)

    def definition(self, *, inactive: bool = False, target: str = "vda") -> DiskDefinition:
        text = virsh("dumpxml", self.name, *(["--inactive"] if inactive else []))
        return next(disk for disk in read_disks(text) if disk.target == target)

    @property
    def disk(self) -> Path:
        """The active layer, as libvirt has it."""
        path = self.definition().path
        assert path is not None
        return path

    @property
    def chain(self) -> list[Path]:
        """The chain as libvirt has it, the active layer first."""
        disk = self.definition()
        return [Path(str(name)) for name in (disk.path, *(disk.below or ()))]

    @property
    def log(self) -> str:
        """What libvirt has written about the domain."""
        return (self.place / f"cache/libvirt/qemu/log/{self.name}.log").read_text()

    @property
    def pid(self) -> int:
        return int((self.place / f"run/libvirt/qemu/run/{self.name}.pid").read_text())

    def content(self) -> bytes:
        """What stock QEMU reads from the disk now."""
        return read(self.disk)

    def snapshot(self, name: str, *words: str) -> Path:
        overlay = self.images / f"{name}.qcow2"
        virsh("snapshot-create-as", self.name, name, "--disk-only", "--diskspec", f"vda,file={overlay}", *words)
        return overlay

    def restart(self) -> None:
        virsh("destroy", self.name)
        virsh("start", self.name)

    def checkpoint(self, name: str) -> None:
        self.tell("checkpoint-create", f"<domaincheckpoint><name>{name}</name></domaincheckpoint>")

    def backup(self, name: str, *, since: str | None = None) -> Path:
        """Make a backup, an incremental one since a checkpoint; return its file."""
        target = self.images / name
        increment = "" if since is None else f"<incremental>{since}</incremental>"
        self.tell("backup-begin", BACKUP.format(since=increment, target=target))
        deadline = time.monotonic() + 60
        while "None" not in virsh("domjobinfo", self.name):
            assert time.monotonic() < deadline, "the backup does not end"
            time.sleep(0.02)
        return target


def rebuilt(full: Path, *increments: Path) -> bytes:
    """What a backup and its increments hold together."""
    below = full
    for increment in increments:
        img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", below, increment)
        below = increment
    return read(below)


class Guest:
    """Writes to a domain's disk, small and large, and knows what must be read.

    Through QEMU's monitor: the requests go the way of the device's own.
    """

    def __init__(self, machine: Machine, seed: int = 1) -> None:
        self.model = bytearray(machine.content())
        self.requests = 0
        self._random = random.Random(seed)
        self._stack = ExitStack()
        self._monitor = self._stack.enter_context(VirshMonitor(Domain(machine.name)))
        self._ends = threading.Event()
        self._turn = threading.Lock()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def io(self, command: str) -> None:
        """Make a request; how it went, QEMU writes to its standard output, see :meth:`Machine.remove`."""
        self._monitor.execute("human-monitor-command", {"command-line": f'qemu-io -d {DEVICE} "{command}"'})

    def step(self) -> None:
        """Write, discard or read and verify something."""
        length = self._random.choice([512, 4096, 4096, 65536, 100 << 10])
        offset = self._random.randrange((SIZE - length) // 512) * 512
        kind = self._random.choice(["write", "write", "zero", "read"])
        if kind == "write":
            pattern = self._random.randrange(1, 256)
            self.io(f"write -P {pattern} {offset} {length}")
            self.model[offset : offset + length] = bytes([pattern]) * length
        elif kind == "zero":
            self.io(f"write -z {offset} {length}")
            self.model[offset : offset + length] = bytes(length)
        else:
            same = next((i for i in range(1, length) if self.model[offset + i] != self.model[offset]), length)
            if same >= 512:
                self.io(f"read -P {self.model[offset]} {offset} {same // 512 * 512}")
        self.requests += 1

    def _run(self) -> None:
        try:
            while not self._ends.is_set():
                with self._turn:
                    self.step()
        except Exception as error:  # noqa: BLE001 - told when it is stopped
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is written in the block, and all that was can be read by others."""
        with self._turn:
            assert self._error is None, self._error
            self.io("flush")
            yield

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; what it has written can be read by others then."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        # Tables stay in QEMU's cache until somebody flushes.
        self.io("flush")
        self._stack.close()

    def verify(self, machine: Machine) -> None:
        """Compare the whole disk, as stock QEMU reads it, with what was written; it must have ended."""
        assert self._error is None, self._error
        found = machine.content()
        wrong = [at for at in range(0, SIZE, 512) if found[at : at + 512] != self.model[at : at + 512]]
        assert not wrong, [hex(at) for at in wrong[:10]]
