"""A disk that a running QEMU has open, as every verb sees it: see :class:`chainlift.lift.disk.Disk`."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, InputError, QemuError, UnknownStateError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.disk import Change
from chainlift.lift.live import guard
from chainlift.lift.live.gentle import gentle_extents
from chainlift.lift.live.layers import layers_under, leads_to, refer, standing
from chainlift.lift.live.steps import Steps, Timings
from chainlift.lift.live.switch import switch_live
from chainlift.lift.live.whose import ask_vm, nearest_mark
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.mark import Mark, read_mark, state_directory, write_mark
from chainlift.lift.record.pointer import backing_name, named_in, read_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from chainlift.lift.disk import Standing
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.pivot import State
    from chainlift.lift.live.session import LiveSession
    from chainlift.qemu.binary import Qemu


@dataclass
class RunningDisk:
    """One disk of one running QEMU.

    :param session: from :func:`chainlift.lift.live.session.open_session`.
    :param qemu: whose storage daemon compares; the running one does not.
    :param after: called with each state that a switch has reached; a test's place to stop.
    """

    session: LiveSession
    qemu: Qemu | None
    after: Callable[[State], None] | None = None
    #: What the commands of all switches took.
    timings: Timings = field(default_factory=Timings)
    #: What could not be cleaned up in QEMU after a switch that was made.
    left: list[str] = field(default_factory=list)
    _is_stale: bool = False

    @property
    def image(self) -> Path:
        """The active layer's file; absolute."""
        return self.session.image

    @property
    def most_extents(self) -> int | None:
        """So many that QEMU's main loop hardly stops for adding and closing them."""
        return gentle_extents(self.session.version, len(self.session.graph.backing_chain(self.session.disk.node)))

    @property
    def needs_absolute_names(self) -> bool:
        """QEMU opens a backing file by an absolute name here, and takes it for overridden under any other."""
        return True

    @property
    def keeps_bitmaps(self) -> bool:
        """Whether they are looked for in the graph: libvirt looks for them in the nodes that it has opened itself."""
        return not self.session.is_libvirts

    @property
    def image_is_written(self) -> str | None:
        """QEMU has it open."""
        return "the running QEMU writes to it"

    @property
    def holders(self) -> frozenset[int]:
        """The QEMU, where it can be seen."""
        return frozenset() if self.session.process.pid is None else frozenset({self.session.process.pid})

    @property
    def known_to_libvirt_as(self) -> tuple[str, str] | None:
        """What definitions name stays: libvirt is not told."""
        return None

    def check(self, *, for_index: bool = False) -> None:  # noqa: ARG002 - a running QEMU reads any
        """Refuse a disk that must not be switched now; QEMU is asked again.

        :raise InputError: with the reason; nothing was touched.
        """
        self.session.refresh()
        self._is_stale = False
        self.session.check()
        refuse_other_chain(self.session)

    def check_again(self) -> None:
        """Ask as :meth:`check` does: QEMU has the layers open for reading only, as we have."""
        self.check()

    def reopen(self) -> None:
        """Pivot to the chain that the active layer's header names, opened anew.

        :raise QemuError: if a step failed; everything is as before.
        :raise UnknownStateError: if it is not known what a step that failed has left.
        """
        pointer = read_pointer(self.image)[1]
        if pointer is None:
            raise InputError("has no backing file", path=self.image)
        self.switch([Change(self.image, pointer, pointer)])
        try:
            self._name_plainly()
        except (QemuError, OSError) as error:
            self.left.append(f"the next snapshot's overlay gets a nested json: name ({error})")

    def _name_plainly(self) -> None:
        """Have later overlays get plain names.

        A QEMU that has opened the image by a relative name takes a backing node with an absolute one for overridden,
        until the header names it so; see :mod:`chainlift.lift.live.naming`.
        """
        self._fresh()
        session = self.session
        described = session.monitor.execute("query-named-block-nodes", {"flat": True})
        name = next(node["file"] for node in described if node["node-name"] == session.disk.node)
        if not name.startswith("json:") or "backing" not in json.loads(name[5:]):
            return
        below = session.graph.protocol_file(session.graph.backing_chain(session.disk.node)[1])
        if below is not None:
            steps = Steps(session.monitor, session.active(), read_pointer=named_in, pause_s=0)
            steps.rename(session.disk.node, self.image, below)

    def follow_headers(self) -> None:
        """Do nothing: what definitions name stays."""

    def standing(self) -> list[Standing]:
        """Return what each image of the chain stands on in QEMU, the active layer first.

        :raise ImageError: if a header cannot be read.
        """
        self._fresh()
        return standing(self.session.graph, self.session.disk.node, self.image)

    def compare(
        self, changes: Sequence[Change], *, content: bool = False, progress: Callable[[int], None] | None = None
    ) -> None:
        """Read the disk as it will be through a storage daemon of our own, and compare it with what it reads now.

        Parameters as :meth:`chainlift.lift.disk.Disk.compare`.

        :raise AnswerIsNo: naming the first byte that differs; nothing was switched.
        :raise QemuError: if the new side cannot be opened or read.
        """
        if self.qemu is not None:
            for change in changes:
                compare_stock(self.qemu, change.owner, change.readable, change.new, content=content, progress=progress)

    def set_aside(self) -> AbstractContextManager[None]:
        """Do nothing: a switch copies nothing."""
        return nullcontext()

    def switch(self, changes: Sequence[Change], *, rate_bytes_per_s: int | None = None) -> None:  # noqa: ARG002 - copies nothing
        """Switch every pointer; all of them or none.

        Under an index QEMU has no layers open, but the index itself: an image there is switched when those above have
        been, and the chain is open again. libvirt starts no domain on an index: its active layer's header goes on
        naming the chain.

        :raise OperationError: if one could not be switched; all are as before.
        :raise UnknownStateError: if it is not known what is left.
        """
        if not changes:
            raise InputError("there is nothing to switch", path=self.image)
        done: list[list[Change]] = []
        waiting = list(changes)
        try:
            while waiting:
                images = [image.image for image in self.standing()]
                there = [change for change in waiting if any(is_same_file(change.owner, image) for image in images)]
                self._switch(there or waiting)
                done.append(there)
                waiting = [change for change in waiting if change not in there]
        except UnknownStateError:
            raise
        except BaseException as error:
            self._undo(done, error)
            raise

    def _switch(self, changes: Sequence[Change]) -> None:
        persist = not (self.session.is_libvirts and any(_is_index(c) for c in changes if self._is_active(c.owner)))
        # Whatever happens, the graph may be another one then. It is looked at when somebody wants to know: a look at
        # new nodes stops QEMU's main loop.
        self._is_stale = True
        pivot = switch_live(self.session, changes, persist=persist, after=self.after)
        self.timings.commands += pivot.timings.commands
        self.left += pivot.left

    def _undo(self, done: Sequence[Sequence[Change]], cause: BaseException) -> None:
        for changes in reversed(done):
            try:
                self._fresh()
                self._switch([Change(change.owner, change.new, change.old) for change in changes])
            except ChainliftError as error:
                raise UnknownStateError(
                    f"{cause}; what was switched before could not be undone ({error.what})",
                    path=self.image,
                    hint="the disk reads the same bytes; chainlift restore takes out the lifts that are left",
                ) from cause

    def _fresh(self) -> None:
        if self._is_stale:
            self.session.refresh()
            self._is_stale = False
        guard.refuse_changed(self.session.graph, self.session.disk)

    def has_switched(self, changes: Sequence[Change]) -> bool:
        """Whether any of the new sides may be in use, in a header or in QEMU; yes where that cannot be told."""
        return has_switched(self.session, changes)

    def superseded(self) -> list[Path]:
        """Nothing but lifts is made for the disk."""
        return []

    @contextmanager
    def left_alone(self) -> Iterator[list[str]]:
        """Mark the disk before the switch: who watches it may look at any time."""
        directory, warnings = state_directory(), list[str]()
        before = read_mark(self.image, directory)
        vm = ask_vm(self.session.monitor, self.session.process)
        try:
            write_mark(self.image, Mark(is_paused=True, at_s=time.time(), why="restored", vm=vm.identity), directory)
        except OSError as error:
            warnings.append(
                f"{self.image}: chainlift watch cannot be told to leave it alone ({error.strerror}); "
                "chainlift watch pause does so for the whole VM"
            )
        try:
            yield warnings
        except UnknownStateError:
            raise
        except BaseException:
            with suppress(OSError):
                write_mark(self.image, before, directory)
            raise

    def lifted_again(self) -> None:
        """Take back that the disk is to be left alone, where that was said of it or of a layer under it."""
        directory, session = state_directory(), self.session
        # The graph is of before the switch: it has the layers that may be marked.
        with suppress(ChainliftError, OSError):
            found = nearest_mark(session.graph, session.disk.node, ask_vm(session.monitor, session.process), directory)
            if found is not None and found[0].is_paused:
                write_mark(self.image, replace(found[0], is_paused=False, at_s=time.time()), directory)

    def _is_active(self, owner: Path) -> bool:
        return is_same_file(owner, self.image)


