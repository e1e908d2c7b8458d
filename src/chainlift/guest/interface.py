"""How a guest is driven, whatever it is: the interface between a study and the systems it boots.

A :class:`GuestKind` knows how to make a guest: what boots (:meth:`~GuestKind.prepare`), the disk that is measured
(:meth:`~GuestKind.make_disk`), and how to reach it when its machine runs (:meth:`~GuestKind.connect`). A
:class:`Guest` is one that is up. ``chainlift.guest.boot.boot`` puts the two together::

    kind = MicroGuest()
    kind.make_disk(base, 1 << 30, data_bytes=256 << 20)
    with boot(kind, qemu, Disk(base), accelerator="tcg") as guest:
        guest.run("fio --version").require()
        finished = guest.halt()
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from chainlift.errors import GuestError
from chainlift.host.process import last_lines

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.process import Finished
    from chainlift.qemu.vm import VirtualMachine


@dataclass(frozen=True)
class CommandResult:
    """A command that a guest has run."""

    command: str
    #: The shell's exit status; 128 + n where signal n ended it.
    status: int
    stdout: str
    stderr: str

    def require(self) -> Self:
        """Return this result if the command succeeded.

        :raise GuestError: with the last of what the command said, if it did not.
        """
        if self.status != 0:
            said = last_lines(self.stderr, 2) or last_lines(self.stdout, 2) or "it said nothing"
            raise GuestError(f"the guest's {self.command!r} failed with status {self.status}: {said}")
        return self


@dataclass(frozen=True)
class GuestImage:
    """What a guest boots beside the disk that is measured, ready on this host."""

    #: One line for people: ``Debian's kernel 6.1.0-50-cloud-amd64, busybox, fio, qemu-guest-agent``.
    description: str
    #: The kernel's release, or "" where the disk boots by itself and only the running guest knows.
    kernel_release: str = ""
    #: None: the disk has its own boot loader.
    kernel: Path | None = None
    initrd: Path | None = None
    #: The kernel's command line without the console, which the machine knows.
    append: str = ""
    #: Firmware instead of QEMU's own SeaBIOS: a UEFI image, for a disk that boots by it.
    firmware: Path | None = None
    #: The least memory that the guest runs a study in.
    memory_bytes: int = 512 << 20
    vcpus: int = 1
    #: The guest's port that is to be reachable from the host (22: SSH), or None for no network at all.
    forward_guest_port: int | None = None


@runtime_checkable
class Guest(Protocol):
    """A guest that is up."""

    #: The machine it runs on: its monitor, its process, its console.
    vm: VirtualMachine
    #: The disk that is measured, as the guest names it.
    device: str

    def run(self, command: str, timeout_s: float = 60.0) -> CommandResult:
        """Run a shell command as root.

        :raise GuestError: if it is not done after ``timeout_s``, or the guest is gone or cannot run commands.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """

    def work_directory(self) -> str:
        """Return a directory on the file system of the measured disk that a workload may write in.

        Mounts the file system first where the guest does not live on it.
        """

    def freeze(self) -> int:
        """Freeze the guest's file systems, so that a snapshot is consistent; return how many."""

    def thaw(self) -> int:
        """Undo :meth:`freeze`; return how many file systems were frozen."""

    def halt(self, timeout_s: float = 120.0) -> Finished:
        """Shut the guest down, wait for QEMU to end, return what it took (peak memory, CPU time).

        :raise GuestError: if QEMU still runs after ``timeout_s``.
        """


@runtime_checkable
class GuestKind(Protocol):
    """A way to make guests: ``micro``, ``debian``, a person's own image."""

    @property
    def name(self) -> str:
        """As a plan names it."""

    def prepare(self) -> GuestImage:
        """Make or find what boots; takes long the first time, nothing afterwards.

        :raise MissingToolError: if something to make it with is not there.
        """

    def make_disk(self, path: Path, virtual_size: int, *, data_bytes: int = 0) -> None:
        """Make the qcow2 base image of the disk that is measured.

        It has a file system of ``virtual_size`` bytes and in it, where ``data_bytes`` is not 0, a file of that many
        bytes of data that is neither zero nor compressible, ``fio.0.0`` in :meth:`Guest.work_directory`: laid down
        before the first snapshot, so that a later write to it lands in the snapshot's layer. Kinds that bring their
        own image copy it and grow the disk. Nothing is left behind on failure.

        :param path: the image; it must not be there.
        :param virtual_size: bytes of the disk.
        :param data_bytes: of the file; 0: none.
        """

    def connect(self, vm: VirtualMachine, timeout_s: float) -> Guest:
        """Wait until the guest in a running machine is up and answers.

        :raise GuestError: if it does not within ``timeout_s``; the text ends with the last lines of its console.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """
