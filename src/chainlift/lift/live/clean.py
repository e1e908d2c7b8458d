"""Putting a QEMU in order: what killed runs and disks that are gone have left of ours there, and beside the images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.lift.live.describe import read_graph
from chainlift.lift.live.disks import list_disks
from chainlift.lift.live.graph import query_edges
from chainlift.lift.live.leftovers import free_gone, is_ours
from chainlift.lift.live.session import connect, open_session
from chainlift.lift.tidy import remove_leftovers

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.host.virsh import Domain


@dataclass
class Cleaned:
    """What was done."""

    #: Names of the nodes that QEMU has no more.
    removed: list[str] = field(default_factory=list)
    #: What was done beside QEMU, each as a phrase.
    undone: list[str] = field(default_factory=list)
    #: Images of its disks that were looked at.
    looked_at: list[Path] = field(default_factory=list)
    #: Image -> why it was left alone.
    refused: dict[Path, str] = field(default_factory=dict)


def clean(where: Path | Domain) -> Cleaned:
    """Finish or undo what killed runs have left of any disk of a QEMU, and free what disks that are gone have left.

    What a disk stands on is not changed otherwise: a lift that is in use stays.

    :param where: QEMU's QMP socket, or a libvirt domain.
    :raise InputError: if the QEMU is too old.
    :raise QemuError: if it does not answer, or refuses.
    :raise UnknownStateError: if what a killed run has left cannot be finished or undone.
    """
    done = Cleaned()
    with connect(where) as (monitor, version, process):
        graph = read_graph(monitor, process)
        before = set(filter(is_ours, graph.names))
        free_gone(monitor, graph, version)
        graph = read_graph(monitor, process, graph.nodes)
        disks = [
            disk for disk in list_disks(monitor, graph, process) if disk.driver == "qcow2" and disk.path is not None
        ]
    for disk in disks:
        assert disk.path is not None
        try:
            # Whoever opens a session puts its disk in order.
            with open_session(where, node=disk.node) as session:
                remove_leftovers(session.image)
                done.looked_at.append(session.image)
        except InputError as error:
            done.refused[disk.path] = str(error)
    with connect(where) as (monitor, _, _):
        done.removed = sorted(before - query_edges(monitor).names)
    return done
