"""The single steps of a pivot: commands to one QEMU about one disk, each timed."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import QemuCrashed, QemuError
from chainlift.lift.live.graph import read_edges, read_graph

if TYPE_CHECKING:
    from collections.abc import Mapping
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
    :param pause_s: at least so long QEMU is left alone between two steps.
    """

    def __init__(self, monitor: Qmp, active: ActiveNode, *, pause_s: float) -> None:
        self.active = active
        self.timings = Timings()
        self._monitor = monitor
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

    def read_edges(self) -> BlockGraph:
        """Return which nodes there are and how they hang together."""
        return read_edges(self._monitor, self.active.directory)

    def read_graph(self) -> BlockGraph:
        """Return the same with a description of each node, which takes QEMU much longer."""
        return read_graph(self._monitor, self.active.directory)

    def move_hold(self, onto: str) -> None:
        """Put the hold over another node; what only it has held is freed."""
        raw = {"driver": "raw", "node-name": self.active.hold, "read-only": True, "file": onto}
        self.execute("blockdev-reopen", {"options": [raw]})

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
            if node in self.read_edges().names:
                raise

    def breathe(self, since: int = -1) -> None:
        """Leave QEMU alone as long as it was kept busy: a drained export reads its next request only then.

        :param since: number of the first command that counts; the last one only, if not given.
        """
        if self._pause_s:
            time.sleep(max(self._pause_s, sum(seconds for _, seconds in self.timings.commands[since:])))
