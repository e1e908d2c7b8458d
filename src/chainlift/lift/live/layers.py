"""What an image stands on, told twice: by the headers on disk, and by QEMU's graph."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.chain.names import parse_name
from chainlift.errors import ChainliftError, ImageError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.disk import Standing
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import backing_name, read_pointer
from chainlift.lift.target import layer_format, open_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from chainlift.chain.names import Reference
    from chainlift.lift.live.graph import BlockGraph

_LONGEST: Final = 10_000


@dataclass(frozen=True)
class DiskLayer:
    """A layer as the names on disk lead to it."""

    #: Its file; of an index, its descriptor.
    path: Path
    format: str
    #: How QEMU opens it by itself.
    options: Mapping[str, Any]
    #: Whether the header above it has just the name that QEMU would give it. If not, and the node is opened by itself,
    #: QEMU takes it for overridden and names every node over it ``json:`` with all of the chain inside: at 300 layers
    #: that costs minutes at every query (``bdrv_backing_overridden()`` in block.c).
    is_named_so: bool = False


def refer(image: Path, pointer: Pointer) -> Reference:
    """Return what a backing file name means in the header of this image."""
    return parse_name(pointer.name, named_in=str(image), file_format=pointer.format)


def layers_under(
    image: Path, pointer: Pointer | None, lift_of: Callable[[int, Path], Pointer | None] | None = None
) -> list[DiskLayer]:
    """Return everything under an image as the names on disk say, top first; an index counts as one, and is the last.

    No more than one file is open at a time: a chain may have more layers than a process may have files.

    :param pointer: what to begin with: the image's backing file, now or before.
    :param lift_of: says of a layer's depth and path whether it stands on a lift that its header does not name.
    :raise ImageError: if a header cannot be read, or the chain is a loop.
    """
    layers: list[DiskLayer] = []
    reference = _step(image, pointer, 0, lift_of)
    while reference is not None:
        path = Path(reference.path)
        try:
            file_format = layer_format(reference)
        except OSError as error:
            raise ImageError(f"cannot be opened: {error.strerror}", path=path) from error
        named_so = reference.follows_header and not reference.is_descriptor and pointer is not None
        named_so = named_so and pointer is not None and pointer.name == reference.path
        layers.append(DiskLayer(path, file_format, open_options(reference), named_so))
        if len(layers) > _LONGEST:
            raise ImageError(f"has more than {_LONGEST} layers under it", path=image)
        if reference.is_descriptor or file_format != "qcow2":
            break
        if not reference.follows_header:
            reference, pointer = reference.backing, None
            continue
        pointer = read_pointer(path)[1]
        reference = _step(path, pointer, len(layers), lift_of)
    return layers


def _step(
    image: Path, pointer: Pointer | None, depth: int, lift_of: Callable[[int, Path], Pointer | None] | None
) -> Reference | None:
    if pointer is None:
        return None
    other = None if lift_of is None else lift_of(depth, image)
    return refer(image, other or pointer)


def follows_headers(graph: BlockGraph, node: str, image: Path) -> bool:
    """Whether the nodes from this one down are just the files that the headers lead to, from this image on.

    :param graph: with descriptions.
    :param node: the uppermost of them.
    :param image: whose file that is.
    """
    try:
        layers = layers_under(image, read_pointer(image)[1])
    except (ChainliftError, OSError):
        return False
    files = [graph.protocol_file(name) for name in graph.backing_chain(node)]
    return len(files) == len(layers) and all(
        file is not None and is_same_file(Path(file), layer.path) for file, layer in zip(files, layers, strict=True)
    )


def standing(graph: BlockGraph, top: str, image: Path) -> list[Standing]:
    """Return what each image of a chain stands on in QEMU's graph, the active layer first.

    Where the image's header leads to the same file, its own words are told; else (a lift that libvirt is not told of,
    a verb that was killed) a name for what QEMU has. An index stands on nothing, and is in the list as what the last
    image stands on only.

    :param top: the active layer's node.
    :param image: its file.
    :raise ImageError: if a header cannot be read.
    """
    found = []
    nodes = graph.backing_chain(top)
    path: Path | None = image
    for node, below in zip_longest(nodes, nodes[1:]):
        if path is None or graph.is_index(node):
            break
        if below is None:
            found.append(Standing(path, None))
            break
        file = graph.protocol_file(below)
        if file is None:
            raise ImageError(f"stands on node {below}, which is no local file", path=path)
        found.append(Standing(path, _pointer(graph, path, node, below, Path(file))))
        path = Path(file)
    return found


def _pointer(graph: BlockGraph, image: Path, node: str, below: str, file: Path) -> Pointer:
    named = read_pointer(image)[1] if graph.nodes[node].driver == "qcow2" else None
    if named is not None and leads_to(image, named, file, is_index=graph.is_index(below)):
        return named
    if graph.is_index(below):
        return Pointer(name=backing_name(file), format="qcow2")
    return Pointer(name=str(file), format=graph.format_of(below))


def leads_to(image: Path, pointer: Pointer, file: Path, *, is_index: bool) -> bool:
    """Whether a backing file name leads to this file: of an index, to its descriptor.

    :param image: whose header has the name.
    :param pointer: the name.
    :param file: what it may lead to.
    :param is_index: whether that is an index's descriptor.
    """
    try:
        reference = refer(image, pointer)
    except ChainliftError:
        return False
    return reference.is_descriptor == is_index and is_same_file(Path(reference.path), file)
