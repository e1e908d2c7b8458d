"""A virtual machine that runs: its command line, its process, its monitor, its console."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from chainlift import facts
from chainlift.errors import QemuError
from chainlift.host.closing import Closing
from chainlift.host.process import last_lines
from chainlift.host.scratch import ScratchDirectory
from chainlift.qemu.memory import MemoryWatch
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Disk, MachineConfig
    from chainlift.qemu.process import Finished

#: The machine type of every guest.
MACHINE = "pc"
#: The same emulated CPU in every release: x86-64-v2, which today's distributions ask for, and RDRAND, without which
#: the guest's kernel spends a second of its boot on collecting entropy. ``max`` would differ between releases.
TCG_CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"


class VirtualMachine(Closing):
    """A machine that starts when the context is entered, and is killed, if it still runs, when it is left.

    :param qemu: the QEMU that runs it.
    :param config: what it is made of.
    :param console: where the serial console is written; None keeps it only as long as this object lives.
    :param start_timeout_s: how long QEMU may take to open its disks and answer (11.1 takes half a minute for a chain
        of 1,000 layers).
    """

    def __init__(
        self, qemu: Qemu, config: MachineConfig, *, console: Path | None = None, start_timeout_s: float = 180.0
    ) -> None:
        self.qemu = qemu
        self.config = config
        self._start_timeout_s = start_timeout_s
        #: Sockets live in the system's temporary directory: a socket's path has at most 107 bytes.
        self._scratch = ScratchDirectory()
        self.directory = self._scratch.path
        self.console_path = self.directory / "console" if console is None else console
        self._console = os.open(self.console_path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o644)
        self._process: QemuProcess | None = None
        self._monitor: Monitor | None = None
        self._memory: MemoryWatch | None = None
        self._started = 0.0
        #: Seconds from QEMU's start until it had opened its disks and answered.
        self.open_s = 0.0
        #: What is undone when the machine goes: connections into the guest, most recent first.
        self.closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._started = time.monotonic()
            self._process = QemuProcess(self.argv(), environment=self.qemu.environment, remove=self.directory)
            self._memory = MemoryWatch(self._process.pid)
            self._monitor = Monitor.connect(self.directory / "qmp", self._process, self._start_timeout_s)
            self.open_s = self.age_s
        except BaseException:
            self.close()
            raise
        return self

    @property
    def age_s(self) -> float:
        """Seconds since QEMU was started."""
        return time.monotonic() - self._started

    @property
    def process(self) -> QemuProcess:
        """The QEMU process."""
        if self._process is None:
            raise QemuError("the virtual machine was not started")
        return self._process

    @property
    def monitor(self) -> Monitor:
        """Our connection to its monitor."""
        if self._monitor is None:
            raise QemuError("the virtual machine was not started")
        return self._monitor

    @property
    def agent_path(self) -> Path:
        """The socket of the guest agent's serial port."""
        return self.directory / "agent"

    @property
    def spare_qmp_path(self) -> Path:
        """A second monitor's socket, for whoever else: a monitor talks to one client at a time."""
        return self.directory / "qmp-spare"

    @property
    def peak_own_bytes(self) -> int:
        """The most memory that QEMU had for itself so far, the guest's RAM left out (:mod:`chainlift.qemu.memory`)."""
        return 0 if self._memory is None else self._memory.peak_own_bytes

    def console_text(self) -> str:
        """Return what the guest has written to its console, also after the machine has ended."""
        size = os.fstat(self._console).st_size if self._console >= 0 else 0
        return os.pread(self._console, size, 0).decode(errors="replace") if size else ""

    def console_tail(self, count: int = 4) -> str:
        """Return the last lines of the console that say something, joined by `` | ``; of a panic, the first ones."""
        text = self.console_text()
        panic = text.rfind("Kernel panic")
        if panic >= 0:
            return " | ".join(line.strip() for line in text[panic:].splitlines()[:count] if line.strip())
        return last_lines(text, count) or "nothing was written to it"

    def wait(self, timeout_s: float | None = None) -> Finished:
        """Wait for QEMU to end by itself, after the guest has powered off.

        :raise TimeoutError: if it still runs after ``timeout_s``.
        """
        return self.process.wait(timeout_s)

    def kill(self) -> Finished:
        """Pull the plug."""
        return self.process.kill()

    def close(self) -> None:
        """Kill what still runs and give everything back. Safe to call twice."""
        self.closing.close()
        if self._monitor is not None:
            self._monitor.close()
        if self._process is not None:
            self._process.close()
        if self._memory is not None:
            self._memory.stop()
        self._scratch.close()

    def __del__(self) -> None:
        if getattr(self, "_console", -1) >= 0:
            os.close(self._console)
            self._console = -1

    def _workarounds(self) -> str:
        """Return what a kernel must be told so that it lives on this QEMU."""
        if self.config.accelerator != "tcg":
            return ""
        # On a busy machine an emulated timer may be late when the kernel checks it, which is "IO-APIC + timer doesn't
        # work!" and a panic; under KVM a kernel leaves that check out by itself.
        told = "no_timer_check "
        if facts.CX16.holds(self.qemu.version):
            told += "clearcpuid=cx16 "
        return told

    def argv(self) -> list[str]:
        """Return the command line."""
        config = self.config
        words = [
            # Nothing but what is named here: no network card, no floppy, no file of the user's.
            "-nodefaults",
            "-no-user-config",
            *("-display", "none"),
            # Threads get names: a profile tells the virtual CPUs' work from the block layer's.
            *("-name", "chainlift,debug-threads=on"),
            # The guest's RAM as a memfd, so that it can be told from QEMU's own memory; share=on, else the pages that
            # the guest writes become private copies and count as QEMU's.
            *("-object", f"memory-backend-memfd,id=ram,size={config.memory_bytes},share=on"),
            # pc, as libvirt made machines by default in the experiment's days; vmport and usb are not for servers.
            *("-machine", f"{MACHINE},memory-backend=ram,vmport=off,usb=off"),
            *("-m", f"{config.memory_bytes >> 20}M"),
            *("-smp", str(config.vcpus)),
            *("-accel", config.accelerator),
            *("-cpu", "host" if config.accelerator == "kvm" else TCG_CPU),
            # A guest that panics (panic=-1) or reboots ends QEMU, and whoever waits for it learns at once.
            "-no-reboot",
            *("-qmp", f"unix:{self.directory}/qmp,server=on,wait=off"),
            *("-qmp", f"unix:{self.directory}/qmp-spare,server=on,wait=off"),
            *("-chardev", f"file,id=console,path={_comma(self.console_path)}"),
            *("-serial", "chardev:console"),
            *("-device", "virtio-serial-pci,id=serial0"),
            *("-chardev", f"socket,id=agent,path={self.agent_path},server=on,wait=off"),
            *("-device", "virtserialport,bus=serial0.0,chardev=agent,name=org.qemu.guest_agent.0"),
            # A guest without entropy hangs in getrandom() before it answers.
            *("-device", "virtio-rng-pci"),
        ]
        if config.iothread:
            words += ["-object", "iothread,id=io0"]
        words += ["-device", "virtio-scsi-pci,id=scsi0" + (",iothread=io0" if config.iothread else "")]
        for lun, disk in enumerate(config.disks):
            words += disk_arguments(disk, lun)
        if config.firmware is not None:
            words += ["-bios", str(config.firmware)]
        if config.kernel is not None:
            words += ["-kernel", str(config.kernel)]
            words += ["-append", f"console=ttyS0,115200 panic=-1 {self._workarounds()}{config.append}".strip()]
            if config.initrd is not None:
                words += ["-initrd", str(config.initrd)]
        if config.forward_ports:
            # restrict=on: the guest reaches nobody, and is reached only through these ports of the loopback.
            ports = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in config.forward_ports.items())
            words += ["-netdev", f"user,id=net0,restrict=on{ports}"]
            # No boot from the network: its ROM is in a package of its own.
            words += ["-device", "virtio-net-pci,netdev=net0,romfile="]
        return self.qemu.command("system", *words, *config.extra)


