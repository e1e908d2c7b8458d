"""The layers of a chain as the record of a lift describes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ImageError
from chainlift.lift.record.identity import absolute_name, digest_header, identify, metadata_digest
from chainlift.lift.record.manifest import NAME, SUFFIX, Layer, Pointer, Tables, read_manifest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain import Chain
    from chainlift.chain import Layer as ChainLayer
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.files import ClusterFiles
    from chainlift.qcow2.file import ImageFile


def describe_layers(
    chain: Chain, sources: ClusterFiles, visible: Sequence[int], digests: Sequence[TablesDigest]
) -> list[Layer]:
    """Describe every file with clusters, in the chain's order; of an index below, the files it points into.

    :param visible: clusters of each file that can be seen.
    :param digests: of each layer's tables, with all of the disk taken in.
    """
    found = []
    known: dict[str, Layer] | None = None
    for number, source in enumerate(sources.files):
        position = sources.layer[number]
        layer = chain.layers[position]
        if isinstance(layer.file, ExtentsFile):
            known = _described_below(layer.file) if known is None else known
            found.append(_describe_file(source.file, visible[number], known))
        else:
            tables = None
            if layer.image is not None:
                span = min(layer.virtual_size, chain.virtual_size)
                tables = Tables(sha256=digests[position].hexdigest(), span_bytes=span)
            found.append(_describe(layer, visible[number], tables))
    return found


def _described_below(index: ExtentsFile) -> dict[str, Layer]:
    """Return what the record of the lift that an index belongs to says of the files under it, by their paths."""
    for record in (Path(index.path).with_suffix(SUFFIX), Path(index.path).with_name(NAME)):
        try:
            return {layer.identity.path: layer for layer in read_manifest(record).layers}
        except ImageError:
            continue
    return {}  # verify has less to compare then


def _describe(layer: ChainLayer, visible: int, tables: Tables | None) -> Layer:
    backing = None
    if layer.backing_name is not None:
        backing = Pointer(name=layer.backing_name, format=layer.backing_format)
    own_data_file = layer.data_file is not layer.file
    return Layer(
        identity=identify(absolute_name(layer.path), metadata_sha256=_digest_of(layer)),
        format="raw" if layer.image is None else "qcow2",
        backing=backing,
        visible_clusters=visible,
        data_file=identify(absolute_name(layer.data_file.path)) if own_data_file else None,
        tables=tables,
    )


def _describe_file(file: ImageFile, visible: int, known: dict[str, Layer]) -> Layer:
    digest = metadata_digest(file)
    identity = identify(absolute_name(file.path), metadata_sha256=digest)
    before = known.get(identity.path)
    return Layer(
        identity=identity,
        format="raw" if digest is None else "qcow2",
        visible_clusters=visible,
        # Not read again: the tables are those of that lift where the file is what it was then.
        tables=before.tables if before is not None and before.identity == identity else None,
    )


def _digest_of(layer: ChainLayer) -> str | None:
    return None if layer.image is None else digest_header(layer.file, layer.image.header)
