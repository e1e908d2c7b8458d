"""A running disk, looked at and found fit to be switched: what every live verb begins with."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import ImageError, QemuError, UnknownStateError
from chainlift.lift.live import guard
from chainlift.lift.live.describe import look
from chainlift.lift.live.disks import LiveDisk, choose_disk, list_disks, list_iothreads
from chainlift.lift.live.job import StreamJob
from chainlift.lift.live.libvirt import WARNING, Domain, VirshMonitor, device_of_target, find_domain
from chainlift.lift.live.peer import Peer, look_at
from chainlift.lift.live.pivot import Pivot, State
from chainlift.lift.live.steps import PAUSE_S, ActiveNode, node_prefix
from chainlift.lift.tidy import remove_leftovers
from chainlift.qcow2.header import parse_header
from chainlift.qemu.monitor import COMMAND_S, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp

#: A name, a feature table and a long backing name fit well into this much of a qcow2 file's beginning.
_HEADER_BYTES = 1 << 16
#: A QMP socket serves one client at a time: whoever waits longer waits for another one to go.
CONNECT_S: Final = 10.0


@dataclass
class LiveSession:
    """One disk of one running QEMU."""

    monitor: Qmp
    version: tuple[int, int, int]
    disk: LiveDisk
    graph: BlockGraph
    peer: Peer
    #: What an operator should know and nothing prevents.
    warnings: list[str]
    #: Whether libvirt will start this disk the next time, which it does on no index.
    is_libvirts: bool = False

    @property
    def image(self) -> Path:
        """The active layer's file."""
        assert self.disk.path is not None
        return self.disk.path

    def pivot(self, *, pause_s: float = PAUSE_S, after: Callable[[State], None] | None = None) -> Pivot:
        """Return a pivot of this disk that has not begun."""
        return Pivot(
            self.monitor, self.active(), version=self.version, read_pointer=read_pointer, pause_s=pause_s, after=after
        )

    def active(self) -> ActiveNode:
        """Return the active node with every option that a reopen must give again."""
        node = self.graph.nodes[self.disk.node]
        given = self.peer.node_options(node.name)
        options: dict[str, Any] = {
            **(given or {}),
            "driver": node.driver,
            "node-name": node.name,
            "read-only": node.read_only,
            "cache": {"direct": node.direct, "no-flush": node.no_flush},
            "detect-zeroes": node.detect_zeroes,
            **{role: child for role, child in self.graph.children(node.name).items() if role != "backing"},
        }
        return ActiveNode(
            name=node.name,
            root=self.disk.root,
            image=self.image,
            options=options,
            direct=node.direct,
            no_flush=node.no_flush,
            iothread=self.disk.iothread,
            prefix=node_prefix(self.image),
            directory=self.peer.directory,
        )

    def refresh(self) -> None:
        """Read QEMU's graph and open files again, after they were changed or a long time has passed."""
        if self.peer.pid is not None:
            self.peer = look_at(self.peer.pid)
        self.graph = look(self.monitor, self.peer, self.graph.nodes)

    def check(self) -> None:
        """Refuse what must not be switched; run it right before a pivot once more.

        :raise InputError: with the reason.
        """
        guard.refuse_migration(self.monitor)
        guard.refuse_node(self.graph, self.disk)
        guard.refuse_chain_in_use(self.graph, self.disk)
        guard.refuse_writers(self.graph, self.disk)
        guard.refuse_iothread(self.disk, self.version, list_iothreads(self.monitor))
        guard.refuse_unknown_process(self.peer, self.image)

    def check_stream(self) -> None:
        """Refuse a ``block-stream`` of which QEMU would die.

        :raise InputError: with the reason.
        """
        guard.refuse_stream(self.disk, self.version, list_iothreads(self.monitor))


