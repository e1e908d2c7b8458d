"""The pivot: a running disk's backing node is exchanged, step by step, each step with its undo.

::

    START ──hold──> HELD ──add──> ADDED ──reopen──> PIVOTED ──change-backing-file──> PERSISTED ──release──> DONE
                     │              │                  │                                 │
                     └──────────────┴── undo ──────────┴─────────────────────────────────┘ ──> START

*hold*: a ``raw`` node is put over the old backing node. It needs no file (it is added over ``null-co`` and reopened),
and it does two things. The old chain stays open whatever happens, so that undoing is one more reopen and opens
nothing. And ``blockdev-reopen`` of the active node never frees a node: freeing 300 layers at once stops QEMU's main
loop for 0.05 s (7.2) to 0.9 s (11.1), and where the disk is served by an iothread QEMU 7.2 dies of it
(``qemu_mutex_unlock_impl: Operation not permitted``). Added with the old chain as its child right away, the node would
make 7.2 die as well; hence the detour, and ``x-blockdev-set-iothread`` before it.

*release*: the hold is moved down the old chain, one layer at a time, so that QEMU frees one at a time and serves
requests in between; 18 ms at most instead of 0.9 s at 300 layers on 11.1. On QEMU before 9.0 with an iothread all go
with the ``blockdev-del`` of the hold instead (0.06 s): there a reopen that frees a node is what must not be.

A failure undoes what was done, last first; what is undone is read from QEMU and from the image's header, not
remembered. After :attr:`State.PERSISTED` a failure to release is reported and changes nothing more: the disk is
switched, some nodes are left.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import OperationError, QemuCrashed, QemuError
from chainlift.lift.live.graph import is_named, is_same_file, read_edges, read_graph
from chainlift.lift.live.target import node_options, pointed_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.target import Target

#: AioContext locks went in 9.0; until then a node freed inside ``blockdev-reopen`` in an iothread ends QEMU.
LOCKLESS: Final = (9, 0, 0)
#: How the names of all nodes begin that we add.
NODE_PREFIX: Final = "chainlift-"
#: How long QEMU is left alone between two steps that each stop its main loop for a moment.
PAUSE_S: Final = 0.005


class State(Enum):
    """How far a pivot has come."""

    START = "nothing done"
    HELD = "the old chain is held"
    ADDED = "the new node is there"
    PIVOTED = "the disk reads through the new node"
    PERSISTED = "the image's header names the new backing file"
    DONE = "the old chain is closed"


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


class Pivot:
    """One exchange of a backing node.

    :param version: of the QEMU.
    :param read_pointer: reads the backing file name that the image's header has on disk now.
    :param pause_s: between the small steps.
    :param after: called with each state that was reached; a test's place to stop.
    """

    def __init__(
        self,
        monitor: Qmp,
        active: ActiveNode,
        *,
        version: tuple[int, int, int],
        read_pointer: Callable[[Path], str | None],
        pause_s: float = PAUSE_S,
        after: Callable[[State], None] | None = None,
    ) -> None:
        self.state = State.START
        self.timings = Timings()
        #: Nodes that could not be removed at the end.
        self.left: list[str] = []
        self._monitor = monitor
        self._active = active
        self._read_pointer = read_pointer
        self._pause_s = pause_s
        self._after = after
        self._frees_in_reopen = version >= LOCKLESS or active.iothread is None
        self._old: str | None = None
        self._new: list[str] = []

    def run(self, target: Target, *, persist: bool = True, name_layers: bool = False, release: bool = True) -> None:
        """Switch the disk to ``target``.

        :param persist: also write its name into the image's header.
        :param name_layers: add each layer of the target's backing chain by itself, bottom first, so that QEMU opens
            one at a time; the nodes then have names and stay until they are deleted by name.
        :param release: close the old chain at the end.
        :raise QemuError: if a step failed; everything is as before.
        :raise QemuCrashed: if QEMU ended; the image on disk is as it was before or after the switch.
        """
        before = self._read_pointer(self._active.image)
        graph = self._read_edges()
        self._old = graph.child(self._active.name, "backing")
        try:
            if self._old is not None:
                self._hold(self._old)
            self._reached(State.HELD)
            self._add(target, graph, name_layers=name_layers)
            self._reached(State.ADDED)
            self._sync()
            self._reopen(self._new[-1])
            self._reached(State.PIVOTED)
            if persist:
                self._persist(target.pointer)
                self._reached(State.PERSISTED)
        except QemuCrashed:
            raise
        except BaseException as error:
            self._undo(before, error)
            raise
        if release:
            self.release()

    def release(self) -> None:
        """Close the old chain, gently. A failure is in :attr:`left`, not raised: the disk is switched."""
        try:
            if self._old is not None:
                self._release(self._old)
        except QemuCrashed:
            raise
        except QemuError as error:
            self.left = [str(error), *self._ours(self._read_edges())]
        else:
            self._reached(State.DONE)

    def undo(self, pointer: str | None) -> None:
        """Go back to the node that the disk had before, which must not have been released.

        :param pointer: the backing file name that the header had.
        """
        self._undo(pointer, None)

    # -- steps ---------------------------------------------------------------------------------------------------

    def _hold(self, old: str) -> None:
        active = self._active
        self._execute(
            "blockdev-add", {"driver": "null-co", "node-name": active.hold_null, "size": 0, "read-only": True}
        )
        raw = {"driver": "raw", "node-name": active.hold, "read-only": True}
        self._execute("blockdev-add", {**raw, "file": active.hold_null})
        if active.iothread is not None:
            arguments = {"node-name": active.hold, "iothread": active.iothread}
            self._execute("x-blockdev-set-iothread", arguments)
        self._move_hold(old)

    def _move_hold(self, onto: str) -> None:
        raw = {"driver": "raw", "node-name": self._active.hold, "read-only": True, "file": onto}
        self._execute("blockdev-reopen", {"options": [raw]})

    def _add(self, target: Target, graph: BlockGraph, *, name_layers: bool) -> None:
        active = self._active
        number = next(n for n in range(1, 1 << 30) if f"{active.prefix}-{n}" not in graph.names)
        layers = [target.options, *target.below] if name_layers else [target.options]
        # Noted before it is added: an answer that never came may stand for a node that is there.
        below: str | None = None
        for depth, options in reversed(list(enumerate(layers))):
            name = f"{active.prefix}-{number}" + (f"-{depth}" if depth else "")
            more = {"backing": below} if name_layers else {}
            self._new.append(name)
            node = node_options(options, name, direct=active.direct, no_flush=active.no_flush)
            self._execute("blockdev-add", {**node, **more})
            below = name
            self._breathe()

    def _reopen(self, backing: str) -> None:
        self._execute("blockdev-reopen", {"options": [{**self._active.options, "backing": backing}]})

    def _sync(self) -> None:
        """Write the image's dirty pages back.

        Before a reopen as well: it flushes the node while every request waits, and should find little to do.
        """
        descriptor = os.open(self._active.image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _persist(self, pointer: str) -> None:
        active = self._active
        arguments = {"device": active.root, "image-node-name": active.name, "backing-file": pointer}
        self._execute("change-backing-file", arguments)
        self._sync()  # QEMU writes the header and does not flush it
        if self._read_pointer(active.image) != pointer:
            raise QemuError("change-backing-file did not change the header", path=active.image)

    def _release(self, old: str) -> None:
        graph = self._read_edges()
        chain = graph.backing_chain(old)
        gone = {self._active.hold}
        layers = iter(zip(chain, [*chain[1:], self._active.hold_null], strict=True))
        if self._frees_in_reopen:
            for layer, below in layers:
                if not _only_held_by(graph, layer, gone):
                    break  # another disk, a job or an export needs it, and with it all that is below
                self._move_hold(below)
                self._close_layer(graph, layer, gone)
                self._breathe()
        self._delete(self._active.hold)
        self._delete(self._active.hold_null)
        for layer, _ in layers:
            self._close_layer(graph, layer, gone)

    def _close_layer(self, graph: BlockGraph, top: str, gone: set[str]) -> None:
        """Delete the nodes of one layer that have names, as far as nobody else uses them; others go by themselves."""
        for node in graph.layer_nodes(top):
            if _only_held_by(graph, node, gone):
                if is_named(node):
                    self._delete_named(node)
                gone.add(node)

    def _delete_named(self, node: str) -> None:
        """Delete a node that has a name, unless it went with its parent, in whose options it was named.

        QMP does not tell which nodes are the monitor's own, so it is tried.
        """
        try:
            self._delete(node)
        except QemuCrashed:
            raise
        except QemuError:
            if node in self._read_edges().names:
                raise

    def _undo(self, pointer: str | None, cause: BaseException | None) -> None:
        active = self._active
        try:
            if pointer is not None and self._read_pointer(active.image) != pointer:
                self._persist(pointer)
            graph = self._read_edges()
            held = graph.child(active.hold, "file")
            if held is not None and held != active.hold_null and graph.child(active.name, "backing") != held:
                self._reopen(held)
            self._remove_ours()
        except QemuCrashed:
            raise
        except QemuError as error:
            what = f"{cause}; it could not be undone" if cause else "it could not be undone"
            raise OperationError(
                f"{what} ({error})",
                path=active.image,
                hint="the image reads the same bytes either way; if QEMU still runs, run the command again to clean up",
            ) from cause
        self.state = State.START

    def _read_edges(self) -> BlockGraph:
        return read_edges(self._monitor, self._active.directory)

    def _remove_ours(self) -> None:
        """Delete the nodes that we have added for this disk and that it does not use."""
        graph = self._read_edges()
        used = set(graph.subtree(self._active.root))
        for name in self._ours(graph):
            if name not in used:
                self._delete(name)

    def _ours(self, graph: BlockGraph) -> list[str]:
        """Return the nodes of this disk that are ours, parents first."""
        ours = [name for name in graph.names if name.startswith(self._active.prefix + "-")]
        ours.sort(key=lambda name: len(graph.subtree(name)), reverse=True)
        return ours

    def _delete(self, node: str) -> None:
        self._execute("blockdev-del", {"node-name": node})

    def _breathe(self) -> None:
        """Leave QEMU alone as long as the last command took: a drained export reads its next request only then."""
        if self._pause_s:
            time.sleep(max(self._pause_s, self.timings.commands[-1][1]))

    def _execute(self, command: str, arguments: Mapping[str, object]) -> None:
        began = time.perf_counter()
        try:
            self._monitor.execute(command, arguments)
        finally:
            self.timings.commands.append((command, time.perf_counter() - began))

    def _reached(self, state: State) -> None:
        self.state = state
        if self._after is not None:
            self._after(state)

    # -- after a run that was killed --------------------------------------------------------------------------------

    def recover(self) -> bool:
        """Finish or undo what a killed run has left in this QEMU, whichever the image's header says.

        :return: whether anything was left.
        :raise OperationError: if that does not work.
        """
        active = self._active
        graph = self._read_edges()
        if not any(name in graph.names for name in (active.hold, active.hold_null)):
            used = set(graph.subtree(active.root))
            stray = not used.issuperset(self._ours(graph))
            self._remove_ours()
            return stray
        held, backing = graph.child(active.hold, "file"), graph.child(active.name, "backing")
        if held is None or held in (active.hold_null, backing):
            self._remove_ours()
            return True
        named = pointed_file(active.image, self._read_pointer(active.image))
        if named is None or backing is None:
            raise OperationError("a killed run has left this disk half switched", path=active.image)
        graph = read_graph(self._monitor, active.directory)
        if _opens(graph, backing, named):
            self._release(self._hold_again(graph, held))
            self._remove_ours()
        else:
            # The header names what is held, or neither, as under libvirt when an index replaces an index.
            self._undo(None, None)
        return True

    def _hold_again(self, graph: BlockGraph, held: str) -> str:
        """Move the hold up to a node of ours over it: a run was killed after moving the hold and before deleting it."""
        above = [edge.parent for edge in graph.parents(held) if edge.role == "backing"]
        for name in above:
            if isinstance(name, str) and name.startswith(NODE_PREFIX) and not graph.parents(name):
                self._move_hold(name)
                return name
        return held


def _only_held_by(graph: BlockGraph, node: str, gone: set[str]) -> bool:
    return all(edge.parent in gone for edge in graph.parents(node))


def _opens(graph: BlockGraph, node: str, path: Path) -> bool:
    file = graph.protocol_file(node)
    return file is not None and is_same_file(Path(file), path)
