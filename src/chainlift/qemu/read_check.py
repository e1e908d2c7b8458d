"""Whether the programs of a QEMU read a chain right: each of them reads one, of which every byte is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from chainlift.errors import QemuError
from chainlift.host.process import describe_end, last_lines
from chainlift.host.scratch import ScratchDirectory
from chainlift.qcow2.writer import write_image
from chainlift.qemu.machine import Disk, MachineConfig
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.nbd import NbdClient, export_node
from chainlift.qemu.process import QemuProcess, run_tool
from chainlift.qemu.vm import VirtualMachine

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.binary import Qemu, Tool

_CLUSTER: Final = 65536
_CLUSTERS: Final = 64
_LAYERS: Final = 9
_NODE: Final = "disk0"
#: For a program that reads 4 MiB, on a host as busy as they come.
_TIMEOUT_S: Final = 120.0


def check_reads(qemu: Qemu) -> list[Tool]:
    """Have each program of a QEMU read a small chain.

    :return: the programs that were there, and have read every byte right.
    :raise QemuError: naming the first one that reads another byte, or does not read.
    """
    checks = {"img": _read_by_img, "io": _check_by_io, "storage-daemon": _read_by_daemon, "system": _read_by_system}
    there: dict[Tool, Path | None] = {
        "img": qemu.img,
        "io": qemu.io,
        "storage-daemon": qemu.storage_daemon,
        "system": qemu.system,
    }
    found = [tool for tool, path in there.items() if path is not None]
    with ScratchDirectory() as folder:
        image, expected = _chain(folder)
        for tool in found:
            read = checks[tool](qemu, image, expected)
            if read != expected:
                at = next((n for n, (a, b) in enumerate(zip(read, expected, strict=False)) if a != b), len(read))
                raise QemuError(f"reads another byte at {at} of a chain", path=qemu.path(tool))
    return found


def _chain(folder: Path) -> tuple[Path, bytes]:
    """Make a chain whose every layer shows, with clusters that nobody has; return its top and what it reads."""
    disk = bytearray(_CLUSTERS * _CLUSTER)
    below = None
    for layer in range(_LAYERS):
        # The base has three of four; a layer over it those of its own number, and one that the next one hides.
        clusters = [n for n in range(_CLUSTERS) if (n % 4 < 3 if layer == 0 else n % _LAYERS in (layer, layer + 1))]
        path = folder / f"{layer}.qcow2"
        values = {cluster: (layer * _CLUSTERS + cluster) % 255 + 1 for cluster in clusters}
        write_image(
            path,
            virtual_size=len(disk),
            backing_file=below,
            backing_format=None if below is None else "qcow2",
            clusters=clusters,
            data=lambda cluster, values=values: bytes([values[cluster]]) * _CLUSTER,
        )
        for cluster, value in values.items():
            disk[cluster * _CLUSTER : (cluster + 1) * _CLUSTER] = bytes([value]) * _CLUSTER
        below = path.name
    return path, bytes(disk)


def _read_by_img(qemu: Qemu, image: Path, expected: bytes) -> bytes:  # noqa: ARG001 - each check has this shape
    out = image.with_name("read.raw")
    argv = qemu.command("img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(out))
    run_tool(argv, environment=qemu.environment, timeout_s=_TIMEOUT_S)
    return out.read_bytes()


def _check_by_io(qemu: Qemu, image: Path, expected: bytes) -> bytes:
    """Have qemu-io compare each cluster with the byte that it is filled with: it shows what it reads only as a dump."""
    offsets = range(0, len(expected), _CLUSTER)
    commands = [f"read -q -P {expected[offset]} {offset} {_CLUSTER}" for offset in offsets]
    argv = qemu.command("io", "-r", "-f", "qcow2", *(word for each in commands for word in ("-c", each)), str(image))
    done = run_tool(argv, environment=qemu.environment, timeout_s=_TIMEOUT_S, check=False)
    if done.returncode or done.stdout:
        said = last_lines(done.stdout + done.stderr, 1) or describe_end(done.returncode)
        raise QemuError(f"does not read a chain right: {said}", path=qemu.path("io"))
    return expected


def _read_by_daemon(qemu: Qemu, image: Path, expected: bytes) -> bytes:
    with ScratchDirectory() as folder:
        qmp = folder / "qmp"
        argv = qemu.command(
            *("storage-daemon", "--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off"),
            *("--monitor", "chardev=qmp"),
            *("--blockdev", f"driver=file,node-name=file,read-only=on,filename={image}"),
            *("--blockdev", f"driver=qcow2,node-name={_NODE},read-only=on,file=file"),
        )
        with (
            QemuProcess(argv, environment=qemu.environment, remove=folder) as process,
            Monitor.connect(qmp, process, _TIMEOUT_S) as monitor,
        ):
            return _read_over_nbd(qemu, monitor, folder, len(expected))


def _read_by_system(qemu: Qemu, image: Path, expected: bytes) -> bytes:
    """Read a disk of a machine that stands still; it has found its firmware and its devices' modules by then."""
    disk = Disk(image, node=_NODE, read_only=True)
    config = MachineConfig([disk], memory_bytes=64 << 20, extra=("-S",))
    with VirtualMachine(qemu, config, start_timeout_s=_TIMEOUT_S) as machine:
        return _read_over_nbd(qemu, machine.monitor, machine.directory, len(expected))


def _read_over_nbd(qemu: Qemu, monitor: Monitor, folder: Path, size: int) -> bytes:
    address = {"type": "unix", "data": {"path": str(folder / "nbd")}}
    monitor.execute("nbd-server-start", {"addr": address})
    export_node(monitor, qemu, _NODE)
    with NbdClient(folder / "nbd", _NODE, timeout_s=_TIMEOUT_S) as client:
        if client.size_bytes != size:
            raise QemuError(f"says that a disk of {size} bytes has {client.size_bytes}")
        return b"".join(client.read(offset, _CLUSTER) for offset in range(0, size, _CLUSTER))
