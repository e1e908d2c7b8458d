"""The image that is to be lifted: what it names as its backing file, and the chain below it as it was before."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.chain import ChainPolicy, open_chain
from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import parse_name
from chainlift.errors import ImageError, InputError
from chainlift.lift.build.descriptor import index_descriptor
from chainlift.lift.build.workspace import lift_directory, read_lift
from chainlift.lift.record.manifest import NAME, FileIdentity, Layer, Manifest, Pointer, Tables, read_manifest
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header
from chainlift.qcow2.layout import CryptMethod

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain import Chain
    from chainlift.chain import Layer as ChainLayer
    from chainlift.chain.digest import TablesDigest
    from chainlift.lift.build.files import Sources
    from chainlift.qcow2.header import Header

_POLICY: Final = ChainPolicy()


@dataclass(frozen=True)
class Source:
    """An image and its pointers."""

    #: Absolute.
    image: Path
    header: Header
    #: What the header names now.
    current: Pointer
    #: What it named before it was lifted: :attr:`current` where it is not lifted.
    original: Pointer
    #: The lift that lies beside the image; it need not be in use.
    manifest: Manifest | None

    @property
    def is_lifted(self) -> bool:
        """Whether the header names the lift that lies beside the image."""
        if self.manifest is None:
            return False
        now, then = self.current.name, self.manifest.lifted.name
        # QEMU may have written the same node's name in its own way.
        return now == then or _leads_to(self.image, now) == _leads_to(self.image, then)

    def open_original(self, policy: ChainPolicy = _POLICY) -> Chain:
        """Open the chain under the image, as it was before the lift."""
        return open_pointer(self.image, self.original, policy)


def find_source(image: str | os.PathLike[str]) -> Source:
    """Look at an image that is to be lifted, or is.

    :raise ImageError: if it is no qcow2 image, has no backing file, or the manifest of its lift is missing.
    """
    path = _absolute(os.fspath(image))
    if path.is_symlink():
        raise ImageError("is a symbolic link", path=path, hint="name the image itself: names in it depend on its place")
    header, current = read_pointer(path)
    if current is None:
        raise ImageError("has no backing file: there is no chain to lift", path=path)
    if header.crypt_method is not CryptMethod.NONE:
        raise ImageError(f"is encrypted ({header.crypt_method.name}): no tool can change what it names", path=path)
    manifest = read_lift(path)
    original = current
    if manifest is not None and manifest.deleted and current.name == manifest.lifted.name:
        pass  # there is no way back: the squash is a layer like any other now
    elif manifest is not None and current.name == manifest.lifted.name:
        original = manifest.original  # also where the image and its lift were moved together
    elif points_into(path, current):
        if manifest is None:
            raise ImageError(
                "stands on a lift whose manifest.json is gone",
                path=path,
                hint=f"name the original backing file with qemu-img rebase -u; look into {lift_directory(path)}",
            )
        original = manifest.original
    return Source(path, header, current, original, manifest)


def read_pointer(path: Path) -> tuple[Header, Pointer | None]:
    """Read an image's header and the backing file it names.

    :raise ImageError: if it is no qcow2 image.
    """
    file = ImageFile(str(path))
    try:
        header = read_header(file)
    finally:
        file.close()
    if header.backing_file is None:
        return header, None
    return header, Pointer(name=os.fsdecode(header.backing_file), format=header.backing_format)


def points_into(image: Path, pointer: Pointer) -> bool:
    """Whether a pointer of the image names a file in its own ``IMAGE.lift/``."""
    target = index_descriptor(pointer.name)
    if target is None:
        if pointer.name.startswith("json:"):
            return False
        target = Path(parse_name(pointer.name, named_in=str(image)).path)
    directory = lift_directory(image)
    return target.parent == directory or (
        directory.is_dir() and os.path.realpath(target.parent) == os.path.realpath(directory)
    )


def _leads_to(image: Path, name: str) -> tuple[bool, str]:
    reference = parse_name(name, named_in=str(image))
    return reference.is_descriptor, os.path.realpath(reference.path)


def open_pointer(image: Path, pointer: Pointer, policy: ChainPolicy = _POLICY) -> Chain:
    """Open the chain that a backing name in this image leads to."""
    name = pointer.name
    if not name.startswith("json:"):
        name = parse_name(name, named_in=str(image)).path
    return open_chain(name, policy, format=pointer.format)


def identify(path: str | os.PathLike[str], *, metadata_sha256: str | None = None) -> FileIdentity:
    """Return how a file is found now.

    :raise ImageError: if it is not there.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - of a thousand names, most are no Path objects
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=path) from error
    return FileIdentity(
        path=os.fspath(path),
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        metadata_sha256=metadata_sha256,
    )


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
    """Return what the manifest of the lift that an index belongs to says of the files under it, by their paths."""
    try:
        manifest = read_manifest(Path(index.path).with_name(NAME))
    except ImageError:
        return {}  # verify has less to compare then
    return {layer.identity.path: layer for layer in manifest.layers}


def _describe(layer: ChainLayer, visible: int, tables: Tables | None) -> Layer:
    backing = None
    if layer.backing_name is not None:
        backing = Pointer(name=layer.backing_name, format=layer.backing_format)
    own_data_file = layer.data_file is not layer.file
    return Layer(
        identity=identify(_absolute_name(layer.path), metadata_sha256=_digest_of(layer)),
        format="raw" if layer.image is None else "qcow2",
        backing=backing,
        visible_clusters=visible,
        data_file=identify(_absolute_name(layer.data_file.path)) if own_data_file else None,
        tables=tables,
    )


def _describe_file(file: ImageFile, visible: int, known: dict[str, Layer]) -> Layer:
    digest = metadata_digest(file)
    identity = identify(_absolute_name(file.path), metadata_sha256=digest)
    before = known.get(identity.path)
    return Layer(
        identity=identity,
        format="raw" if digest is None else "qcow2",
        visible_clusters=visible,
        # Not read again: the tables are those of that lift where the file is what it was then.
        tables=before.tables if before is not None and before.identity == identity else None,
    )


def _absolute(name: str) -> Path:
    return Path(_absolute_name(name))


def _absolute_name(name: str) -> str:
    return os.path.abspath(name)  # noqa: PTH100 - links in the name stay, as QEMU resolves names


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


def require_liftable(chain: Chain) -> None:
    """Refuse layers whose clusters cannot be pointed at or copied.

    :raise ImageError: naming the layer.
    :raise InputError: if a file of the chain is a part of no file system.
    """
    for layer in chain.layers:
        if layer.image is not None:
            layer.image.require_plain()
        if layer.path.startswith("json:"):
            raise InputError("cannot be named in a lift", path=layer.path)
