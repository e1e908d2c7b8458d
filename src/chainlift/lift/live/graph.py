"""QEMU's block nodes as a graph: who has whom as a child, which file a node has open.

``x-debug-query-block-graph`` (since 4.0, the same up to 11.1) is the only command that tells every edge, those of
block jobs and devices included; ``query-named-block-nodes`` tells what a node is. Both are read one after the other: a
change in between shows as an edge to a node that is not described, and the reading is repeated.

The two differ in what they cost. The edges of a chain of 300 take some 10 ms. Descriptions take 200 to 350 ms, in which
QEMU's main loop does nothing else: for every node ``bdrv_refresh_filename()`` (block.c) goes down all that is below it,
so that the time grows with the square of the length, ``flat`` or not. So descriptions are asked for as rarely as can
be, see :mod:`chainlift.lift.live.describe`, and :func:`query_edges` does without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import QemuError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from chainlift.lift.live.qmp import Qmp

#: Drivers that pass their ``file`` child through (``.is_filter``); what is under one is still the same disk.
FILTERS: Final = frozenset(
    {"throttle", "copy-on-read", "compress", "preallocate", "blkdebug", "blklogwrites", "replication"}
)
#: Drivers of local files and devices.
_LOCAL: Final = ("file", "host_device")
_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Node:
    """One block node."""

    name: str
    driver: str
    #: Of a protocol node, as QEMU would name it again: a path, or ``json:{...}``. Of others it may be empty.
    filename: str
    read_only: bool
    #: ``cache.direct`` and ``cache.no-flush``.
    direct: bool
    no_flush: bool
    detect_zeroes: str
    encrypted: bool

    @property
    def is_named(self) -> bool:
        """See :func:`is_named`."""
        return is_named(self.name)

    @property
    def is_filter(self) -> bool:
        """Whether it only passes requests through."""
        return self.driver in FILTERS


@dataclass(frozen=True)
class User:
    """Something other than a node that has a node as its child: a device, an export, a block job."""

    #: ``block-backend`` or ``block-job``.
    kind: str
    #: A device's name or QOM path, a job's id; empty for an export.
    name: str


@dataclass(frozen=True)
class Edge:
    """A parent's hold on a node."""

    parent: str | User
    #: ``file``, ``backing``, ``root``, ``extents.0`` ...
    role: str
    child: str
    #: Whether the parent has the right to write to it.
    writes: bool = False


class BlockGraph:
    """All nodes of one QEMU at one time."""

    def __init__(
        self,
        names: frozenset[str],
        edges: list[Edge],
        directory: Path = Path(),
        nodes: Mapping[str, Node] | None = None,
    ) -> None:
        #: Of all nodes.
        self.names = names
        #: What is known of them; empty where only edges were asked for.
        self.nodes: Mapping[str, Node] = nodes or {}
        self.directory = directory
        self._edges = edges
        self._down: dict[str, dict[str, str]] = {}
        self._up: dict[str, list[Edge]] = {}
        for edge in edges:
            self._up.setdefault(edge.child, []).append(edge)
            if isinstance(edge.parent, str):
                self._down.setdefault(edge.parent, {})[edge.role] = edge.child

    def described(self, nodes: Mapping[str, Node]) -> BlockGraph:
        """Return the same graph with these descriptions."""
        return BlockGraph(self.names, self._edges, self.directory, nodes)

    def is_written(self, node: str) -> bool:
        """Whether a parent of the node may write to it."""
        return any(edge.writes for edge in self.parents(node))

    def child(self, node: str, role: str) -> str | None:
        """Return the name of the node's child of this role."""
        return self._down.get(node, {}).get(role)

    def children(self, node: str) -> Mapping[str, str]:
        """Return the node's children: role -> name."""
        return self._down.get(node, {})

    def parents(self, node: str) -> list[Edge]:
        """Return who has the node as a child."""
        return self._up.get(node, [])

    def users(self) -> Iterator[tuple[User, str]]:
        """Yield every device, export and job with the node that it has as its child."""
        for edges in self._up.values():
            for edge in edges:
                if isinstance(edge.parent, User):
                    yield edge.parent, edge.child

    def through_filters(self, node: str) -> str:
        """Follow ``file`` down through filter nodes to the first node that is none."""
        while self.nodes[node].is_filter and (below := self.child(node, "file")):
            node = below
        return node

    def backing_chain(self, node: str) -> list[str]:
        """Return the node and all that are under it as backing nodes, top first."""
        chain = [node]
        while below := self.child(chain[-1], "backing"):
            chain.append(below)
        return chain

    def root(self, node: str) -> str:
        """Return the topmost node over this one: itself, or the last filter above it."""
        while above := [
            edge.parent for edge in self.parents(node) if isinstance(edge.parent, str) and edge.role == "file"
        ]:
            node = above[0]
        return node

    def top(self, node: str) -> str:
        """Return the topmost node over this one, snapshots included: what ``change-backing-file`` calls the root."""
        seen = {node}
        while above := [
            edge.parent
            for edge in self.parents(node)
            if isinstance(edge.parent, str) and edge.role in ("file", "backing") and edge.parent not in seen
        ]:
            # A snapshot's overlay has the users; a node that only looks at this one (fleecing) has none.
            node = next((name for name in above if self._is_used(name)), above[0])
            seen.add(node)
        return node

    def _is_used(self, node: str) -> bool:
        return any(isinstance(edge.parent, User) for above in self.above(node) for edge in self.parents(above))

    def above(self, node: str) -> list[str]:
        """Return the node and every node that reaches it, each once."""
        return _reached(node, lambda name: (e.parent for e in self.parents(name) if isinstance(e.parent, str)))

    def is_active(self, node: str, root: str) -> bool:
        """Whether a disk still begins with these nodes: nobody has put anything over them.

        A node that stands on it beside the device (a throttle filter, an old way of backups) is not over the disk.

        :param node: the active layer's.
        :param root: the last filter over it, or itself.
        """
        if not {node, root} <= self.names:
            return False
        below: str | None = root
        while below not in (node, None):
            below = self.child(str(below), "file")
        edges = self.parents(root)
        is_used = any(isinstance(edge.parent, User) and edge.parent.kind == "block-backend" for edge in edges)
        return below == node and (is_used or not edges)

    def jobs(self, nodes: Iterable[str]) -> list[str]:
        """Return the block jobs that work on any of these nodes."""
        wanted = set(nodes)
        return [user.name or "(unnamed)" for user, node in self.users() if user.kind == "block-job" and node in wanted]

    def writes_to(self, parent: str, child: str) -> bool:
        """Whether this parent may write to this child."""
        return any(edge.writes for edge in self.parents(child) if edge.parent == parent)

    def subtree(self, node: str) -> list[str]:
        """Return the node and everything below it, each once, parents first."""
        return _reached(node, lambda name: self._down.get(name, {}).values())

    def layer_nodes(self, node: str) -> list[str]:
        """Return the node and what is below it except its backing chain: one layer's nodes, parents first."""
        below = [child for role, child in self.children(node).items() if role != "backing"]
        return [node, *(name for child in below for name in self.subtree(child))]

    def is_index(self, node: str) -> bool:
        """Whether the node reads its metadata and data through a VMDK descriptor: an index."""
        file = self.child(node, "file")
        return file is not None and self.nodes[node].driver == "qcow2" and self.nodes[file].driver == "vmdk"

    def protocol_file(self, node: str) -> str | None:
        """Return the path of the file under a node, absolute as far as we know, or None where it is no local file."""
        while below := self.child(node, "file"):
            node = below
        described = self.nodes[node]
        if described.driver not in _LOCAL:
            return None
        return str(self.directory / local_filename(described.filename))

    def format_of(self, node: str) -> str:
        """Return the format as which a layer is read: raw where nothing lies between it and its file.

        So does libvirt 11.3 without saying so, and 9.0 has a node of the driver ``raw`` there.
        """
        driver = self.nodes[node].driver
        return "raw" if driver in _LOCAL else driver


