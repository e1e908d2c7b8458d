"""What a run that was killed has left in a QEMU: it is finished or undone, whichever the images' headers say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.host.filesystem import is_same_file
from chainlift.lift.live.closing import closing
from chainlift.lift.live.layers import follows_headers
from chainlift.lift.target import pointed_file

if TYPE_CHECKING:
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.steps import Steps


def recover(steps: Steps) -> bool:
    """Finish or undo what a killed run has left of this node's pivot.

    :return: whether anything was left.
    :raise QemuError: if that does not work; what is left is in QEMU's graph.
    """
    return _Recovery(steps).run()


def name_plainly(steps: Steps) -> None:
    """Give an overlay a plain name that was put over the active layer while that stood on a new chain.

    QEMU has written that chain into its header, as a nested ``json:`` name; see :mod:`chainlift.lift.live.naming`.

    :raise QemuError: if QEMU refuses.
    """
    active = steps.active
    graph = steps.query_edges()
    edges = [*graph.parents(active.name), *graph.parents(active.root)]
    overlays = {edge.parent for edge in edges if edge.role == "backing" and isinstance(edge.parent, str)}
    if not overlays:
        return
    graph = steps.query_graph()
    for overlay in overlays:
        file = graph.protocol_file(overlay)
        if file is None or graph.nodes[overlay].driver != "qcow2":
            continue
        pointer = steps.read_pointer(Path(file))
        if pointer is not None and pointer.startswith("json:"):
            steps.rename(overlay, Path(file), str(active.image))


class _Recovery:
    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._active = steps.active

    def run(self) -> bool:
        active = self._active
        graph = self._steps.query_edges()
        if not any(name in graph.names for name in (active.hold, active.hold_null)):
            stray = bool(self._steps.ours())
            self._steps.remove_ours()
            return stray
        held, backing = graph.child(active.hold, "file"), graph.child(active.name, "backing")
        if held is None or held in (active.hold_null, backing):
            self._name_what_is_read()
        elif self._is_to_be_undone(held, backing):
            # The cover is there: what is let go is not freed yet.
            self._steps.reopen(held)
            self._name_what_is_read()
            name_plainly(self._steps)
        else:
            # The headers name what the disk reads through, or nothing; or layers of the old chain are closed already,
            # and the hold is further down and no way back.
            old = self._hold_again(graph, held)
            for _ in closing(self._steps, old, bit_by_bit=self._steps.frees_in_reopen):
                pass
        self._steps.remove_ours()
        left = self._steps.query_edges().names
        for name in (active.hold, active.hold_null):
            if name in left:
                self._steps.delete(name)  # somebody stands on it: QEMU's words are the ones to tell
        return True

    def _is_to_be_undone(self, held: str, backing: str | None) -> bool:
        """Whether the headers still name the chain that is held, and not the one that the disk reads through."""
        image = self._active.image
        named = pointed_file(image, self._steps.read_pointer(image))
        graph = self._steps.query_graph()
        if named is None or not _opens(graph, held, named):
            return False
        return backing is None or not follows_headers(graph, backing, image)

    def _name_what_is_read(self) -> None:
        """Undo what a killed run has done to headers in the middle: each names what QEMU reads again.

        But for an index: everybody knows that a header need not name it.
        """
        self._steps.remove_ours(keep={self._active.hold, self._active.hold_null})
        graph = self._steps.query_graph()
        chain = graph.backing_chain(self._active.name)
        for node, below in pairwise(chain[1:]):
            image, file = graph.protocol_file(node), graph.protocol_file(below)
            if image is None or file is None or graph.is_index(below) or graph.nodes[node].driver != "qcow2":
                continue
            named = pointed_file(Path(image), self._steps.read_pointer(Path(image)))
            if named is not None and not is_same_file(named, Path(file)):
                self._steps.rename(node, Path(image), file)

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
