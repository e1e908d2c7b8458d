"""A running disk, looked at and found fit to be switched: what every live verb begins with."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import ImageError, QemuError, UnknownStateError
from chainlift.host.virsh import Domain
from chainlift.lift.live import guard
from chainlift.lift.live.describe import read_graph
from chainlift.lift.live.disks import LiveDisk, choose_disk, list_disks, list_iothreads
from chainlift.lift.live.job import StreamJob
from chainlift.lift.live.leftovers import free_gone, is_ours, prefix_of
from chainlift.lift.live.libvirt_monitor import WARNING, VirshMonitor, device_of_target, find_domain
from chainlift.lift.live.pivot import Pivot, State
from chainlift.lift.live.seen_process import SeenProcess, read_process
from chainlift.lift.live.steps import PAUSE_S, ActiveNode, node_prefix
from chainlift.lift.record.pointer import named_in
from chainlift.lift.tidy import remove_leftovers
from chainlift.qemu.monitor import COMMAND_S, Monitor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp

#: A QMP socket serves one client at a time: whoever waits longer waits for another one to go.
CONNECT_S: Final = 10.0


@dataclass
class LiveSession:
    """One disk of one running QEMU."""

    monitor: Qmp
    version: tuple[int, int, int]
    disk: LiveDisk
    graph: BlockGraph
    process: SeenProcess
    #: What an operator should know and nothing prevents.
    warnings: list[str]
    #: Whether libvirt will start this disk the next time, which it does on no index.
    is_libvirts: bool = False

    @property
    def image(self) -> Path:
        """The active layer's file."""
        assert self.disk.path is not None
        return self.disk.path

    def pivot(
        self,
        *,
        active: ActiveNode | None = None,
        pause_s: float = PAUSE_S,
        after: Callable[[State], None] | None = None,
    ) -> Pivot:
        """Return a pivot of this disk, or of another node of its chain, that has not begun.

        :param active: the node whose backing is exchanged; None: the disk's.
        :param pause_s: seconds between two steps that each stop QEMU's main loop.
        :param after: called with each state that is reached.
        """
        active = self.active() if active is None else active
        return Pivot(self.monitor, active, version=self.version, read_pointer=named_in, pause_s=pause_s, after=after)

    def active(self, name: str | None = None, image: Path | None = None) -> ActiveNode:
        """Return the active node with every option that a reopen must give again.

        :param name: of another node of the chain; with
        :param image: its file.
        """
        node = self.graph.nodes[name or self.disk.node]
        given = self.process.node_options(node.name)
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
            image=image or self.image,
            options=options,
            direct=node.direct,
            no_flush=node.no_flush,
            iothread=self.disk.iothread,
            prefix=node_prefix(image or self.image),
            directory=self.process.directory,
        )

    def refresh(self) -> None:
        """Read QEMU's graph and open files again, after they were changed or a long time has passed."""
        if self.process.pid is not None:
            self.process = read_process(self.process.pid)
        self.graph = read_graph(self.monitor, self.process, self.graph.nodes)

    def check(self) -> None:
        """Refuse what must not be switched; run it right before a pivot once more.

        :raise InputError: with the reason.
        """
        guard.refuse_migration(self.monitor)
        guard.refuse_changed(self.graph, self.disk)
        guard.refuse_node(self.graph, self.disk)
        guard.refuse_chain_in_use(self.graph, self.disk)
        guard.refuse_writers(self.graph, self.disk)
        guard.refuse_iothread(self.disk, self.version, list_iothreads(self.monitor))
        guard.refuse_unknown_process(self.process, self.image)

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
    with connect(where, timeout_s=timeout_s) as (monitor, version, process):
        graph = read_graph(monitor, process)
        if isinstance(where, Domain) and device is not None:
            device = device_of_target(where, device)
        disk = choose_disk(list_disks(monitor, graph, process), device=device, node=node, image=image)
        session = LiveSession(monitor, version, disk, graph, process, [])
        if isinstance(where, Domain):
            session.is_libvirts = True
            session.warnings.append(WARNING)
        guard.refuse_migration(monitor)
        guard.refuse_node(graph, disk)
        if process.node_options(disk.node) is None:
            session.warnings.append(
                f"node {disk.node} is not on QEMU's command line: options that QEMU does not tell (l2-cache-size, "
                "lazy-refcounts, pass-discard-*) go to their defaults"
            )
        if _finish_left(session):
            session.warnings.append("finished what a killed run had left in this QEMU")
            session.refresh()
            if named_in(session.image) is None:
                remove_leftovers(session.image)
        session.check()
        yield session


