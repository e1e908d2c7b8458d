"""A difference of two snapshots as an image: just what differs, over the older one, and read as the newer."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.chain import Kind
from chainlift.chain.names import format_reference
from chainlift.errors import ImageError
from chainlift.lift.build.files import ClusterFiles
from chainlift.lift.build.free_space import measure_rewrite, require_room
from chainlift.lift.build.merge import Fragments, LayersBelow, Merger
from chainlift.lift.build.rewrite import rewrite
from chainlift.lift.build.workspace import failed
from chainlift.lift.destination import FileDestination, find_destination
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import MAX_BACKING_NAME
from chainlift.qcow2.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from chainlift.chain import Chain, Layer, Window
    from chainlift.lift.build.copying import Copied
    from chainlift.lift.compare.ranges import Range
    from chainlift.lift.diff import Difference

#: Clusters of an exported difference are not smaller: tables would be larger than they are worth.
_MIN_CLUSTER: Final = 4096


@dataclass(frozen=True)
class ExportedDifference:
    """An image that holds a difference."""

    #: Ranges that are in it, each made of whole clusters of the image.
    ranges: int
    #: Bytes of them.
    range_bytes: int
    #: Size of the file.
    file_bytes: int
    #: How the data came into it.
    copied: Copied


def export_difference(
    difference: Difference,
    ranges: Iterable[Range],
    out: str | os.PathLike[str],
    *,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> ExportedDifference:
    """Write what the newer snapshot has in some ranges as an image over the older one, which then reads as the newer.

    >>> with open_difference("layer1.qcow2", "disk.qcow2", export=True) as difference:
    ...     done = export_difference(difference, difference.ranges(), "since-1.qcow2")
    >>> done.ranges, done.range_bytes
    (3, 458752)

    :param difference: opened with ``export``.
    :param ranges: all in which the two differ.
    :param out: a name that is free; the file appears whole, or not at all, with the owner and mode of the newer.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :return: what was written. Its backing file is the older snapshot.
    :raise ImageError: if the name is taken, or a layer cannot be read; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    out = Path(out)
    chain = difference.new
    for layer in chain.layers:
        if layer.image is not None:
            layer.image.require_plain()
    sources = ClusterFiles(chain)
    size = max(_MIN_CLUSTER, chain.layers[0].cluster_size or chain.granularity)
    spans = _whole_clusters(ranges, size, chain.virtual_size)
    backing = _named(difference.old.layers[0], out)
    merger = _Chosen(chain, sources, size, spans)
    with find_destination(out, chain, sources, overwrite=False) as destination:
        assert isinstance(destination, FileDestination)
        needed = measure_rewrite(merger, sources, size)
        require_room(destination.path.absolute().parent, needed.copied_bytes + needed.table_bytes)
        try:
            with (
                destination.open() as descriptor,
                ImageWriter(
                    out,
                    descriptor=descriptor,
                    virtual_size=chain.virtual_size,
                    cluster_size=size,
                    backing_file=os.fsencode(backing.name),
                    backing_format=backing.format,
                ) as writer,
            ):
                done = rewrite(
                    merger,
                    sources,
                    difference.descriptors,
                    writer,
                    virtual_size=chain.virtual_size,
                    rate_bytes_per_s=rate_bytes_per_s,
                    progress=progress,
                )
                file_bytes = writer.finish(sync=True)
        except FileExistsError as error:
            raise ImageError("exists", path=out, hint="choose another name or remove it") from error
        except OSError as error:
            raise failed(error, out) from error
    return ExportedDifference(len(spans), int((spans[:, 1] - spans[:, 0]).sum()), file_bytes, done.copied)


def _whole_clusters(ranges: Iterable[Range], size: int, end: int) -> NDArray[np.int64]:
    """Return where ranges begin and end when they are made of whole clusters; shape (ranges, 2)."""
    edges = array("q")
    for found in ranges:
        first, last = found.start // size * size, min(-(-(found.start + found.length) // size) * size, end)
        if edges and first <= edges[-1]:
            edges[-1] = last
        else:
            edges.extend((first, last))
    return np.array(edges, dtype=np.int64).reshape(-1, 2)


def _named(layer: Layer, out: Path) -> Pointer:
    """Return how the exported image names the older snapshot: relative where both are in one directory."""
    file_format = "raw" if layer.image is None else "qcow2"
    path = os.path.abspath(layer.path)  # noqa: PTH100 - links in the name stay, as for QEMU
    name = format_reference(replace(layer.reference, path=path, format=file_format))
    directory = f"{out.absolute().parent}/"
    if name.startswith(directory) and "/" not in name.removeprefix(directory):
        name = format_reference(replace(layer.reference, path=name.removeprefix(directory), format=file_format))
    if len(os.fsencode(name)) > MAX_BACKING_NAME:
        raise ImageError(f"its name in a header would have more than {MAX_BACKING_NAME} bytes", path=layer.path)
    return Pointer(name=name, format=file_format)


class _Chosen(Merger):
    """Of a chain, what lies in some spans of the disk; all else is left to the layer below.

    :param spans: where they begin and end, in bytes, in ascending order; made of whole clusters.
    """

    def __init__(self, chain: Chain, sources: ClusterFiles, cluster_size: int, spans: NDArray[np.int64]) -> None:
        # No layer of the chain is below, but what lies outside the spans is made to look as if it were.
        super().__init__(chain, sources, cluster_size, below=LayersBelow(len(chain.layers), 0), sparse=True)
        self._edges = spans.ravel()
        self._below_layer = len(chain.layers)

    def _windows(self) -> Iterator[tuple[Window, Fragments]]:
        for window, found in super()._windows():
            parts = _cut(found, self._edges)
            outside = self._edges.searchsorted(parts.start, side="right") % 2 == 0
            layer = np.where(outside, np.int32(self._below_layer), parts.layer)
            yield window, replace(parts, layer=layer)


def _cut(parts: Fragments, edges: NDArray[np.int64]) -> Fragments:
    """Cut consecutive fragments at some guest offsets."""
    starts = parts.starts_with(edges)
    if starts is parts.start:
        return parts
    cut, moved = parts.cut_into(starts, parts.end)
    return replace(
        cut,
        host_offset=cut.host_offset + np.where(cut.kind == Kind.DATA, moved, 0),
        skip=cut.skip + np.where(cut.kind == Kind.COMPRESSED, moved, 0),
    )
