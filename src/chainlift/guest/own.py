"""A person's own image: a disk that boots by itself, or by a given kernel, and is reached by its agent or over SSH."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Literal

from chainlift.chain import open_chain
from chainlift.errors import GuestError, InputError, MissingToolError
from chainlift.guest.fill import lay_down_data, require_fio
from chainlift.guest.interface import GuestImage
from chainlift.guest.ssh import SshGuest, SshLogin
from chainlift.guest.system import AgentGuest, connect_agent
from chainlift.qemu.process import run_tool
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from chainlift.guest.interface import Guest
    from chainlift.qemu.binary import Qemu
    from chainlift.qemu.machine import Accelerator
    from chainlift.qemu.vm import VirtualMachine

Firmware = Literal["bios", "uefi"]

#: Where distributions keep UEFI firmware that is one file with its variables.
_UEFI = tuple(
    Path("/usr/share", name)
    for name in ("ovmf/OVMF.fd", "qemu/OVMF.fd", "OVMF/OVMF.fd", "edk2/ovmf/OVMF.fd", "edk2/x64/OVMF.4m.fd")
)
#: Where the workload's files are, unless it is said.
WORK = "/var/lib/chainlift"
#: What the agent must let us do.
_AGENT_COMMANDS = ("guest-exec", "guest-exec-status", "guest-shutdown")
#: File systems that are not on a disk.
_NOT_ON_DISK = {"tmpfs", "ramfs", "overlayfs", "squashfs", "nfs", "v9fs", "fuseblk"}


@dataclass(frozen=True)
class OwnImage:
    """A kind of guest.

    :ivar image: a qcow2 or raw image; it is copied and never written.
    :ivar qemu: what copies it, and runs the guest once to lay the workload's file down.
    :ivar kernel: what to boot instead of the disk's own boot loader, with ``initrd`` and the command line ``append``.
    :ivar login: how to log in over SSH; None: the image has the QEMU guest agent.
    :ivar work: a directory on the disk's file system for the workload; it is made if it is not there.
    """

    image: Path
    qemu: Qemu
    accelerator: Accelerator = "tcg"
    firmware: Firmware = "bios"
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    login: SshLogin | None = None
    work: str = WORK
    memory_bytes: int = 1 << 30
    vcpus: int = 2

    @property
    def name(self) -> str:
        """As a plan names it."""
        return str(self.image)

    def prepare(self) -> GuestImage:
        """Check that everything that was named is there.

        :raise InputError: if a file is not there, or options contradict each other.
        :raise MissingToolError: if there is no UEFI firmware or no ssh, and they are asked for.
        """
        for path in (self.image, self.kernel, self.initrd):
            if path is not None and not path.is_file():
                raise InputError("no such file" if not path.exists() else "is not a regular file", path=path)
        if self.kernel is None and (self.initrd or self.append):
            raise InputError("an initrd or a kernel's command line without a kernel", hint="name the kernel too")
        if self.kernel is not None and self.firmware == "uefi":
            raise InputError("either a kernel or UEFI firmware, not both")
        if not self.work.startswith("/"):
            raise InputError(f"{self.work!r} is not the absolute path of a directory in the guest")
        if self.login is not None:
            self.login.check()
        return GuestImage(
            description=f"{self.image.name}, {'its own boot loader' if self.kernel is None else self.kernel.name}",
            kernel=self.kernel,
            initrd=self.initrd,
            append=self.append,
            firmware=_uefi() if self.firmware == "uefi" else None,
            memory_bytes=self.memory_bytes,
            vcpus=self.vcpus,
            forward_guest_port=None if self.login is None else self.login.port,
        )

    def make_disk(self, path: Path, virtual_size: int, *, data_bytes: int = 0) -> None:
        """Copy the image and grow the copy; the guest itself lays the workload's file down.

        :param path: the copy; it must not be there.
        :param virtual_size: bytes of the disk.
        :param data_bytes: of the workload's file; 0: none.
        :raise InputError: if the image is larger than that, or the guest has no fio or no room.
        :raise GuestError: if it does not come up.
        """
        self.prepare()
        with open_chain(self.image) as chain:
            image_format, size = chain.layers[0].format, chain.virtual_size
        if size > virtual_size:
            raise InputError(
                f"is a disk of {format_bytes(size)}, the study's is one of {format_bytes(virtual_size)}",
                path=self.image,
                hint="make chain.size larger",
            )
        environment = self.qemu.environment
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            copy = Path(scratch, "disk")
            # Absolute: a colon in a relative name would make it a protocol for QEMU.
            convert = ("convert", "-f", image_format, "-O", "qcow2", str(self.image.absolute()), str(copy.absolute()))
            run_tool(self.qemu.command("img", *convert), environment=environment)
            run_tool(
                self.qemu.command("img", "resize", "-q", "-f", "qcow2", str(copy.absolute()), str(virtual_size)),
                environment=environment,
            )
            if data_bytes:
                lay_down_data(self, self.qemu, copy, data_bytes, accelerator=self.accelerator)
            copy.rename(path)

    def connect(self, vm: VirtualMachine, timeout_s: float) -> Guest:
        """Wait until the guest answers, and see that it can do what a study asks of it.

        :raise GuestError: if it does not within ``timeout_s``; the text ends with the last lines of its console.
        :raise InputError: if it has no agent or no fio, or does not live on the measured disk.
        :raise QemuCrashed: if QEMU crashed meanwhile.
        """
        guest = self._reach(vm, timeout_s)
        require_fio(guest)
        work = quote(self.work)
        guest.run(f"mkdir -p {work} && test -b {guest.device}").require()
        kind = guest.run(f"stat -f -c %T {work}").require().stdout.strip()
        if kind in _NOT_ON_DISK:
            raise InputError(f"the guest's {self.work} is on {kind}, not on its disk", hint="name another directory")
        return guest

    def _reach(self, vm: VirtualMachine, timeout_s: float) -> Guest:
        if self.login is not None:
            ssh = SshGuest(vm, self.login, work=self.work)
            ssh.connect(timeout_s)
            return ssh
        try:
            agent = connect_agent(vm, timeout_s)
        except GuestError as error:
            if vm.process.running and not _agent_is_there(vm):
                raise InputError(
                    f"no guest agent was started in this image: {error.what}",
                    path=self.image,
                    hint="install qemu-guest-agent in it, or reach it over SSH",
                ) from None
            raise
        offered = {command["name"] for command in agent.ask("guest-info")["supported_commands"] if command["enabled"]}
        if missing := [name for name in _AGENT_COMMANDS if name not in offered]:
            raise InputError(
                f"the image's guest agent does not allow {', '.join(missing)}",
                path=self.image,
                hint="allow it in the agent's configuration (see qemu-ga(8)), or reach it over SSH",
            )
        return AgentGuest(vm, agent, work=self.work)


def _agent_is_there(vm: VirtualMachine) -> bool:
    """Whether somebody in the guest has opened the agent's port."""
    devices = vm.monitor.execute("query-chardev")
    assert isinstance(devices, list)
    return any(device["label"] == "agent" and device["frontend-open"] for device in devices)


def _uefi() -> Path:
    found = next((path for path in _UEFI if path.exists()), None)
    if found is None:
        raise MissingToolError("there is no UEFI firmware on this host", hint="install the package ovmf")
    return found