def _reached(node: str, step: Callable[[str], Iterable[str]]) -> list[str]:
    """Return a node and all that is reached from it step by step, each once."""
    found: dict[str, None] = {}
    waiting = [node]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = None
            waiting.extend(step(name))
    return list(found)


def local_filename(filename: str) -> str:
    """Return the path in a name of QEMU's file driver: plain, ``file:...`` or ``json:{...}``."""
    if filename.startswith("json:"):
        options = json.loads(filename[5:])
        return str(options.get("filename", ""))
    return filename.removeprefix("file:")


def is_named(node: str) -> bool:
    """Whether somebody named it: such a node stays until ``blockdev-del``; others go with their last parent."""
    return not node.startswith("#block")


def query_edges(monitor: Qmp, directory: Path = Path()) -> BlockGraph:
    """Ask QEMU for its nodes' names and edges only, which does not keep it from its work for long.

    :param directory: QEMU's working directory, which relative file names are relative to.
    :raise QemuError: if it cannot tell.
    """
    raw = monitor.execute("x-debug-query-block-graph")
    kinds = {item["id"]: item for item in raw["nodes"]}
    names = frozenset(item["name"] for item in raw["nodes"] if item["type"] == "block-driver")
    return BlockGraph(names, [_edge(edge, kinds) for edge in raw["edges"]], directory)


def query_graph(monitor: Qmp, directory: Path = Path()) -> BlockGraph:
    """Ask QEMU for its nodes, what they are, and its edges.

    :param directory: QEMU's working directory, which relative file names are relative to.
    :raise QemuError: if it cannot tell, or its graph changes faster than it can be read.
    """
    for _ in range(_ATTEMPTS):
        nodes = {node.name: node for node in map(_node, monitor.execute("query-named-block-nodes", flat=True))}
        graph = query_edges(monitor, directory)
        if graph.names == nodes.keys():
            return graph.described(nodes)
    raise QemuError("its block nodes change all the time", hint="wait until snapshots and jobs are done")


def _edge(edge: Mapping[str, Any], kinds: Mapping[int, Mapping[str, Any]]) -> Edge:
    parent = kinds[edge["parent"]]
    holder = parent["name"] if parent["type"] == "block-driver" else User(parent["type"], parent["name"])
    return Edge(holder, edge["name"], kinds[edge["child"]]["name"], "write" in edge["perm"])


def _node(item: Mapping[str, Any]) -> Node:
    details = item["image"].get("format-specific", {}).get("data", {})
    return Node(
        name=item["node-name"],
        driver=item["drv"],
        filename=item["file"],
        read_only=item["ro"],
        direct=item["cache"]["direct"],
        no_flush=item["cache"]["no-flush"],
        detect_zeroes=item["detect_zeroes"],
        encrypted=bool(item.get("encrypted")) or "encrypt" in details,
    )
