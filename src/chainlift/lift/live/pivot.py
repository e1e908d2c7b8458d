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

*release*: the hold is moved down the old chain, a few layers at a time, so that QEMU frees few at a time and serves
requests in between (:mod:`~chainlift.lift.live.closing`).

A failure undoes what was done, last first; what is undone is read from QEMU and from the image's header, not
remembered. After :attr:`State.PERSISTED` a failure to release is reported and changes nothing more: the disk is
switched, some nodes are left.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import OperationError, QemuCrashed, QemuError
from chainlift.lift.live.closing import closing
from chainlift.lift.live.graph import is_same_file
from chainlift.lift.live.steps import NODE_PREFIX, PAUSE_S, ActiveNode, Steps, Timings
from chainlift.lift.target import node_options, pointed_file, require_persistent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.target import Target

#: AioContext locks went in 9.0; until then a node freed inside ``blockdev-reopen`` in an iothread ends QEMU.
LOCKLESS: Final = (9, 0, 0)


class State(Enum):
    """How far a pivot has come."""

    START = "nothing done"
    HELD = "the old chain is held"
    ADDED = "the new node is there"
    PIVOTED = "the disk reads through the new node"
    PERSISTED = "the image's header names the new backing file"
    DONE = "the old chain is closed"


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
        #: Nodes that could not be removed at the end.
        self.left: list[str] = []
        self._active = active
        self._read_pointer = read_pointer
        self._steps = Steps(monitor, active, pause_s=pause_s)
        self._after = after
        self._frees_in_reopen = version >= LOCKLESS or active.iothread is None
        self._old: str | None = None
        self._new: list[str] = []

    @property
    def timings(self) -> Timings:
        """What each command took."""
        return self._steps.timings

    def run(self, target: Target, *, persist: bool = True, name_layers: bool = False, release: bool = True) -> None:
        """Switch the disk to ``target``.

        :param persist: also write its name into the image's header.
        :param name_layers: add each layer of the target's backing chain by itself, bottom first, so that QEMU opens
            one at a time; the nodes then have names and stay until they are deleted by name.
        :param release: close the old chain at the end.
        :raise ImageError: if the target's name cannot be written into a header by a running QEMU; nothing was touched.
        :raise QemuError: if a step failed; everything is as before.
        :raise QemuCrashed: if QEMU ended; the image on disk is as it was before or after the switch.
        """
        if persist:
            require_persistent(self._active.image, target)
        before = self._read_pointer(self._active.image)
        graph = self._steps.read_edges()
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
        for _ in self.releasing():
            pass

    def releasing(self) -> Iterator[None]:
        """Do what :meth:`release` does, a step with each element that is asked for.

        Once the first is there, a run that is killed will be continued and not undone.
        """
        try:
            if self._old is not None:
                yield from closing(self._steps, self._old, bit_by_bit=self._frees_in_reopen)
        except QemuCrashed:
            raise
        except QemuError as error:
            self.left = [str(error), *self._ours(self._steps.read_edges())]
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
        self._steps.execute(
            "blockdev-add", {"driver": "null-co", "node-name": active.hold_null, "size": 0, "read-only": True}
        )
        raw = {"driver": "raw", "node-name": active.hold, "read-only": True}
        self._steps.execute("blockdev-add", {**raw, "file": active.hold_null})
        if active.iothread is not None:
            arguments = {"node-name": active.hold, "iothread": active.iothread}
            self._steps.execute("x-blockdev-set-iothread", arguments)
        self._steps.move_hold(old)

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
            self._steps.execute("blockdev-add", {**node, **more})
            below = name
            self._steps.breathe()

    def _reopen(self, backing: str) -> None:
        self._steps.execute("blockdev-reopen", {"options": [{**self._active.options, "backing": backing}]})

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
        self._steps.execute("change-backing-file", arguments)
        self._sync()  # QEMU writes the header and does not flush it
        if self._read_pointer(active.image) != pointer:
            raise QemuError("change-backing-file did not change the header", path=active.image)

    def _undo(self, pointer: str | None, cause: BaseException | None) -> None:
        active = self._active
        try:
            if pointer is not None and self._read_pointer(active.image) != pointer:
                self._persist(pointer)
            graph = self._steps.read_edges()
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

    def _remove_ours(self) -> None:
        """Delete the nodes that we have added for this disk and that it does not use."""
        graph = self._steps.read_edges()
        used = set(graph.subtree(self._active.root))
        for name in self._ours(graph):
            if name not in used:
                self._steps.delete(name)

    def _ours(self, graph: BlockGraph) -> list[str]:
        """Return the nodes of this disk that are ours, parents first."""
        ours = [name for name in graph.names if name.startswith(self._active.prefix + "-")]
        ours.sort(key=lambda name: len(graph.subtree(name)), reverse=True)
        return ours

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
        graph = self._steps.read_edges()
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
        if named is not None and _opens(self._steps.read_graph(), held, named):
            self._undo(None, None)
        else:
            # The header names what the disk reads through, or nothing; or layers of the old chain are closed already,
            # and the hold is further down and no way back.
            old = self._hold_again(graph, held)
            for _ in closing(self._steps, old, bit_by_bit=self._frees_in_reopen):
                pass
            self._remove_ours()
        return True

    def _hold_again(self, graph: BlockGraph, held: str) -> str:
        """Move the hold up to a node of ours over it: a run was killed after moving the hold and before deleting it."""
        above = [edge.parent for edge in graph.parents(held) if edge.role == "backing"]
        for name in above:
            if isinstance(name, str) and name.startswith(NODE_PREFIX) and not graph.parents(name):
                self._steps.move_hold(name)
                return name
        return held


def _opens(graph: BlockGraph, node: str, path: Path) -> bool:
    file = graph.protocol_file(node)
    return file is not None and is_same_file(Path(file), path)
