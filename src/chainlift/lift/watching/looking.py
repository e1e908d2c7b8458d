"""One look at one VM: its name, its disks, how long their chains are, and what keeps them from being lifted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chainlift.errors import InputError
from chainlift.lift.live import guard
from chainlift.lift.live.describe import read_graph
from chainlift.lift.live.disks import list_disks
from chainlift.lift.live.session import connect
from chainlift.lift.live.whose import Vm, ask_vm, nearest_mark

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.live.disks import LiveDisk
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.record.mark import Mark

#: What block jobs put over a disk: the disk is still there, under it.
_JOB_FILTERS: Final = frozenset({"mirror_top", "commit_top", "backup-top", "copy-before-write", "snapshot-access"})


@dataclass(frozen=True)
class SeenDisk:
    """A qcow2 disk with a local file."""

    #: The device's or the export's name, which stays when snapshots are taken.
    name: str
    node: str
    image: Path
    #: Layers over the base, or over the index that they stand on.
    length: int
    #: A job that works on it, or a migration; None where nothing does.
    busy: str | None
    #: The mark that counts for it, and how many layers above it have none.
    mark: tuple[Mark, int] | None


@dataclass(frozen=True)
class Look:
    """What was seen of a VM."""

    vm: Vm
    disks: list[SeenDisk]


def look_at_vm(socket: Path, directory: Path, *, timeout_s: float | None = None) -> Look:
    """Look at every disk; the connection is not kept.

    :param directory: the state directory, for marks.
    :param timeout_s: how long to wait for the socket to be free, and for the answer to each command.
    :raise ChainliftError: if the VM does not answer, or is too old.
    """
    with connect(socket, timeout_s=timeout_s) as (monitor, _, process):
        vm = ask_vm(monitor, process)
        graph = read_graph(monitor, process)
        # Whoever has neither a device nor an export is a job: its target is no disk.
        found = [_under_jobs(graph, disk) for disk in list_disks(monitor, graph, process) if disk.users]
        migrates = _refusal(lambda: guard.refuse_migration(monitor))
    disks = []
    for disk in found:
        file = graph.protocol_file(disk.node)
        if disk.driver == "qcow2" and file is not None:
            busy = _refusal(lambda disk=disk: guard.refuse_chain_in_use(graph, disk)) or migrates
            mark = nearest_mark(graph, disk.node, vm, directory)
            disks.append(SeenDisk(name_of(disk), disk.node, graph.directory / file, disk.length, busy, mark))
    return Look(vm, disks)


def name_of(disk: LiveDisk) -> str:
    """Return the name of a disk that stays the same while QEMU runs."""
    plain = [user for user in disk.users if not user.startswith("/")]
    return (plain or disk.users)[0]


def _under_jobs(graph: BlockGraph, disk: LiveDisk) -> LiveDisk:
    node = disk.node
    while graph.nodes[node].driver in _JOB_FILTERS:
        below = graph.child(node, "backing") or graph.child(node, "file")
        if below is None:
            break
        node = graph.through_filters(below)
    length = len(graph.backing_chain(node)) - 1
    return disk if node == disk.node else replace(disk, node=node, driver=graph.nodes[node].driver, length=length)


def _refusal(refuse: object) -> str | None:
    assert callable(refuse)
    try:
        refuse()
    except InputError as error:
        return error.what
    return None
