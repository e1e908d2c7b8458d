"""Closing an old chain under a running disk, gently: a few layers at a time, and QEMU serves requests in between.

To free 300 layers at once stops QEMU's main loop for 0.05 s (7.2) to 0.9 s (11.1). Each step drains all nodes there
are, which costs the more the longer the chain still is; so a step frees as many layers as fit into :data:`_STEP_S`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from chainlift.lift.live.graph import is_named

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.steps import Steps

#: For so long a step may keep QEMU busy before the next one takes fewer layers.
_STEP_S: Final = 0.015
_MOST_LAYERS: Final = 16


def closing(steps: Steps, old: str, *, bit_by_bit: bool) -> Iterator[None]:
    """Close a chain that only the hold keeps open, a step at a time; layers that somebody else needs stay.

    :param old: the chain's top node, which the hold is over.
    :param bit_by_bit: False where a reopen must not free a node: QEMU before 9.0 with an iothread dies of it. All of
        the chain then goes with the ``blockdev-del`` of the hold (0.06 s on 7.2).
    :return: yields after each step, when QEMU has had its time for others. The empty node is left.
    :raise QemuError: if a step fails; what is left is in QEMU's graph.
    """
    active = steps.active
    graph = steps.query_edges()
    chain = deque(graph.backing_chain(old))
    gone = {active.hold}
    count = 1
    while bit_by_bit and chain:
        named: list[str] = []
        taken = 0
        while chain and taken < count and _is_only_held_by(graph, chain[0], gone):
            named += _let_go(graph, chain.popleft(), gone)
            taken += 1
        if not taken:
            break  # another disk, a job or an export needs it, and with it all that is below
        first = len(steps.timings.commands)
        steps.move_hold(chain[0] if chain else active.hold_null)
        for node in named:
            steps.delete_named(node)
        took = sum(seconds for _, seconds in steps.timings.commands[first:])
        if took > _STEP_S:
            count = max(1, count // 2)
        elif took < _STEP_S / 2:
            count = min(2 * count, _MOST_LAYERS)
        steps.breathe(first)
        yield
    if bit_by_bit and chain:
        # Somebody needs what is left. Deleted over a chain that an iothread reads, the hold makes 10.0 wait for ever.
        steps.move_hold(active.hold_null)
    steps.delete(active.hold)
    for layer in chain:
        for node in _let_go(graph, layer, gone):
            steps.delete_named(node)


def _let_go(graph: BlockGraph, top: str, gone: set[str]) -> list[str]:
    """Note that the nodes of a layer are gone, as far as nobody else uses them; return those that have names.

    The others go by themselves when nothing stands on them.
    """
    named = []
    for node in graph.layer_nodes(top):
        if _is_only_held_by(graph, node, gone):
            gone.add(node)
            if is_named(node):
                named.append(node)
    return named


def _is_only_held_by(graph: BlockGraph, node: str, gone: set[str]) -> bool:
    return all(edge.parent in gone for edge in graph.parents(node))
