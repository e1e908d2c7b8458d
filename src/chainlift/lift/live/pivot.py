"""The pivot: a running disk's backing node is exchanged, step by step, each step with its undo.

::

    START ──hold──> HELD ──rename──> RENAMED ──add──> ADDED ──reopen──> PIVOTED ──change-backing-file──> PERSISTED
                     │                  │               │                  │                                 │ release
                     └──────────────────┴──── undo ─────┴──────────────────┴─────────────> START             v
                                                                                                            DONE

*hold*: a ``raw`` node is put over the old backing node. It needs no file (it is added over ``null-co`` and reopened),
and it does two things. The old chain stays open whatever happens, so that undoing is one more reopen and opens
nothing. And ``blockdev-reopen`` of the active node never frees a node: freeing 300 layers at once stops QEMU's main
loop for 0.05 s (7.2) to 0.9 s (11.1), and where the disk is served by an iothread QEMU 7.2 dies of it
(``qemu_mutex_unlock_impl: Operation not permitted``). Added with the old chain as its child right away, the node would
make 7.2 die as well; hence the detour, and ``x-blockdev-set-iothread`` before it.

*rename*: only where an image in the middle of the chain is to stand on something else: its header is changed, on the
old chain's node, which QEMU reopens for writing for that moment (``qmp_change_backing_file()`` in blockdev.c). Before
the new nodes are there, because they are opened as the headers say, under the names that QEMU itself gives them; and
because a second node on the same file would keep the first from being written. Until the reopen the disk reads what it
had open, whatever the headers say.

*release*: the hold is moved down the old chain, a few layers at a time, so that QEMU frees few at a time and serves
requests in between (:mod:`~chainlift.lift.live.closing`).

A failure undoes what was done, last first; what is undone is read from QEMU and from the headers, not remembered, and
read once more when it is undone. Where that fails too nobody knows what is left, and the error says so. After
:attr:`State.PERSISTED` a failure to release is reported and changes nothing more: the disk is switched, some nodes are
left.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ChainliftError, QemuCrashed, QemuError, UnknownStateError
from chainlift.lift.live.closing import closing
from chainlift.lift.live.graph import is_same_file
from chainlift.lift.live.layers import follows_headers
from chainlift.lift.live.steps import NODE_PREFIX, PAUSE_S, ActiveNode, Steps, Timings, node_prefix
from chainlift.lift.target import node_options, pointed_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from collections.abc import Set as AbstractSet

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.target import Target

#: AioContext locks went in 9.0; until then a node freed inside ``blockdev-reopen`` in an iothread ends QEMU.
LOCKLESS: Final = (9, 0, 0)


class State(Enum):
    """How far a pivot has come."""

    START = "nothing done"
    HELD = "the old chain is held"
    RENAMED = "the headers in the middle of the chain name the new backing files"
    ADDED = "the new node is there"
    PIVOTED = "the disk reads through the new node"
    PERSISTED = "the image's header names the new backing file"
    DONE = "the old chain is closed"


@dataclass(frozen=True)
class Rename:
    """A header in the middle of the chain that is to name another backing file."""

    #: The node that has the image open now.
    node: str
    image: Path
    name: str


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
        #: What the headers named before that are to be changed: of each image, its node and the name.
        self._before: dict[Path, tuple[str, str | None]] = {}

    @property
    def timings(self) -> Timings:
        """What each command took."""
        return self._steps.timings

    def run(
        self,
        target: Target,
        *,
        persist: bool = True,
        renames: Sequence[Rename] = (),
        name_layers: bool = False,
        release: bool = True,
    ) -> None:
        """Switch the disk to ``target``.

        :param persist: also write its name into the image's header.
        :param renames: headers under the active layer that are changed before the target is opened, lowest first.
        :param name_layers: add each layer of the target's backing chain by itself, bottom first, so that QEMU opens
            one at a time, and what is under the last one as its header says; the nodes then have names and stay until
            they are deleted by name.
        :param release: close the old chain at the end.
        :raise QemuError: if a step failed; everything is as before.
        :raise UnknownStateError: if a step failed and could not be undone, or QEMU does not answer.
        :raise QemuCrashed: if a QEMU that is ours ended; each header names what it did before or after the switch.
        """
        active = self._active
        if persist:
            self._before[active.image] = (active.name, self._read_pointer(active.image))
        for rename in renames:
            self._before[rename.image] = (rename.node, self._read_pointer(rename.image))
        graph = self._steps.read_edges()
        self._old = graph.child(self._active.name, "backing")
        try:
            if self._old is not None:
                self._hold(self._old)
            self._reached(State.HELD)
            for rename in renames:
                self._rename(rename.node, rename.image, rename.name)
            if renames:
                self._reached(State.RENAMED)
            self._add(target, graph, name_layers=name_layers)
            self._reached(State.ADDED)
            self._sync(active.image)
            self._reopen(self._new[-1])
            self._reached(State.PIVOTED)
            if persist:
                self._rename(active.name, active.image, target.pointer)
                self._reached(State.PERSISTED)
        except QemuCrashed:
            raise
        except BaseException as error:
            self._undo(error)
            raise
        if release:
            self.release()

    def release(self) -> None:
        """Close the old chain, gently. A failure is in :attr:`left`, not raised: the disk is switched.

        :raise UnknownStateError: if QEMU does not answer any more.
        """
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
            try:
                self.left = [str(error), *self._ours(self._steps.read_edges())]
            except QemuError as silent:
                raise UnknownStateError(
                    f"the disk was switched, and then {silent}: whether the old chain is closed is not known",
                    path=self._active.image,
                    hint="delete nothing of it; if QEMU still runs, run the command again, which closes it",
                ) from error
        else:
            self._reached(State.DONE)

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
            more = {"backing": below} if below is not None else {}
            self._new.append(name)
            node = node_options(options, name, direct=active.direct, no_flush=active.no_flush)
            self._steps.execute("blockdev-add", {**node, **more})
            below = name
            self._steps.breathe()

    def _reopen(self, backing: str) -> None:
        self._steps.execute("blockdev-reopen", {"options": [{**self._active.options, "backing": backing}]})

    def _sync(self, image: Path) -> None:
        """Write an image's dirty pages back.

        Before a reopen as well: it flushes the node while every request waits, and should find little to do.
        """
        descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _rename(self, node: str, image: Path, name: str) -> None:
        """Write a backing file name into the header of an image of the chain."""
        arguments = {"device": self._active.root, "image-node-name": node, "backing-file": name}
        self._steps.execute("change-backing-file", arguments)
        self._sync(image)  # QEMU writes the header and does not flush it
        if self._read_pointer(image) != name:
            raise QemuError("change-backing-file did not change the header", path=image)

    def _undo(self, cause: BaseException) -> None:
        """Go back to the node that the disk had before, and every header to the name that it had."""
        active = self._active
        try:
            self._rename_back({active.image})
            graph = self._steps.read_edges()
            held = graph.child(active.hold, "file")
            if held is not None and held != active.hold_null and graph.child(active.name, "backing") != held:
                self._reopen(held)
            # Of the layers below, only now: QEMU changes the header of an image that is in the disk's chain, and that
            # no other node has open.
            self._remove_ours(but_hold=True)
            self._rename_back(self._before.keys() - {active.image})
            self._remove_ours()
            if self._steps.read_edges().child(active.name, "backing") != self._old:
                raise QemuError("the disk does not read through the node that it had before")
        except QemuCrashed:
            raise
        except (ChainliftError, OSError) as error:
            raise self._unknown(cause, error) from cause
        self.state = State.START

    def _rename_back(self, images: AbstractSet[Path]) -> None:
        for image in images & self._before.keys():
            node, name = self._before[image]
            if name is not None and self._read_pointer(image) != name:
                self._rename(node, image, name)

    def _unknown(self, cause: BaseException, error: Exception) -> UnknownStateError:
        """Return the error for a switch that failed and could not be undone."""
        known = []
        for image, (_, before) in self._before.items():
            try:
                names = "what it did" if self._read_pointer(image) == before else "the new backing file"
            except (ChainliftError, OSError):
                names = "nobody knows what: it cannot be read"
            known.append(f"the header of {image.name} names {names}")
        known.append("what QEMU reads through is not known")
        return UnknownStateError(
            f"{cause}; it could not be undone ({error}): {', '.join(known)}",
            path=self._active.image,
            hint="both read the same bytes, so delete nothing; if QEMU still runs, run the command again: it finishes "
            "or undoes this first",
        )

    def _remove_ours(self, *, but_hold: bool = False) -> None:
        """Delete the nodes that we have added for this disk and that it does not use.

        :param but_hold: keep the hold, which tells the next run that this one is not done.
        """
        graph = self._steps.read_edges()
        used = set(graph.subtree(self._active.root))
        if but_hold:
            used |= {self._active.hold, self._active.hold_null}
        elif graph.child(self._active.hold, "file") not in (None, self._active.hold_null):
            # Not deleted over a chain that an iothread reads: 10.0 waits for ever in that blockdev-del.
            self._steps.move_hold(self._active.hold_null)
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
        :raise QemuError: if that does not work; what is left is in QEMU's graph.
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
            self._name_what_is_read()
        elif self._is_to_be_undone(held, backing):
            self._reopen(held)
            self._name_what_is_read()
        else:
            # The headers name what the disk reads through, or nothing; or layers of the old chain are closed already,
            # and the hold is further down and no way back.
            old = self._hold_again(graph, held)
            for _ in closing(self._steps, old, bit_by_bit=self._frees_in_reopen):
                pass
        self._remove_ours()
        self._remove_strays()
        return True

    def _remove_strays(self) -> None:
        """Delete nodes that were added when an image below was the active layer, and that nobody stands on any more."""
        graph = self._steps.read_edges()
        strays = [name for name in graph.names if name.startswith(NODE_PREFIX) and not graph.parents(name)]
        if not strays:
            return
        graph = self._steps.read_graph()
        files = [graph.protocol_file(node) for node in graph.backing_chain(self._active.name)]
        prefixes = {node_prefix(Path(file)) for file in files if file is not None}
        for name in strays:
            prefix, _, number = name.removeprefix(NODE_PREFIX).partition("-")
            if NODE_PREFIX + prefix in prefixes and number.replace("-", "").isdecimal():
                self._steps.delete(name)

    def _is_to_be_undone(self, held: str, backing: str | None) -> bool:
        """Whether the headers still name the chain that is held, and not the one that the disk reads through."""
        image = self._active.image
        named = pointed_file(image, self._read_pointer(image))
        graph = self._steps.read_graph()
        if named is None or not _opens(graph, held, named):
            return False
        return backing is None or not follows_headers(graph, backing, image)

    def _name_what_is_read(self) -> None:
        """Undo what a killed run has done to headers in the middle: each names what QEMU reads again.

        But for an index: everybody knows that a header need not name it.
        """
        self._remove_ours(but_hold=True)
        graph = self._steps.read_graph()
        chain = graph.backing_chain(self._active.name)
        for node, below in pairwise(chain[1:]):
            image, file = graph.protocol_file(node), graph.protocol_file(below)
            if image is None or file is None or graph.is_index(below) or graph.nodes[node].driver != "qcow2":
                continue
            named = pointed_file(Path(image), self._read_pointer(Path(image)))
            if named is not None and not is_same_file(named, Path(file)):
                self._rename(node, Path(image), file)

    def _hold_again(self, graph: BlockGraph, held: str) -> str:
        """Move the hold up again: a run was killed after moving it down and before deleting the nodes that have names.

        They stand over what is held, and nobody stands on the uppermost.
        """
        used = set(graph.subtree(self._active.root))
        top = held
        while above := [
            edge.parent
            for edge in graph.parents(top)
            if edge.role == "backing" and isinstance(edge.parent, str) and edge.parent not in used
        ]:
            top = above[0]
        if top == held or graph.parents(top) or any(map(graph.is_written, graph.layer_nodes(top))):
            return held
        self._steps.move_hold(top)
        return top


def _opens(graph: BlockGraph, node: str, path: Path) -> bool:
    file = graph.protocol_file(node)
    return file is not None and is_same_file(Path(file), path)
