"""Which disks a QEMU has, and which of them is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import InputError, QemuCrashed, QemuError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.seen_process import SeenProcess


#: Drivers of the filters that block jobs put over a disk while they work.
JOB_FILTERS: Final = frozenset({"mirror_top", "commit_top", "backup-top", "copy-before-write", "snapshot-access"})


@dataclass(frozen=True)
class LiveDisk:
    """A disk of a running QEMU: the node of its active layer, and whose it is."""

    #: The node of the active layer, under the filters.
    node: str
    #: The topmost filter over it, or itself: what a device or an export has as its child.
    root: str
    #: Names of the devices and exports that use it; a device's id and QOM path, an export's id.
    users: tuple[str, ...]
    driver: str
    #: The active layer's file; None where it is no local file.
    path: Path | None
    #: Layers over the base, as QEMU has them open.
    length: int
    #: The iothread that serves its device; None where there is none, or where QEMU does not tell (an export).
    iothread: str | None = None
    #: Whether :attr:`iothread` is certain: an export may be in one of which QMP does not tell.
    iothread_is_known: bool = True
    #: Whether an export (NBD, vhost-user-blk, FUSE) uses it.
    is_exported: bool = False
    #: Whether a user keeps it in its iothread: a device, or an export with ``fixed-iothread``. QEMU may move another
    #: export's disk to the main loop and back.
    is_pinned: bool = False

    def __str__(self) -> str:
        used = f" of {', '.join(self.users)}" if self.users else ""
        return f"node {self.node}{used}: {self.path or self.driver}, length {self.length}"


def list_disks(monitor: Qmp, graph: BlockGraph, process: SeenProcess) -> list[LiveDisk]:
    """Return every disk that a device or an export uses.

    :param process: the process, whose command line tells an export's iothread.

    :raise QemuError: if QEMU does not tell.
    """
    names: dict[str, list[str]] = {}
    threads: dict[str, str] = {}
    pinned: set[str] = set()
    # The graph names a device's drive (-drive id=), its id or its QOM path. Not query-block: it describes all of the
    # chain under each device, and that takes as long as it takes.
    devices = _devices(monitor)
    for user, root in graph.users():
        if user.kind != "block-backend" or not user.name:
            continue
        qdev = user.name if user.name.startswith("/") else devices.get(user.name, "")
        names.setdefault(root, []).extend(filter(None, (user.name, _identifier(qdev), qdev)))
        thread = _iothread(monitor, qdev) if qdev else None
        if thread is not None:
            threads[root] = thread
            pinned.add(root)
    unknown: set[str] = set()
    exports: set[str] = set()
    for export in monitor.execute("query-block-exports"):
        exported: str = export["node-name"]
        names.setdefault(exported, []).append(export["id"])
        exports.add(exported)
        options = process.export_options(export["id"])
        if options is None:
            unknown.add(exported)
        elif isinstance(served := options.get("iothread"), str):
            threads[exported] = served
            if options.get("fixed-iothread") in ("on", True):
                pinned.add(exported)
    roots = {node for user, node in graph.users() if user.kind == "block-backend"} | names.keys()
    disks = []
    for root in sorted(roots & graph.names):
        node = graph.through_filters(root)
        layer = _under_job(graph, node)
        path = graph.protocol_file(layer)
        disks.append(
            LiveDisk(
                node=node,
                root=root,
                users=tuple(dict.fromkeys(names.get(root, ()))),
                driver=graph.nodes[node].driver,
                path=Path(path) if path else None,
                length=len(graph.backing_chain(layer)) - 1,
                iothread=threads.get(root),
                iothread_is_known=root in threads or root not in unknown,
                is_exported=root in exports,
                is_pinned=root in pinned,
            )
        )
    return disks


def choose_disk(disks: Sequence[LiveDisk], *, device: str | None, node: str | None, image: Path | None) -> LiveDisk:
    """Return the one disk that is meant.

    :param device: a device's name, id or QOM path, or an export's id.
    :param node: a node's name.
    :param image: the active layer's file; by device and inode.
    :raise InputError: if it is not exactly one; the text lists the disks. Also if a block job works on it.
    """
    found = [disk for disk in disks if disk.driver == "qcow2" or disk.driver in JOB_FILTERS]
    asked = ""
    if device is not None:
        found, asked = [disk for disk in found if device in disk.users], f" {device!r}"
    if node is not None:
        found, asked = [disk for disk in found if node in (disk.node, disk.root)], f" {node!r}"
    if image is not None:
        found, asked = [disk for disk in found if disk.path and _same(disk.path, image)], f" whose image is {image}"
    for disk in found:
        if disk.driver in JOB_FILTERS:
            # First of all: of a commit the base is a disk of its own for the time.
            raise InputError(
                f"a block job has its {disk.driver} filter over the disk{asked} ({disk})", hint="wait until it is done"
            )
    if len(found) == 1:
        return found[0]
    there = "; ".join(map(str, disks)) or "none"
    if not found:
        raise InputError(f"this QEMU has no qcow2 disk{asked}", hint=f"its disks: {there}")
    raise InputError("this QEMU has several qcow2 disks", hint=f"choose one with --device or --node: {there}")


def _under_job(graph: BlockGraph, node: str) -> str:
    """Return what a block job's filter lies over; the node itself where it is none."""
    while graph.nodes[node].driver in JOB_FILTERS:
        below = graph.child(node, "backing") or graph.child(node, "file")
        if below is None:
            break
        node = below
    return node


