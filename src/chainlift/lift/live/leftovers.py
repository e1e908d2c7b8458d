"""Nodes of ours in a QEMU that nobody needs: of disks that are gone, after a run that was killed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.lift.live.closing import closing
from chainlift.lift.live.graph import query_edges
from chainlift.lift.live.steps import NODE_PREFIX, PAUSE_S, ActiveNode, Steps, node_prefix
from chainlift.lift.record.pointer import named_in

if TYPE_CHECKING:
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp

#: ``chainlift-`` and eight digits for the image, then the node's own part.
_OURS: Final = re.compile(rf"{NODE_PREFIX}[0-9a-f]{{8}}-(?:hold|null|cover\d+|\d+(?:-\d+)?)")


def is_ours(name: str) -> bool:
    """Whether a node has a name that we give."""
    return _OURS.fullmatch(name) is not None


def prefix_of(name: str) -> str:
    """Return how the names of all nodes of the same image begin."""
    return name[: len(NODE_PREFIX) + 8]


def list_left(graph: BlockGraph) -> list[str]:
    """Return the nodes of ours that no device, export or job needs, whoever has left them."""
    needed: set[str] = set()
    for _, node in graph.users():
        needed.update(graph.subtree(node))
    return sorted(name for name in graph.names if is_ours(name) and name not in needed)


def free_gone(monitor: Qmp, graph: BlockGraph, version: tuple[int, int, int]) -> bool:
    """Remove nodes of ours that belong to disks which this QEMU has no more, and free what only they keep open.

    What belongs to an image of a disk that is there is the next session's of that disk: a run may be at work there.

    :param graph: with descriptions.
    :return: whether there was anything.
    :raise QemuError: if QEMU refuses.
    """
    left = set(map(prefix_of, list_left(graph)))
    if not left:
        return False
    there: set[str] = set()
    for _, root in graph.users():
        for node in graph.subtree(root):
            file = graph.protocol_file(node)
            if file is not None:
                there.add(node_prefix(Path(file)))
    gone = sorted(left - there)
    for prefix in gone:
        _free(monitor, graph, prefix, version)
    return bool(gone)


def _free(monitor: Qmp, graph: BlockGraph, prefix: str, version: tuple[int, int, int]) -> None:
    # Nobody reads these nodes any more: whether an iothread did is not told.
    nobody = ActiveNode(
        name="", root="", image=Path(), options={}, direct=False, no_flush=False, iothread=None, prefix=prefix,
        directory=graph.directory,
    )  # fmt: skip
    steps = Steps(
        monitor, nobody, read_pointer=named_in, pause_s=PAUSE_S, frees_in_reopen=facts.LOCKLESS.holds(version)
    )
    held = query_edges(monitor).child(nobody.hold, "file")
    if held is not None and held != nobody.hold_null:
        for _ in closing(steps, held, bit_by_bit=steps.frees_in_reopen):
            pass
    steps.remove_ours()
