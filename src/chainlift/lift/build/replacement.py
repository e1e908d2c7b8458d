"""A kept layer written anew, with all that is seen through it of the layers below it that go.

The new file says of every cluster what the kept layer and those layers say together, and stands on the next layer that
is kept. Whoever opens it under the kept layer's name reads what he read before.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from chainlift.chain import Chain
from chainlift.chain.names import format_reference, parse_name, plain_name
from chainlift.errors import ImageError, OperationError
from chainlift.lift.build.files import ClusterFiles
from chainlift.lift.build.free_space import RewriteSize, measure_rewrite
from chainlift.lift.build.merge import LayersBelow, Merger
from chainlift.lift.build.rewrite import rewrite
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import MAX_BACKING_NAME
from chainlift.qcow2.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from chainlift.chain import Layer
    from chainlift.lift.build.copying import Copied

#: Smaller clusters are not worth their tables, and may have no room for a header.
_MIN_CLUSTER: Final = 4096


@dataclass(frozen=True)
class Merge:
    """Layers of a chain that go, and the one above them that takes over what is seen of them.

    :param into: number of the layer that is kept; those from the next one on go.
    :param onto: number of the next layer that is kept.
    """

    into: int
    onto: int

    @property
    def going(self) -> range:
        """The numbers of the layers that go."""
        return range(self.into + 1, self.onto)


def merge_cluster_size(chain: Chain, merge: Merge) -> int:
    """Return the cluster size of the new file, in bytes: the kept layer's own, 4 KiB at least."""
    size = chain.layers[merge.into].cluster_size
    assert size is not None
    return max(size, _MIN_CLUSTER)


def is_apart(chain: Chain, merge: Merge) -> bool:
    """Whether no cluster of the new file has to be put together with what lies below the layers that go."""
    size = merge_cluster_size(chain, merge)
    layers = chain.layers[merge.into : merge.onto]
    return all((layer.unit_size or size) >= size and layer.virtual_size % size == 0 for layer in layers)


def merged_part(chain: Chain, merge: Merge) -> Chain:
    """Return the part of a chain that decides what the new file has; its files stay the chain's to close."""
    # Where nothing below has a say, hundreds of layers need not be looked at.
    return Chain(chain.layers[merge.into : merge.onto if is_apart(chain, merge) else None])


def measure_merge(chain: Chain, merge: Merge) -> RewriteSize:
    """Tell what the new file takes.

    :raise ImageError: if a table is malformed.
    """
    merger, sources = _merger(chain, merge)
    image = chain.layers[merge.into].image
    assert image is not None
    size = merge_cluster_size(chain, merge)
    return measure_rewrite(merger, sources, size, compression=image.header.compression_type)


def most_merged_bytes(chain: Chain, merge: Merge) -> int | None:
    """Return how large the new file can be at most, without reading a table; None where that takes reading them."""
    layers = chain.layers[merge.into : merge.onto]
    kinds = {(layer.cluster_size, layer.image and layer.image.header.compression_type) for layer in layers}
    # Compressed clusters stay as they are then, and no cluster is put together.
    if len(kinds) > 1 or not is_apart(chain, merge) or merge_cluster_size(chain, merge) != layers[0].cluster_size:
        return None
    stored = sum(layer.data_file.size for layer in layers)
    # An entry in a table, or two, and a refcount for each cluster, and tables that are hardly used.
    return stored + stored // merge_cluster_size(chain, merge) * 32 + 16 * merge_cluster_size(chain, merge)


