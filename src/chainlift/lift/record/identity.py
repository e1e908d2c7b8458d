"""Files as they were when a lift was built, so that it can be told whether they still are."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ImageError
from chainlift.lift.record.manifest import NAME, SUFFIX, FileIdentity, Layer, Pointer, Tables, read_manifest
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain import Chain
    from chainlift.chain import Layer as ChainLayer
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.files import Sources
    from chainlift.qcow2.header import Header


def identify(path: str | os.PathLike[str], *, metadata_sha256: str | None = None) -> FileIdentity:
    """Return how a file is found now.

    :raise ImageError: if it is not there.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - of a thousand names, most are no Path objects
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=path) from error
    if stat.S_ISBLK(status.st_mode):
        # A device node is made anew at every boot, and its times say nothing of what is on the device.
        size = _device_size(path)
        return FileIdentity(os.fspath(path), status.st_rdev, 0, size, 0, 0, metadata_sha256=metadata_sha256)
    return FileIdentity(
        path=os.fspath(path),
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        metadata_sha256=metadata_sha256,
    )


def _device_size(path: str | os.PathLike[str]) -> int:
    file = ImageFile(os.fspath(path))
    try:
        return file.size
    finally:
        file.close()


def describe_layers(
    chain: Chain, sources: Sources, visible: Sequence[int], digests: Sequence[TablesDigest]
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


def absolute_name(name: str) -> str:
    """Return an absolute name; links in it stay, as QEMU resolves names."""
    return os.path.abspath(name)  # noqa: PTH100


def _digest_of(layer: ChainLayer) -> str | None:
    return None if layer.image is None else _digest(layer.file, layer.image.header)


def metadata_digest(file: ImageFile) -> str | None:
    """Return the SHA-256 of an image's header and L1 table, None for a file that is no qcow2 image."""
    try:
        header = read_header(file)
    except ImageError:
        return None
    return _digest(file, header)


def _digest(file: ImageFile, header: Header) -> str:
    # The header cluster up to the end of the backing file's name: behind that nobody looks.
    head = file.pread(0, 4096)
    name_end = int.from_bytes(head[8:16], "big") + int.from_bytes(head[16:20], "big")
    digest = hashlib.sha256(head if name_end <= len(head) else file.pread(0, header.cluster_size))
    digest.update(file.pread(header.l1_table_offset, header.l1_size * 8))
    return digest.hexdigest()
