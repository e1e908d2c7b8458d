"""The single steps of a pivot: commands to one QEMU about one disk, each timed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.durable import sync_path
from chainlift.lift.live.graph import query_edges, query_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp

#: How the names of all nodes begin that we add.
NODE_PREFIX: Final = "chainlift-"
#: How long QEMU is left alone between two steps that each stop its main loop for a moment.
PAUSE_S: Final = 0.005


def node_prefix(image: Path) -> str:
    """Return how the names of the nodes begin that we add for this image; 19 of the 31 characters that QEMU allows."""
    return NODE_PREFIX + hashlib.sha256(str(image.resolve()).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class ActiveNode:
    """The node whose backing is exchanged, and everything that ``blockdev-reopen`` must be told again."""

    name: str
    #: The topmost filter over it, or itself: what ``change-backing-file`` wants as its device.
    root: str
    image: Path
    #: Options without ``backing``.
    options: Mapping[str, Any]
    direct: bool
    no_flush: bool
    iothread: str | None
    #: Names the nodes that we add for this disk: ``chainlift-1a2b3c4d``.
    prefix: str
    #: QEMU's working directory.
    directory: Path

    def cover(self, number: int) -> str:
        """Return the name of a node over a new chain that the disk does not use yet."""
        return f"{self.prefix}-cover{number}"

    @property
    def hold(self) -> str:
        """The name of the node that keeps the old chain open."""
        return f"{self.prefix}-hold"

    @property
    def hold_null(self) -> str:
        """The name of the empty node that the hold begins and ends on."""
        return f"{self.prefix}-null"


@dataclass
class Timings:
    """What each command took, as its caller saw it: for as long a client of the main loop may have waited."""

    commands: list[tuple[str, float]] = field(default_factory=list)

    def longest_s(self, *names: str) -> float:
        """Return the longest of the commands of these names, of all where none is given."""
        return max((seconds for name, seconds in self.commands if not names or name in names), default=0.0)

    def total_s(self) -> float:
        """Return the sum of all."""
        return sum(seconds for _, seconds in self.commands)


class Steps:
    """What can be done to a disk's nodes.

    :param active: the disk's active node.
    :param read_pointer: reads the backing file name that an image's header has on disk now.
    :param pause_s: at least so long QEMU is left alone between two steps.
    :param frees_in_reopen: whether a reopen may free nodes; see :mod:`chainlift.lift.live.pivot`.
    """

    def __init__(
        self,
        monitor: Qmp,
        active: ActiveNode,
        *,
        read_pointer: Callable[[Path], str | None],
        pause_s: float,
        frees_in_reopen: bool = True,
    ) -> None:
        self.active = active
        self.frees_in_reopen = frees_in_reopen
        self.timings = Timings()
        self._monitor = monitor
        self.read_pointer = read_pointer
        self._pause_s = pause_s

    def execute(self, command: str, arguments: Mapping[str, object]) -> None:
        """Execute a command that changes the graph.

        :raise QemuError: if QEMU refuses it.
        :raise QemuCrashed: if QEMU ends.
        """
        began = time.perf_counter()
        try:
            self._monitor.execute(command, arguments)
        finally:
            self.timings.commands.append((command, time.perf_counter() - began))

    def query_edges(self) -> BlockGraph:
        """Return which nodes there are and how they hang together."""
        return query_edges(self._monitor, self.active.directory)

    def query_graph(self) -> BlockGraph:
        """Return the same with a description of each node, which takes QEMU much longer."""
        return query_graph(self._monitor, self.active.directory)

    def reopen(self, backing: str | None, *, read_only: bool = False) -> None:
        """Let the active node stand on another node.

        :param read_only: because it is not the active node any more.
        """
        more = {"read-only": True} if read_only else {}
        self.execute("blockdev-reopen", {"options": [{**self.active.options, "backing": backing, **more}]})

    def rename(self, node: str, image: Path, name: str, graph: BlockGraph | None = None) -> None:
        """Write a backing file name into the header of an image of the chain, whatever is over it by now.

        :param graph: as it was read just now; None reads it.
        """
        root = (self.query_edges() if graph is None else graph).top(node)
        self.execute("change-backing-file", {"device": root, "image-node-name": node, "backing-file": name})
        self.sync(image)  # QEMU writes the header and does not flush it
        if self.read_pointer(image) != name:
            raise QemuError("change-backing-file did not change the header", path=image)

    def sync(self, image: Path) -> None:
        """Write an image's dirty pages back.

        Before a reopen as well: it flushes the node while every request waits, and should find little to do.
        """
        sync_path(image)

    def add_empty(self, graph: BlockGraph) -> None:
        """Add the empty node that the hold begins and ends on, unless it is there."""
        if self.active.hold_null not in graph.names:
            empty = {"driver": "null-co", "node-name": self.active.hold_null, "size": 0, "read-only": True}
            self.execute("blockdev-add", empty)

    def move_hold(self, onto: str) -> None:
        """Put the hold over another node; what only it has held is freed."""
        self._move(self.active.hold, onto)

    def _move(self, node: str, onto: str) -> None:
        raw = {"driver": "raw", "node-name": node, "read-only": True, "file": onto}
        self.execute("blockdev-reopen", {"options": [raw]})

    def lift_off(self, node: str, graph: BlockGraph) -> None:
        """Delete a ``raw`` node that nothing stands on; what only it has held is freed.

        It is moved onto the empty node first: deleted over a chain that an iothread reads, it makes 10.0 wait for ever.
        Where a reopen must free nothing, it is deleted as it is.
        """
        if self.frees_in_reopen and graph.child(node, "file") not in (None, self.active.hold_null):
            self.add_empty(graph)
            self._move(node, self.active.hold_null)
        self.delete(node)

    def remove_ours(self, *, keep: Collection[str] = ()) -> None:
        """Delete the nodes that we have added for this disk and that nobody stands on.

        :param keep: names of some that stay.
        """
        while True:
            graph = self.query_edges()
            free = [name for name in self.ours(graph) if name not in keep]
            # The empty node is what others are moved onto: the last to go.
            now = [name for name in free if name != self.active.hold_null]
            for name in now or free:
                if name == self.active.hold or name.startswith(self.active.cover(0)[:-1]):
                    self.lift_off(name, graph)
                else:
                    self.delete(name)
            if not now:
                break

    def ours(self, graph: BlockGraph | None = None) -> list[str]:
        """Return the nodes that we have added for this disk and that nobody stands on."""
        graph = self.query_edges() if graph is None else graph
        prefix = self.active.prefix + "-"
        return sorted(name for name in graph.names if name.startswith(prefix) and not graph.parents(name))

    def delete(self, node: str) -> None:
        """Delete a node that nothing stands on."""
        self.execute("blockdev-del", {"node-name": node})

    def delete_named(self, node: str) -> None:
        """Delete a node that has a name, unless it went with its parent, in whose options it was named.

        QMP does not tell which nodes are the monitor's own, so it is tried.
        """
        try:
            self.delete(node)
        except QemuCrashed:
            raise
        except QemuError:
            if node in self.query_edges().names:
                raise

    def breathe(self, since: int = -1, *, share: float = 1.0) -> None:
        """Leave QEMU alone for a part of the time that it was kept busy: a drained export reads its next request then.

        :param since: number of the first command that counts; the last one only, if not given.
        :param share: how large a part.
        """
        if self._pause_s:
            time.sleep(max(self._pause_s, share * sum(seconds for _, seconds in self.timings.commands[since:])))