def has_switched(session: LiveSession, changes: Sequence[Change]) -> bool:
    """Whether any of the new sides may be in use, in a header or in QEMU; yes where that cannot be told."""
    try:
        if any(_names_new(change) for change in changes):
            return True
        if session.process.is_gone:
            return False
        session.refresh()
        graph = session.graph
        if session.disk.node not in graph.names:
            return False
        if any(_names_in(graph, overlay, change) for overlay in _overlays(session) for change in changes):
            return True
        for name, below in pairwise(graph.backing_chain(session.disk.node)):
            file, opened = graph.protocol_file(name), graph.protocol_file(below)
            if file is None or opened is None:
                return True
            for change in changes:
                is_owner = is_same_file(Path(file), change.owner)
                if is_owner and leads_to(change.owner, change.new, Path(opened), is_index=graph.is_index(below)):
                    return True
    except (ChainliftError, OSError):
        return True
    return False


def _overlays(session: LiveSession) -> list[str]:
    """Return the nodes that snapshots have put over what was the active node."""
    graph = session.graph
    return [name for name in graph.backing_chain(graph.top(session.disk.node)) if name not in
            graph.backing_chain(session.disk.node) and graph.nodes[name].driver == "qcow2"]  # fmt: skip


def _names_in(graph: BlockGraph, overlay: str, change: Change) -> bool:
    """Whether an overlay's header has the file in a nested name: QEMU writes one during a switch."""
    file = graph.protocol_file(overlay)
    pointer = None if file is None else read_pointer(Path(file))[1]
    return pointer is not None and refer(change.owner, change.new).path in pointer.name