def _same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and first.samefile(second)


def _identifier(qdev: str) -> str:
    """Return a device's id in a QOM path: ``vb0`` in ``/machine/peripheral/vb0/virtio-backend``."""
    prefix, _, rest = qdev.partition("/machine/peripheral/")
    return rest.split("/")[0] if not prefix else "" if qdev.startswith("/") else qdev


def _devices(monitor: Qmp) -> dict[str, str]:
    """Return the QOM path of each device by its id, and by its drive's name where it has one."""
    found = {}
    for place in ("/machine/peripheral", "/machine/peripheral-anon"):
        for item in _try(monitor, "qom-list", path=place) or ():
            if item["type"].startswith("child<"):
                path = f"{place}/{item['name']}"
                found[item["name"]] = path
                drive = _try(monitor, "qom-get", path=path, property="drive")
                if isinstance(drive, str) and drive:
                    found.setdefault(drive, path)
    return found


def list_iothreads(monitor: Qmp) -> list[str]:
    """Return the names of QEMU's iothread objects."""
    objects = _try(monitor, "qom-list", path="/objects") or ()
    return [item["name"] for item in objects if item["type"] == "child<iothread>"]


def _iothread(monitor: Qmp, qdev: str) -> str | None:
    """Return the iothread of a device, or of the controllers that it hangs on."""
    path = qdev if qdev.startswith("/") else f"/machine/peripheral/{qdev}"
    for _ in range(4):
        value = _try(monitor, "qom-get", path=path, property="iothread")
        if isinstance(value, str) and value:
            return value.rpartition("/")[2]
        bus = _try(monitor, "qom-get", path=path, property="parent_bus")
        if not isinstance(bus, str) or not bus.startswith("/machine/peripheral"):
            return None
        path = bus.rpartition("/")[0]
    return None


def _try(monitor: Qmp, command: str, **arguments: object) -> Any:  # noqa: ANN401 - whatever QOM has there
    try:
        return monitor.execute(command, arguments)
    except QemuCrashed:
        raise
    except QemuError:
        return None


def describe(disk: LiveDisk) -> Mapping[str, object]:
    """Return a disk as ``--json`` prints it."""
    return {
        "node": disk.node,
        "root": disk.root,
        "users": list(disk.users),
        "driver": disk.driver,
        "image": str(disk.path) if disk.path else None,
        "length": disk.length,
        "iothread": disk.iothread,
    }
