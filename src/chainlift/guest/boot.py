"""Boot a guest of some kind on some QEMU with some disk."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chainlift.qemu.machine import Accelerator, Disk, MachineConfig
from chainlift.qemu.vm import VirtualMachine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from chainlift.guest.interface import Guest, GuestImage, GuestKind
    from chainlift.qemu.binary import Qemu

#: How long a guest may take to come up. A full system under emulation on a busy machine takes minutes.
DEADLINE_S = 300.0


def machine_config(
    image: GuestImage,
    disks: Sequence[Disk],
    *,
    accelerator: Accelerator,
    memory_bytes: int | None = None,
    vcpus: int | None = None,
    iothread: bool = False,
    extra: Sequence[str] = (),
) -> MachineConfig:
    """Return the machine that a guest boots in; what is not said is as the guest's image wants it.

    :param image: what is booted.
    :param disks: in the order in which the guest sees them.
    :param accelerator: ``kvm`` or ``tcg``.
    :param memory_bytes: of the guest; None: as the image wants it.
    :param vcpus: of the guest; None: as the image wants it.
    :param iothread: serve the disks in a thread of their own.
    :param extra: words for QEMU's command line.
    """
    port = image.forward_guest_port
    return MachineConfig(
        disks=disks,
        memory_bytes=memory_bytes or image.memory_bytes,
        vcpus=vcpus or image.vcpus,
        accelerator=accelerator,
        kernel=image.kernel,
        initrd=image.initrd,
        append=image.append,
        firmware=image.firmware,
        iothread=iothread,
        forward_ports={} if port is None else {_free_port(): port},
        extra=extra,
    )


@contextmanager
def boot(
    kind: GuestKind,
    qemu: Qemu,
    disk: Disk,
    *,
    accelerator: Accelerator,
    memory_bytes: int | None = None,
    vcpus: int | None = None,
    iothread: bool = False,
    extra: Sequence[str] = (),
    console: Path | None = None,
    deadline_s: float = DEADLINE_S,
) -> Iterator[Guest]:
    """Boot a guest; it is up when the context is entered, and its QEMU is gone when it is left.

    :param disk: the disk that is measured, ``/dev/sda``.
    :param console: where its serial console is kept.
    :raise GuestError: if it is not up within ``deadline_s``; the text ends with the last lines of its console.
    :raise QemuCrashed: if QEMU ended.
    """
    config = machine_config(
        kind.prepare(),
        [disk],
        accelerator=accelerator,
        memory_bytes=memory_bytes,
        vcpus=vcpus,
        iothread=iothread,
        extra=extra,
    )
    with VirtualMachine(qemu, config, console=console) as vm:
        yield kind.connect(vm, deadline_s)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port