def _finish_left(session: LiveSession) -> bool:
    """Finish or undo what killed runs have left in QEMU; return whether there was anything.

    :raise UnknownStateError: if that does not work.
    """
    try:
        left = StreamJob(session.monitor, session.active()).finish_left()
        if left:
            session.refresh()
            # The job's filter is gone.
            session.disk = replace(session.disk, root=session.graph.root(session.disk.node))
        left |= free_gone(session.monitor, session.graph, session.version)
        for active in _begun(session):
            guard.refuse_chain_in_use(session.graph, session.disk)
            session.pivot(active=active).recover()
            session.refresh()
            left = True
        for node in _left_writable(session):
            # As a snapshot leaves it (external_snapshot_commit() in blockdev.c).
            session.monitor.execute("blockdev-reopen", {"options": [{**node.options, "read-only": True}]})
            session.warnings.append(f"node {node.name} under the active layer was open for writing: not any more")
            session.refresh()
    except QemuError as error:
        raise UnknownStateError(
            f"what a killed run had left in QEMU could not be put in order ({error})",
            path=session.image,
            hint="the disk reads the same bytes, whichever chain it stands on: delete nothing, run the command again",
        ) from error
    return left


def _begun(session: LiveSession) -> list[ActiveNode]:
    """Return the nodes of the chain whose pivots were not ended; snapshots may have been taken over one since."""
    graph = session.graph
    begun = {prefix_of(name) for name in graph.names if is_ours(name) and not graph.parents(name)}
    found = []
    for name in graph.backing_chain(session.disk.node):
        file = graph.protocol_file(name)
        if begun and file is not None and graph.nodes[name].driver == "qcow2":
            active = session.active(name, Path(file))
            if active.prefix in begun:
                found.append(active)
    return found


def _left_writable(session: LiveSession) -> list[ActiveNode]:
    """Return the nodes under the active one that are open for writing and that nobody writes to.

    An earlier version left one, where a snapshot was taken during a pivot.
    """
    graph = session.graph
    if guard.has_jobs(graph, session.disk):
        return []
    found = []
    for name in graph.backing_chain(session.disk.node)[1:]:
        node, file, path = graph.nodes[name], graph.child(name, "file"), graph.protocol_file(name)
        if node.driver != "qcow2" or not node.is_named or file is None or path is None:
            continue
        if graph.writes_to(name, file) and not graph.is_written(name):
            active = session.active(name, Path(path))
            found.append(replace(active, options={**active.options, "backing": graph.child(name, "backing")}))
    return found


@contextmanager
def connect(
    where: Path | Domain, *, timeout_s: float | None = None
) -> Iterator[tuple[Qmp, tuple[int, int, int], SeenProcess]]:
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
            process = find_domain(where)
            monitor = stack.enter_context(VirshMonitor(where, command_s=command_s))
        else:
            connect_s = CONNECT_S if timeout_s is None else timeout_s
            monitor = stack.enter_context(Monitor.connect(where, timeout_s=connect_s, command_s=command_s))
            process = SeenProcess(None, None) if monitor.peer_pid is None else read_process(monitor.peer_pid)
        guard.refuse_old_qemu(monitor)
        yield monitor, _version(monitor), process


def _version(monitor: Qmp) -> tuple[int, int, int]:
    version = monitor.execute("query-version")["qemu"]
    return (version["major"], version["minor"], version["micro"])