def build_replacement(
    chain: Chain,
    merge: Merge,
    descriptors: Mapping[str, int],
    temporary: Path,
    descriptor: int,
    *,
    progress: Callable[[int], None] | None = None,
) -> Copied:
    """Write the new file; it is on stable storage when this returns.

    :param descriptors: an open file descriptor for each file of the chain, by the name that the chain has for it.
    :param temporary: its name, for errors.
    :param descriptor: of the empty file.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if a layer is malformed, or its name does not fit into the header.
    """
    merger, sources = _merger(chain, merge)
    layer = chain.layers[merge.into]
    assert layer.image is not None
    header = layer.image.header
    backing = name_below(chain, merge)
    with ImageWriter(
        temporary,
        descriptor=descriptor,
        virtual_size=layer.virtual_size,
        cluster_size=merge_cluster_size(chain, merge),
        refcount_order=header.refcount_order,
        extended_l2=header.extended_l2,
        compatible=header.compatible_features,
        compression="zlib" if header.compression_type.name == "ZLIB" else "zstd",
        backing_file=backing.name,
        backing_format=backing.format,
    ) as writer:
        done = rewrite(merger, sources, dict(descriptors), writer, virtual_size=layer.virtual_size, progress=progress)
        writer.finish(sync=True)
    _require_leads_to(chain, merge, backing)
    return done.copied


def _merger(chain: Chain, merge: Merge) -> tuple[Merger, ClusterFiles]:
    part = merged_part(chain, merge)
    sources = ClusterFiles(part)
    going = chain.layers[merge.into : merge.onto]
    below = LayersBelow(len(going), min(layer.virtual_size for layer in going))
    return Merger(part, sources, merge_cluster_size(chain, merge), below=below), sources


def name_below(chain: Chain, merge: Merge) -> Pointer:
    """Return how the new file names the layer that it stands on.

    Names that are relative stay relative: joined as QEMU joins them on its way down, they mean from any directory and
    through any link what they meant on the way through the layers that go.

    :raise ImageError: if no header has room for it.
    """
    layer = chain.layers[merge.onto]
    file_format = "raw" if layer.image is None else "qcow2"
    name = _joined(chain, merge)
    if name is None:
        path = os.path.abspath(layer.path)  # noqa: PTH100 - links in the name stay
        name = format_reference(replace(layer.reference, path=path, format=file_format))
    if len(os.fsencode(name)) > MAX_BACKING_NAME:
        raise ImageError(
            f"its name in a header would have more than {MAX_BACKING_NAME} bytes", path=layer.path, hint="keep it"
        )
    return Pointer(name=name, format=file_format)


def _joined(chain: Chain, merge: Merge) -> str | None:
    """Return the names on the way down as one, None where they are no plain paths."""
    name = ""
    for layer in chain.layers[merge.into : merge.onto]:
        below = layer.backing_name
        if below is None or not layer.reference.follows_header or ":" in below.split("/", maxsplit=1)[0]:
            return None
        name = os.path.join(os.path.dirname(name), below)  # noqa: PTH118, PTH120 - textually, as QEMU does
    return plain_name(_shortened(chain.layers[merge.into], chain.layers[merge.onto], name))


def _shortened(above: Layer, below: Layer, name: str) -> str:
    """Return ``b`` for ``a/../b`` where that leads to the same file from where the layer lies."""
    short = os.path.normpath(name)
    if short == name:
        return name
    directory = os.path.dirname(above.path)  # noqa: PTH120
    if os.path.realpath(directory) != os.path.dirname(os.path.realpath(above.path)):  # noqa: PTH120 - a link to it
        return name
    try:
        same = os.path.samefile(os.path.join(directory, short), below.path)  # noqa: PTH118, PTH121
    except OSError:
        return name
    return short if same else name


def _require_leads_to(chain: Chain, merge: Merge, pointer: Pointer) -> None:
    """Refuse a name that does not lead to the layer that is meant, from where the kept one lies."""
    above, below = chain.layers[merge.into], chain.layers[merge.onto]
    found = parse_name(pointer.name, named_in=above.path, file_format=pointer.format)
    if not os.path.samefile(found.path, below.path):  # noqa: PTH121
        raise OperationError(f"would stand on {found.path} and not on {below.path}", path=above.path)
