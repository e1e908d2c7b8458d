"""Index, squash and restore under a running VM: what a lift is at rest, with a pivot as its switch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.chain.names import parse_name
from chainlift.chain.opening import probe_format
from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.build.descriptor import backing_name, index_descriptor
from chainlift.lift.build.workspace import Workspace, lift_directory
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.lifting import prepare_index
from chainlift.lift.live import guard
from chainlift.lift.live.pivot import State
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.source import find_source, read_pointer
from chainlift.lift.restore import original_pointer, refuse_if_used
from chainlift.lift.target import Target, backing_target
from chainlift.lift.tidy import remove_unused

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from chainlift.lift.lifting import Prepared
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.session import LiveSession
    from chainlift.lift.live.steps import Timings
    from chainlift.lift.record.manifest import Manifest
    from chainlift.qemu.binary import Qemu

#: A chain that is longer is opened layer by layer: 300 in one command stop the main loop for 0.2 to 0.6 s.
_FEW_LAYERS: Final = 32
_LONGEST: Final = 10_000
#: From here on every change of the graph polls all nodes there are (``bdrv_drain_all_begin()`` in block.c).
_POLLS_ALL: Final = (10, 1, 0)
#: So many extents of an index keep QEMU's main loop for less than 0.1 s when they are added or closed, from this
#: version on: one costs 0.2 ms on 7.2, 0.4 ms on 10.0.
_GENTLE_EXTENTS: Final = (((9, 0, 0), 192), ((0, 0, 0), 384))
#: Where all nodes are polled, what counts is extents times layers: this many take 0.2 s.
_GENTLE_PAIRS: Final = 10_000
_FEWEST_EXTENTS: Final = 8
#: How much may be copied to have no more than those.
_GENTLE_COPY_BYTES: Final = 1 << 30


def prepare_live_index(
    session: LiveSession, *, copy_budget_bytes: int | None = None, progress: Callable[[int], None] | None = None
) -> AbstractContextManager[Prepared]:
    """Return the building of an index of a running disk's chain, not entered yet.

    :param copy_budget_bytes: None copies the smallest layers, up to 1 GiB, as far as it takes to have few extents.
    """
    if copy_budget_bytes is not None:
        return prepare_index(session.image, copy_budget_bytes=copy_budget_bytes, progress=progress)
    if session.version >= _POLLS_ALL:
        layers = len(session.graph.backing_chain(session.disk.node))
        most = max(_FEWEST_EXTENTS, _GENTLE_PAIRS // layers)
    else:
        most = next(most for first, most in _GENTLE_EXTENTS if session.version >= first)
    return prepare_index(session.image, copy_budget_bytes=_GENTLE_COPY_BYTES, most_extents=most, progress=progress)


@dataclass(frozen=True)
class LiveResult:
    """What a live verb did."""

    manifest: Manifest
    timings: Timings
    #: Nodes that were to go and could not.
    left: list[str]


def lift_live(
    session: LiveSession,
    prepare: AbstractContextManager[Prepared],
    *,
    qemu: Qemu | None,
    content: bool = False,
    progress: Callable[[int], None] | None = None,
    after: Callable[[State], None] | None = None,
) -> LiveResult:
    """Build a lift beside a running disk and switch the disk to it.

    :param prepare: of :mod:`chainlift.lift.lifting`, not entered yet.
    :param qemu: whose storage daemon reads a sample of the lift to compare it; None compares nothing.
    :param content: compare all of it.
    :param progress: called with the bytes compared so far.
    :raise InputError: if the disk must not be switched.
    :raise AnswerIsNo: if what was compared differs; nothing was switched.
    :raise QemuError: if a step failed; everything is as before.
    """
    refuse_other_chain(session)
    with prepare as prepared:
        pivot = session.pivot(after=after)
        try:
            target = backing_target(session.image, prepared.manifest.lifted.name, prepared.manifest.lifted.format)
            if qemu is not None:
                made = prepared.manifest
                compare_stock(qemu, session.image, made.original, made.lifted, content=content, progress=progress)
            # Building may have taken minutes: what was allowed before must still be.
            session.refresh()
            session.check()
            refuse_other_chain(session)
            pivot.run(target, persist=not (session.is_libvirts and prepared.manifest.kind == "index"))
        except ChainliftError:
            if pivot.state is State.START:
                # The first error is the one to tell.
                with suppress(OSError, ChainliftError):
                    prepared.discard()
            raise
        prepared.settle()
        return LiveResult(prepared.manifest, pivot.timings, pivot.left)


def restore_live(
    session: LiveSession, *, clean: bool = False, after: Callable[[State], None] | None = None
) -> LiveResult:
    """Switch a running disk back to the chain that it had before it was lifted.

    :param clean: also remove the lift's files.
    :raise ImageError: if the image is not lifted, or a layer is not there any more, or (with ``clean``) another image
        stands on the lift; nothing was touched.
    :raise QemuError: if a step failed; everything is as before.
    """
    image = session.image
    source = find_source(image)
    manifest = source.manifest
    # Not `is_lifted`: a run killed before its switch has left a newer manifest than the lift that is in use.
    backing = session.graph.child(session.disk.node, "backing")
    is_used = source.current.name != source.original.name or _opened_lift(session.graph, backing, image) is not None
    if manifest is None or not is_used:
        raise ImageError("is not lifted", path=image, hint="there is nothing to restore")
    if clean:
        refuse_if_used(image, manifest)
    refuse_other_chain(session)
    pointer = original_pointer(manifest)
    layers = layers_under(image, pointer)
    for layer in layers:
        if not layer.path.exists():
            raise ImageError("is gone", path=layer.path, hint="the chain cannot be restored without it")
    target = backing_target(image, pointer.name, pointer.format)
    one_by_one = len(layers) > _FEW_LAYERS and all(layer.is_named_so for layer in layers)
    if one_by_one:
        target = Target(target.pointer, layers[0].options, tuple(layer.options for layer in layers[1:]))
    with Workspace(image).hold() as workspace:
        pivot = session.pivot(after=after)
        pivot.run(target, name_layers=one_by_one)
        if clean:
            remove_unused(workspace, manifest, keep=[])
    return LiveResult(manifest, pivot.timings, pivot.left)


@dataclass(frozen=True)
class DiskLayer:
    """A layer as the headers on disk name it."""

    #: Its file; of an index, its descriptor.
    path: Path
    format: str
    #: How QEMU opens it by itself.
    options: Mapping[str, Any]
    #: Whether the header above it has just the name that QEMU would give it. If not, and the node is opened by itself,
    #: QEMU takes it for overridden and names every node over it ``json:`` with all of the chain inside: at 300 layers
    #: that costs minutes at every query (``bdrv_backing_overridden()`` in block.c).
    is_named_so: bool = False


def _opened_lift(graph: BlockGraph, node: str | None, image: Path) -> Path | None:
    """Return the file of a lift of this image that QEMU has open in a node, whatever the image's header names."""
    opened = None if node is None else graph.protocol_file(node)
    return Path(opened) if opened is not None and Path(opened).parent == lift_directory(image) else None


