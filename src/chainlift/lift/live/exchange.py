"""The exchange of a running disk's backing node: what each transition of a pivot does, and how it is undone.

Which comes after which is said by the table in :mod:`chainlift.lift.live.pivot`; nothing here knows how far a pivot has
come. Others may be at QEMU's other monitors: a snapshot is taken, a job begins, the disk is unplugged. So the graph's
edges are read right before every command that depends on them, and again after it: between the reading and the reopen
somebody may have put an overlay over the node, which is then open for writing under it. What there is to undo is read
from QEMU and from the headers, too, not remembered, and is undone to what is there by then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import ChainliftError, QemuError
from chainlift.lift.live.recover import name_plainly
from chainlift.lift.target import node_options

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.steps import Steps
    from chainlift.lift.target import Target

#: So long one command may take that adds layers, before the next one adds fewer.
_STEP_S: Final = 0.06
#: Of that time, how much QEMU has for others before the next.
_PAUSE: Final = 0.1
#: Of layers in one command. libvirt's parser of JSON (json-c) takes 32 levels.
_MOST_LAYERS: Final = 16


@dataclass(frozen=True)
class Rename:
    """A header in the middle of the chain that is to name another backing file."""

    #: The node that has the image open now.
    node: str
    image: Path
    name: str


class Exchange:
    """One exchange of a backing node.

    :param target: what the disk is to stand on.
    :param persist: whether its name will be written into the image's header.
    :param renames: of headers under the active layer, lowest first.
    :param name_layers: open each layer of the target's backing chain by its own options, a few in each command, and
        what is under the last one as its header says.
    :raise QemuError: if others have changed the disk already.
    """

    def __init__(
        self,
        steps: Steps,
        target: Target,
        *,
        persist: bool = True,
        renames: Sequence[Rename] = (),
        name_layers: bool = False,
    ) -> None:
        self._steps = steps
        self._active = active = steps.active
        self._target = target
        self._below = tuple(renames)
        self._name_layers = name_layers
        #: As it was read last.
        self._graph = steps.query_edges()
        self._taken = self._graph.names
        #: The node that the disk stands on before.
        self.old = self._graph.child(active.name, "backing")
        #: The new one.
        self._new: str | None = None
        self._refuse_changed(self._graph)
        #: What the headers are changed to: of each image its node, the name that it had, and its new one.
        self._renames: dict[Path, tuple[str, str | None, str]] = {}
        if persist:
            self._renames[active.image] = (active.name, steps.read_pointer(active.image), target.pointer)
        for rename in renames:
            self._renames[rename.image] = (rename.node, steps.read_pointer(rename.image), rename.name)

    # -- each transition, and its undo ---------------------------------------------------------------------------

    def hold(self) -> None:
        """Put a ``raw`` node, the hold, over the old backing node, which then stays open whatever happens."""
        active = self._active
        if self.old is not None:
            graph = self._steps.query_edges()
            self._steps.add_empty(graph)
            raw = {"driver": "raw", "node-name": active.hold, "read-only": True}
            self._steps.execute("blockdev-add", {**raw, "file": active.hold_null})
            if active.iothread is not None:
                arguments = {"node-name": active.hold, "iothread": active.iothread}
                self._steps.execute("x-blockdev-set-iothread", arguments)
            self._refuse_changed(graph)
            self._steps.move_hold(self.old)

    def let_go(self) -> None:
        """Move the hold onto the empty node; delete both."""
        graph = self._steps.query_edges()
        if self._active.name in graph.names and not graph.is_active(self._active.name, self._active.root):
            name_plainly(self._steps)
        self._steps.remove_ours()

    def rename(self) -> None:
        """Write the names of the new backing files into headers in the middle of the chain."""
        for rename in self._below:
            self._steps.rename(rename.node, rename.image, rename.name)

    def rename_back(self) -> None:
        """Write the names that those headers had. By now no other node has the images open, which would prevent it."""
        self._write_old_names(self._renames.keys() - {self._active.image})

    def add(self) -> None:
        """Add the new nodes under a ``raw`` node, the cover."""
        # From the bottom up: as many layers in a command as QEMU opens without a stop.
        layers = [self._target.options, *self._target.below] if self._name_layers else [self._target.options]
        waiting = deque(reversed(layers))
        number = previous = 0
        most = 4
        below: str | None = None
        while waiting:
            number = next(n for n in range(number + 1, 1 << 30) if not self._taken & self._pair(n))
            layer, count = _nest(waiting, below, most)
            name, cover = f"{self._active.prefix}-{number}", self._active.cover(number)
            self._steps.execute("blockdev-add", self._covered(layer, name, cover))
            took = self._steps.timings.commands[-1][1]
            self._steps.breathe(share=_PAUSE)
            if below is not None:
                self._steps.delete(self._active.cover(previous))
            below, previous = name, number
            if took > _STEP_S:
                most = max(1, count // 2)
            elif took < _STEP_S / 2:
                most = min(2 * most, _MOST_LAYERS)
        self._new = below

    def remove(self) -> None:
        """Move the cover onto the empty node and delete it; the new nodes go with it."""
        self._steps.remove_ours(keep={self._active.hold, self._active.hold_null})

    def reopen(self) -> None:
        """Reopen the active node on the new node, with **all** its options: what is not given goes to its default."""
        assert self._new is not None
        self._steps.sync(self._active.image)
        self._refuse_changed(self._steps.query_edges())
        self._steps.reopen(self._new)
        self._graph = self._steps.query_edges()
        self._refuse_changed(self._graph, backing=self._new)

    def reopen_old(self) -> None:
        """Reopen it on the old node, which is still open; read-only, if there is an overlay over it by now."""
        active = self._active
        graph = self._steps.query_edges()
        backing = graph.child(active.name, "backing")
        file = graph.child(active.name, "file")
        is_ours = backing is not None and backing == self._new
        is_open = file is not None and graph.writes_to(active.name, file)
        is_active = graph.is_active(active.name, active.root)
        if is_ours or (is_open and not is_active and not graph.jobs(graph.above(active.name))):
            self._steps.reopen(self.old if is_ours else backing, read_only=not is_active)
            if is_active and not self._steps.query_edges().is_active(active.name, active.root):
                self.reopen_old()  # somebody was quicker again

    def persist(self) -> None:
        """Write the name of the new node into the image's header."""
        active = self._active
        self._steps.rename(active.name, active.image, self._target.pointer, self._graph)
        # An overlay that came before has a nested name in its header, see chainlift.lift.live.naming. A disk that was
        # unplugged since is switched: its header says so.
        graph = self._steps.query_edges()
        if active.name in graph.names:
            self._refuse_changed(graph, backing=self._new)

    def persist_old(self) -> None:
        """Write the name that it had."""
        self._write_old_names({self._active.image})

    # -- what is there -------------------------------------------------------------------------------------------

    def check_undone(self) -> QemuError | None:
        """Look whether everything is as before.

        :return: what others have done meanwhile, if anything.
        :raise QemuError: if something of ours is left.
        """
        if named := [image for image in self._renames if self._is_new(image)]:
            raise QemuError("it is not this QEMU's any more, and its header names the new file", path=named[0])
        graph = self._steps.query_edges()
        if self._new is not None and self._new in graph.names:
            raise QemuError("QEMU still has the new node", path=self._active.image)
        return self._changed(graph, self.old)

    def describe_headers(self) -> list[str]:
        """Say of each header that was to be changed what it names now."""
        known = []
        for image, (_, before, _) in self._renames.items():
            try:
                names = "what it did" if self._steps.read_pointer(image) == before else "the new backing file"
            except (ChainliftError, OSError):
                names = "nobody knows what: it cannot be read"
            known.append(f"the header of {image.name} names {names}")
        return known

    def _refuse_changed(self, graph: BlockGraph, *, backing: str | None = None) -> None:
        changed = self._changed(graph, self.old if backing is None else backing)
        if changed is not None:
            raise changed

    def _changed(self, graph: BlockGraph, backing: str | None) -> QemuError | None:
        """Return what others have done to the disk, where it does not stand on ``backing`` as it should.

        :return: an error that says so.
        """
        active = self._active
        if active.name not in graph.names:
            return QemuError(
                "the disk was unplugged meanwhile", path=active.image, hint="it is not this QEMU's any more"
            )
        top = graph.top(active.name)
        if jobs := graph.jobs({*graph.subtree(top), *graph.above(active.name)}):
            return QemuError(
                f"the block job {jobs[0]} began on the disk meanwhile",
                path=active.image,
                hint="run it again when the job is done",
            )
        if not graph.is_active(active.name, active.root):
            return QemuError(
                f"the disk got another active layer meanwhile (node {top})", path=active.image, hint="run it again"
            )
        if graph.child(active.name, "backing") != backing:
            return QemuError("the disk got another backing file meanwhile", path=active.image, hint="run it again")
        return None

    def _write_old_names(self, images: Iterable[Path]) -> None:
        for image in images:
            if image in self._renames:
                node, before, _ = self._renames[image]
                if before is not None and self._is_new(image):
                    self._steps.rename(node, image, before)

    def _is_new(self, image: Path) -> bool:
        """Whether a header has been changed by us, and by nobody since."""
        _, before, name = self._renames[image]
        return name != before and self._steps.read_pointer(image) == name

    def _pair(self, number: int) -> set[str]:
        return {f"{self._active.prefix}-{number}", self._active.cover(number)}

    def _covered(self, layer: Mapping[str, Any], name: str, cover: str) -> dict[str, Any]:
        active = self._active
        raw = {"driver": "raw", "read-only": True, "file": {**layer, "node-name": name}}
        return node_options(raw, cover, direct=active.direct, no_flush=active.no_flush)


def _nest(waiting: deque[Mapping[str, Any]], below: str | None, most: int) -> tuple[Mapping[str, Any], int]:
    """Take up to so many layers, from the bottom up; return the uppermost with the others inside, and their number.

    Options inside those of a node above replace the name in its header only where they have a ``filename`` right in
    their ``file`` (``bdrv_open_backing_file()`` in block.c); others are mixed with it, and need a node of their own.
    """
    layer = waiting.popleft()
    if below is not None:
        layer = {**layer, "backing": below}
    count = 1
    while waiting and count < most and "filename" in layer["file"]:
        layer = {**waiting.popleft(), "backing": layer}
        count += 1
    return layer, count