@contextmanager
def open_session(
    where: Path | Domain,
    *,
    device: str | None = None,
    node: str | None = None,
    image: Path | None = None,
    timeout_s: float | None = None,
) -> Iterator[LiveSession]:
    """Connect to a QEMU, find the disk that is meant, clean up after a killed run, and check that it can be switched.

    :param where: QEMU's QMP socket, or a libvirt domain.
    :param device: the disk by a device's or an export's name, or by libvirt's target (``vda``); or
    :param node: by its node; or
    :param image: by its active layer's file; all None where there is only one.
    :param timeout_s: how long to wait for the socket to be free, and for the answer to each command; None: 10 and 120.
    :raise InputError: if it cannot be switched, with the reason.
    :raise QemuError: if QEMU does not answer.
    :raise UnknownStateError: if what a killed run has left there cannot be finished or undone.
    """
    with connect(where, timeout_s=timeout_s) as (monitor, version, peer):
        graph = look(monitor, peer)
        if isinstance(where, Domain) and device is not None:
            device = device_of_target(where, device)
        disk = choose_disk(list_disks(monitor, graph, peer), device=device, node=node, image=image)
        session = LiveSession(monitor, version, disk, graph, peer, [])
        if isinstance(where, Domain):
            session.is_libvirts = True
            session.warnings.append(WARNING)
        guard.refuse_migration(monitor)
        guard.refuse_node(graph, disk)
        if peer.node_options(disk.node) is None:
            session.warnings.append(
                f"node {disk.node} is not on QEMU's command line: options that QEMU does not tell (l2-cache-size, "
                "lazy-refcounts, pass-discard-*) go to their defaults"
            )
        if _finish_left(session):
            session.warnings.append("finished what a killed run had left in this QEMU")
            session.refresh()
            if read_pointer(session.image) is None:
                remove_leftovers(session.image)
        session.check()
        yield session


def _finish_left(session: LiveSession) -> bool:
    """Finish or undo what a killed run has left in QEMU; return whether there was anything.

    :raise UnknownStateError: if that does not work.
    """
    try:
        left = StreamJob(session.monitor, session.active()).finish_left()
        if left:
            session.refresh()
        return session.pivot().recover() or left
    except QemuError as error:
        raise UnknownStateError(
            f"what a killed run had left in QEMU could not be put in order ({error})",
            path=session.image,
            hint="the disk reads the same bytes, whichever chain it stands on: delete nothing, run the command again",
        ) from error


@contextmanager
def connect(
    where: Path | Domain, *, timeout_s: float | None = None
) -> Iterator[tuple[Qmp, tuple[int, int, int], Peer]]:
    """Connect to a QEMU that has the commands we need; yield its monitor, its version and its process.

    :param timeout_s: how long to wait for the socket to be free, and for the answer to each command; None: 10 and 120.
    :raise InputError: if it is too old.
    :raise QemuError: if nobody answers.
    """
    if isinstance(where, Path) and not where.is_socket():
        raise ImageError("is no socket", path=where, hint="name QEMU's QMP socket (-qmp unix:PATH,server=on,wait=off)")
    command_s = COMMAND_S if timeout_s is None else timeout_s
    with ExitStack() as stack:
        monitor: Qmp
        if isinstance(where, Domain):
            peer = find_domain(where)
            monitor = stack.enter_context(VirshMonitor(where, command_s=command_s))
        else:
            connect_s = CONNECT_S if timeout_s is None else timeout_s
            monitor = stack.enter_context(Monitor.connect(where, timeout_s=connect_s, command_s=command_s))
            peer = Peer(None, None) if monitor.peer_pid is None else look_at(monitor.peer_pid)
        guard.refuse_old_qemu(monitor)
        yield monitor, _version(monitor), peer


def read_pointer(image: Path) -> str | None:
    """Return the backing file name that stands in the image's header now.

    :raise ImageError: if the image is no qcow2 image.
    """
    with image.open("rb") as file:
        name = parse_header(file.read(_HEADER_BYTES), str(image)).backing_file
    return None if name is None else os.fsdecode(name)


def _version(monitor: Qmp) -> tuple[int, int, int]:
    version = monitor.execute("query-version")["qemu"]
    return (version["major"], version["minor"], version["micro"])