def layers_under(
    image: Path, pointer: Pointer | None, lift_of: Callable[[int, Path], Pointer | None] | None = None
) -> list[DiskLayer]:
    """Return everything under an image as the headers say, top first; an index counts as one, and is the last.

    :param pointer: what to begin with: the image's backing file, now or before.
    :param lift_of: says of a layer's depth and path whether it stands on a lift that its header does not name.
    :raise ImageError: if a header cannot be read, or the chain is a loop.
    """
    layers: list[DiskLayer] = []
    path = image
    while pointer is not None:
        if lift_of is not None:
            pointer = lift_of(len(layers), path) or pointer
        descriptor = index_descriptor(pointer.name)
        if descriptor is not None:
            layers.append(DiskLayer(descriptor, "qcow2", backing_target(path, pointer.name, "qcow2").options))
            break
        reference = parse_name(pointer.name, named_in=str(path), file_format=pointer.format)
        path = Path(reference.path)
        layer_format = reference.format or _probe(path)
        driver = "host_device" if path.is_block_device() else "file"
        file = {"driver": driver, "read-only": True, "filename": str(path)}
        options = {"driver": layer_format, "read-only": True, "file": file}
        layers.append(DiskLayer(path, layer_format, options, str(path) == pointer.name))
        if len(layers) > _LONGEST:
            raise ImageError(f"has more than {_LONGEST} layers under it", path=image)
        pointer = read_pointer(path)[1] if layer_format == "qcow2" else None
    return layers


def refuse_other_chain(session: LiveSession) -> None:
    """Refuse if the chain in QEMU is not the one that the headers on disk describe.

    :raise ImageError: naming the first layer that differs.
    """
    graph = session.graph
    nodes = graph.backing_chain(session.disk.node)

    # Under libvirt no header names an index, and a stream that was killed leaves one that none names.
    def lift_of(depth: int, path: Path) -> Pointer | None:
        opened = _opened_lift(graph, nodes[depth + 1] if depth + 1 < len(nodes) else None, path)
        return Pointer(name=backing_name(opened), format="qcow2") if opened and opened.suffix == ".vmdk" else None

    layers = layers_under(session.image, read_pointer(session.image)[1], lift_of)
    chain = [(session.image, "qcow2"), *((layer.path, layer.format) for layer in layers)]
    guard.refuse_other_chain(graph, session.disk.node, chain, session.peer)


def _probe(path: Path) -> str:
    with path.open("rb") as file:
        return probe_format(file.read(4096))


def be_gentle() -> None:
    """Let others go first, on the processor and on the disk: what we build beside a VM is in no hurry."""
    with suppress(OSError):
        os.nice(10)
    with suppress(OSError, AttributeError):
        _idle_io()


def _idle_io() -> None:
    import ctypes
    import platform

    number = {"x86_64": 251, "aarch64": 30}[platform.machine()]  # ioprio_set(2), which glibc does not wrap
    ioprio_who_process, ioprio_class_idle = 1, 3 << 13
    ctypes.CDLL(None, use_errno=True).syscall(number, ioprio_who_process, 0, ioprio_class_idle)
