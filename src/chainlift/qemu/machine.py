"""The virtual machine as it is asked for: plain values, no process."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Accelerator = Literal["kvm", "tcg"]
CacheMode = Literal["writeback", "none", "directsync", "unsafe", "writethrough"]
Aio = Literal["threads", "native", "io_uring"]


@dataclass(frozen=True)
class Disk:
    """A disk of a virtual machine: ``/dev/sda`` is the first, on virtio-scsi.

    The node at the top is named ``node``, its protocol node ``node + "-file"``. What is below is opened by QEMU from
    the image's header, as people's VMs do; :attr:`layers` names it instead.
    """

    path: Path
    format: Literal["qcow2", "raw"] = "qcow2"
    node: str = "disk0"
    read_only: bool = False
    #: ``cache.direct`` and ``cache.no-flush`` as -drive's cache= means them; layers below inherit it.
    cache: CacheMode = "writeback"
    #: How QEMU does host I/O for this file; ``native`` needs a cache mode that bypasses the page cache.
    aio: Aio = "threads"
    serial: str = "chainlift0"
    #: Other options of the format's driver: ``{"l2-cache-size": 16 << 20}``.
    options: Mapping[str, object] = field(default_factory=dict)
    #: ``-blockdev`` options that are given before this disk's own; the last one is its ``backing``.
    layers: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class MachineConfig:
    """What a virtual machine is made of."""

    disks: Sequence[Disk]
    memory_bytes: int = 512 << 20
    vcpus: int = 1
    accelerator: Accelerator = "tcg"
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    #: Instead of QEMU's own SeaBIOS.
    firmware: Path | None = None
    #: Whether the disks' controller is served by a thread of its own (-object iothread).
    iothread: bool = False
    #: Host port -> guest port, on QEMU's own user network, reachable from this host only; empty for no network.
    forward_ports: Mapping[int, int] = field(default_factory=dict)
    #: Arguments for what is not foreseen here, last on the command line.
    extra: Sequence[str] = ()