def _names_new(change: Change) -> bool:
    """Whether the owner's header leads to where it is to stand."""
    now = read_pointer(change.owner)[1]
    if now is None or now.name == change.new.name:
        return now is not None
    new, other = refer(change.owner, change.new), refer(change.owner, now)
    return new.is_descriptor == other.is_descriptor and is_same_file(Path(new.path), Path(other.path))


def _is_index(change: Change) -> bool:
    return refer(change.owner, change.new).is_descriptor


def refuse_other_chain(session: LiveSession) -> None:
    """Refuse if the chain in QEMU is not the one that the headers on disk describe.

    Where QEMU stands on an index that the header does not name, the index is taken: under libvirt no header names one,
    a stream reads through one for a while, and a restore that was killed has named the chain already.

    :raise ImageError: naming the first layer that differs.
    """
    graph = session.graph
    nodes = graph.backing_chain(session.disk.node)

    def lift_of(depth: int, image: Path) -> Pointer | None:
        del image
        below = nodes[depth + 1] if depth + 1 < len(nodes) else None
        if below is None or not graph.is_index(below):
            return None
        descriptor = graph.protocol_file(below)
        return None if descriptor is None else Pointer(name=backing_name(Path(descriptor)), format="qcow2")

    layers = layers_under(session.image, read_pointer(session.image)[1], lift_of)
    chain = [(session.image, "qcow2"), *((layer.path, layer.format) for layer in layers)]
    guard.refuse_other_chain(graph, session.disk.node, chain, session.process)
