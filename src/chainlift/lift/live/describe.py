"""What QEMU's nodes are, told from outside: from its command line, the headers on disk and the files it has open.

Asking QEMU takes its main loop a time that grows with the square of the chain's length (see
:mod:`chainlift.lift.live.graph`): 0.2 to 0.35 s at 300 layers, several seconds at 1,000, and whatever the main loop
serves stands still. But a node that was named on the command line was described there, one that QEMU opened by itself
below it is what the header above it says, and neither can change unseen: QEMU's edges must fit at every node, and it
must have each file open. Where anything does not fit or is not known, QEMU is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.chain.names import parse_name
from chainlift.errors import ChainliftError
from chainlift.lift.live.graph import BlockGraph, Node, is_named, query_edges, query_graph
from chainlift.lift.record.pointer import read_pointer
from chainlift.qcow2.layout import CryptMethod

if TYPE_CHECKING:
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.seen_process import SeenProcess

_PROTOCOLS: Final = ("file", "host_device")
_OVER_A_FILE: Final = ("qcow2", "raw", "throttle", "copy-on-read")


def read_graph(monitor: Qmp, process: SeenProcess, known: Mapping[str, Node] | None = None) -> BlockGraph:
    """Read QEMU's graph, asking it for descriptions only if there is no other way.

    :param known: descriptions from an earlier look at the same QEMU: names of nodes are never used again.
    :raise QemuError: if it cannot tell.
    """
    graph = query_edges(monitor, process.directory)
    if known is not None and graph.names <= known.keys():
        return graph.described(known)
    nodes = describe(graph, process)
    return query_graph(monitor, process.directory) if nodes is None else graph.described(nodes)


def describe(graph: BlockGraph, process: SeenProcess) -> Mapping[str, Node] | None:
    """Return what all nodes of a graph are, or None where that cannot be told for certain from outside."""
    try:
        return _describe(graph, process)
    except (_UnknownError, ChainliftError, OSError, KeyError):
        return None


class _UnknownError(Exception):
    """Something is not as it would be if nobody had changed it."""


def _describe(graph: BlockGraph, process: SeenProcess) -> Mapping[str, Node]:
    nodes: dict[str, Node] = {}
    waiting: list[tuple[str, Mapping[str, Any], Mapping[str, bool]]] = [
        (str(options["node-name"]), options, {})
        for options in process.named_nodes()
        if options["node-name"] in graph.names
    ]
    while waiting:
        name, options, inherited = waiting.pop()
        driver = options["driver"]
        cache = {**inherited, **{key: value in (True, "on") for key, value in options.get("cache", {}).items()}}
        children = dict(graph.children(name))
        if driver in _PROTOCOLS:
            path = process.directory / options["filename"]
            if children or not process.has_open(path):
                raise _UnknownError
            encrypted = False
        elif driver in _OVER_A_FILE:
            file = children.pop("file")
            options_of_file = options["file"]
            if isinstance(options_of_file, Mapping):
                waiting.append((_same_name(file, options_of_file), options_of_file, cache))
            elif options_of_file != file:
                raise _UnknownError
            encrypted = False
            if driver == "qcow2":
                header_file = _header_file(options_of_file, process)
                encrypted = read_pointer(header_file)[0].crypt_method is not CryptMethod.NONE
                below = _backing(children.pop("backing", None), options, header_file)
                if below is not None:
                    waiting.append((*below, cache))
            if children:
                raise _UnknownError  # a data file, or something that QEMU has put there since
        else:
            raise _UnknownError
        nodes[name] = Node(
            name=name,
            driver=driver,
            filename=str(path) if driver in _PROTOCOLS else "",
            read_only=not any(graph.is_written(child) for child in graph.children(name).values()),
            direct=cache.get("direct", False),
            no_flush=cache.get("no-flush", False),
            detect_zeroes=options.get("detect-zeroes", "off"),
            encrypted=encrypted or "encrypt" in options,
        )
    if nodes.keys() != graph.names:
        raise _UnknownError
    return nodes


def _same_name(name: str, options: Mapping[str, Any]) -> str:
    """Return a child's name if it is the one in its options, or QEMU's own where they have none."""
    if options["node-name"] != name if "node-name" in options else is_named(name):
        raise _UnknownError
    return name


def _header_file(options: object, process: SeenProcess) -> Path:
    """Return the file whose header a qcow2 node reads."""
    if isinstance(options, str):
        named = [node for node in process.named_nodes() if node["node-name"] == options]
        options = named[0] if named else {}
    if not isinstance(options, Mapping) or options.get("driver") not in _PROTOCOLS:
        raise _UnknownError  # a filter, or a raw node with an offset
    return process.directory / str(options["filename"])


def _backing(name: str | None, options: Mapping[str, Any], header_file: Path) -> tuple[str, Mapping[str, Any]] | None:
    """Return name and options of the node below, or None where there is none or its own options describe it."""
    if "backing" in options:
        given = options["backing"]
        if isinstance(given, Mapping) and name is not None:
            return _same_name(name, given), given
        if given != name:
            raise _UnknownError
        return None
    pointer = read_pointer(header_file)[1]
    if (pointer is None) != (name is None):
        raise _UnknownError
    if pointer is None or name is None:
        return None
    if is_named(name) or pointer.format is None or pointer.name.startswith("json:"):
        raise _UnknownError
    path = Path(parse_name(pointer.name, named_in=str(header_file), file_format=pointer.format).path)
    file = {"driver": "host_device" if path.is_block_device() else "file", "filename": str(path)}
    return name, {"driver": pointer.format, "file": file}