def disk_arguments(disk: Disk, lun: int) -> list[str]:
    """Return the arguments that make a disk: its block nodes and its device on ``scsi0``."""
    cache = {"direct": disk.cache in ("none", "directsync"), "no-flush": disk.cache == "unsafe"}
    options: dict[str, Any] = {
        "driver": disk.format,
        "node-name": disk.node,
        "read-only": disk.read_only,
        "cache": cache,
        "file": {
            "driver": "file",
            "node-name": f"{disk.node}-file",
            "filename": str(disk.path),
            "read-only": disk.read_only,
            "aio": disk.aio,
            "cache": cache,
        },
        **disk.options,
    }
    words = []
    for layer in disk.layers:
        words += ["-blockdev", json.dumps(layer)]
        options["backing"] = layer["node-name"]
    words += ["-blockdev", json.dumps(options)]
    # The guest's view of the cache: off means that every write is on the disk before it is acknowledged.
    write_cache = "off" if disk.cache in ("writethrough", "directsync") else "on"
    device = f"scsi-hd,bus=scsi0.0,scsi-id=0,lun={lun},drive={disk.node},id={disk.node}-device"
    words += ["-device", f"{device},serial={_comma(disk.serial)},write-cache={write_cache}"]
    return words


def _comma(text: str | Path) -> str:
    """Double the commas of a value in QEMU's option syntax."""
    return str(text).replace(",", ",,")
