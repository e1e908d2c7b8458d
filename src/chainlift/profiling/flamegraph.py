"""Flame graphs: a profile as one SVG file that needs nothing else, with its script in it.

The root is at the top, because stacks of long chains are deep. Recursion is folded
(:mod:`chainlift.profiling.recursion`) until the reader asks for the plain stacks. Without scripts, as an image, it
shows the folded stacks.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass, field
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import TYPE_CHECKING

from chainlift.profiling.recursion import Frame, find_cycles, fold_recursion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from chainlift.profiling.stacks import Stacks

WIDTH, ROW, TOP = 1200, 17, 102
#: Frames in one view at most: what is left out is narrower than anything that is kept.
MOST_FRAMES = 2000
#: Pixels below which a frame is not in the image that is seen without scripts.
_NARROWEST = 2.0
_CHARACTER = 6.7
_ROOT = "all"


@dataclass
class Node:
    """A frame of a flame graph: the samples of all stacks that begin with the path from the root to here.

    :ivar turns: sum over samples of the turns of a folded recursion; 0 for a plain frame.
    :ivar before: the same frame's samples in the profile that this one is compared with.
    """

    name: str
    samples: int = 0
    self_samples: int = 0
    turns: int = 0
    most_turns: int = 0
    before: int = 0
    children: dict[str, Node] = field(default_factory=dict)

    def child(self, name: str) -> Node:
        """Return the child of this name, made where it is missing."""
        if name not in self.children:
            self.children[name] = Node(name)
        return self.children[name]

    def walk(self) -> Iterator[Node]:
        """Yield the node and all below it, depth first, children by name."""
        left = [self]
        while left:
            node = left.pop()
            yield node
            left += [node.children[name] for name in sorted(node.children, reverse=True)]


def build_tree(counts: Mapping[tuple[Frame, ...], int], before: Mapping[tuple[Frame, ...], int] | None = None) -> Node:
    """Return the tree of stacks; where a profile to compare with is given, its samples are in :attr:`Node.before`."""
    root = Node(_ROOT)
    for stack, count in counts.items():
        root.samples += count
        node = root
        for frame in stack:
            node = node.child(frame.label)
            node.samples += count
            node.turns += frame.turns * count
            node.most_turns = max(node.most_turns, frame.turns)
        node.self_samples += count
    for stack, count in (before or {}).items():
        root.before += count
        node = root
        for frame in stack:
            if frame.label not in node.children:
                break  # what only the other profile has, has no width here
            node = node.children[frame.label]
            node.before += count
    return root


def flame_graph(stacks: Stacks, title: str, subtitle: str = "", *, before: Stacks | None = None) -> str:
    """Draw a flame graph.

    :param before: a profile to compare with: width is ``stacks``' share, red has grown and blue shrunk.
    :return: an SVG file's text.
    """
    cycles = find_cycles([stacks] if before is None else [stacks, before])
    folded = build_tree(
        fold_recursion(stacks, cycles).counts, None if before is None else fold_recursion(before, cycles).counts
    )
    plain = build_tree(_plain(stacks), None if before is None else _plain(before))
    names: dict[str, int] = {}
    left_out = {view: _prune(tree, MOST_FRAMES) for view, tree in (("folded", folded), ("plain", plain))}
    data = {
        "row": ROW,
        "top": TOP,
        "before": 0 if before is None else before.total,
        "views": {"folded": _pack(folded, names), "plain": _pack(plain, names)},
        "names": list(names),
    }
    if left_out["plain"]:
        subtitle += f"{'; ' if subtitle else ''}plain stacks without frames of {left_out['plain']} samples or fewer"
    rows = list(_static(folded))
    height = TOP + (1 + max((row[0] for row in rows), default=0)) * ROW + 8
    return _SVG.format(
        width=WIDTH,
        height=height,
        css=_asset("css"),
        title=escape(title),
        subtitle=escape(subtitle),
        frames="".join(row[1] for row in rows),
        data=escape(json.dumps(data, separators=(",", ":"), ensure_ascii=False), quote=False),
        script=_asset("js"),
        details_y=TOP - 14,
        help="Click or press Enter to zoom, Escape to reset, / to search, arrows to move",
    )


def _plain(stacks: Stacks) -> dict[tuple[Frame, ...], int]:
    return {tuple(Frame((name,)) for name in stack): count for stack, count in stacks.counts.items()}


def _prune(root: Node, most: int) -> int:
    """Keep the ``most`` frames with the most samples; return the samples of the widest that went, 0 if none did."""
    kept: set[int] = set()
    widest_left = 0
    queue = [(-root.samples, 0, root)]
    ties = 1
    while queue:
        samples, _, node = heapq.heappop(queue)
        if len(kept) >= most:
            widest_left = -samples
            break
        kept.add(id(node))
        for name in sorted(node.children):
            heapq.heappush(queue, (-node.children[name].samples, ties, node.children[name]))
            ties += 1
    for node in root.walk():
        node.children = {name: child for name, child in node.children.items() if id(child) in kept}
    return widest_left


def _pack(root: Node, names: dict[str, int]) -> dict[str, Sequence[float]]:
    """Return the columns of a view, depth first; all but the names as value, count, value, count ..."""
    nodes = list(root.walk())
    return {
        "names": [names.setdefault(node.name, len(names)) for node in nodes],
        "samples": _runs(node.samples for node in nodes),
        "self": _runs(node.self_samples for node in nodes),
        "children": _runs(len(node.children) for node in nodes),
        "turns": _runs(round(node.turns / node.samples, 1) if node.turns else 0 for node in nodes),
        "most": _runs(node.most_turns for node in nodes),
        "before": _runs(node.before for node in nodes),
    }


def _runs(values: Iterable[float]) -> list[float]:
    return [part for value, group in groupby(values) for part in (value, sum(1 for _ in group))]


def _static(root: Node) -> Iterable[tuple[int, str]]:
    """Yield depth and SVG of each frame of the folded view at full width that is wide enough to be seen in an image."""
    left = [(root, 0, 0.0, float(WIDTH))]
    while left:
        node, depth, x, width = left.pop()
        y = TOP + depth * ROW
        room = int((width - 5) / _CHARACTER)
        name = node.name if len(node.name) <= room else node.name[: room - 1] + "\u2026"
        text = f'<text x="{x + 3:.0f}" y="{y + ROW - 5}">{escape(name)}</text>' if room >= 3 else ""
        yield (
            depth,
            f'<path fill="{_colour(node)}" d="M{x:.1f} {y}h{width - 0.4:.1f}v{ROW - 1}h-{width - 0.4:.1f}z"/>{text}',
        )
        at = x
        for name in sorted(node.children):
            child = node.children[name]
            part = width * child.samples / node.samples
            if part >= _NARROWEST:
                left.append((child, depth + 1, at, part))
            at += part


def _colour(node: Node) -> str:
    if node.turns:
        return "#c9a3dd"
    if node.name.startswith("["):
        return "#c0c4cc"
    return "#9cc5d9" if node.name.endswith("_[k]") else "#f5a96b"


@cache
def _asset(kind: str) -> str:
    return files("chainlift.profiling").joinpath(f"flamegraph.{kind}").read_text(encoding="utf-8")


_SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" class="flamegraph" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="group" aria-label="Flame graph: {title}">
<style>{css}</style>
<rect class="ground" width="100%" height="{height}" fill="#fff"/>
<text class="heading" x="8" y="20">{title}</text>
<text class="subtitle" x="8" y="37">{subtitle}</text>
<text class="details" x="8" y="{details_y}">{help}</text>
<g class="frames">{frames}</g>
<metadata>{data}</metadata>
<script><![CDATA[
{script}]]></script>
</svg>
"""
