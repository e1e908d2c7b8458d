"""Whether a lift is still true: its files, and all that it stands on, are what they were when it was built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain import Chain
from chainlift.chain.digest import digest_tables
from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.build.descriptor import index_descriptor
from chainlift.lift.compare.content import first_difference
from chainlift.lift.record.source import Source, find_source, metadata_digest, open_pointer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from chainlift.lift.record.manifest import FileIdentity, Layer, Manifest


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was."""

    path: str
    what: str


def verify_lift(
    image: str | os.PathLike[str], *, content: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[Manifest, list[Finding]]:
    """Check a lift against its manifest.

    :param content: compare every byte under the image with the original chain, too.
    :param progress: called with the bytes compared so far.
    :return: the manifest, and what is not as it was; nothing if the lift is true.
    :raise ImageError: if the image is not lifted.
    """
    source = find_source(image)
    manifest = require_lift(source)
    findings = []
    if not source.is_lifted:
        findings.append(Finding(str(source.image), f"names {source.current.name!r}, not the {manifest.kind}"))
    for layer in [*([] if manifest.deleted else manifest.layers), *manifest.below]:
        findings += _changes(layer.identity) or _other_tables(layer)
        if layer.data_file is not None:
            findings += _changes(layer.data_file)
    for file in manifest.files:
        findings += _changes(file)
    if content and not findings and not manifest.deleted:
        findings += _content(source, progress)
    return manifest, findings


def require_lift(source: Source) -> Manifest:
    """Return the manifest of an image that is lifted, or was.

    :raise ImageError: if there is none.
    """
    if source.manifest is None:
        raise ImageError("is not lifted", path=source.image, hint="lift it with chainlift index or squash")
    return source.manifest


def _changes(was: FileIdentity) -> list[Finding]:
    path = Path(was.path)
    try:
        now = path.stat()
    except FileNotFoundError:
        return [Finding(was.path, "is gone")]
    except OSError as error:
        return [Finding(was.path, f"cannot be looked at: {error.strerror}")]
    if (now.st_dev, now.st_ino) != (was.device, was.inode):
        return [Finding(was.path, "is another file than it was")]
    if now.st_size != was.size_bytes:
        what = "was cut off" if now.st_size < was.size_bytes else "has grown"
        return [Finding(was.path, f"{what}: {was.size_bytes} bytes then, {now.st_size} now")]
    if was.metadata_sha256 is not None and _digest(path) != was.metadata_sha256:
        return [Finding(was.path, "has another header or L1 table than it had")]
    if now.st_mtime_ns != was.mtime_ns:
        return [Finding(was.path, "was written to")]
    if now.st_ctime_ns != was.ctime_ns:
        return [Finding(was.path, "was touched: its change time is another, its size and times are as they were")]
    return []


def _other_tables(layer: Layer) -> list[Finding]:
    """Look whether the L2 tables say what they said, of a layer that looks the same otherwise."""
    if layer.tables is None:
        return []
    path = layer.identity.path
    file = ImageFile(path)
    try:
        header = read_header(file)
        data_file = None if layer.data_file is None else ImageFile(layer.data_file.path)
        if digest_tables(Image(file, header, data_file), layer.tables.span_bytes) == layer.tables.sha256:
            return []
    except ChainliftError as error:
        return [Finding(error.path or path, error.what)]
    finally:
        file.close()
    return [Finding(path, "has other L2 tables than it had, though its size and times are as they were")]


def _digest(path: Path) -> str | None:
    file = ImageFile(str(path))
    try:
        return metadata_digest(file)
    finally:
        file.close()


def _content(source: Source, progress: Callable[[int], None] | None) -> list[Finding]:
    try:
        with open_pointer(source.image, source.current) as lifted, open_unlifted(source) as original:
            if lifted.virtual_size != original.virtual_size:
                return [Finding(str(source.image), "the lift has another size than the original chain")]
            difference = first_difference(lifted, original, progress)
    except ChainliftError as error:
        return [Finding(error.path or str(source.image), error.what)]
    if difference is None:
        return []
    return [Finding(str(source.image), f"reads other bytes than the original chain from offset {difference} on")]


def open_unlifted(source: Source) -> Chain:
    """Open the chain under an image as it was before any lift, also of the layers below it.

    :raise ImageError: if a layer of it is gone.
    """
    chain = source.open_original()
    layers = list(chain.layers)
    for number, layer in enumerate(layers):
        if isinstance(layer.file, ExtentsFile) and number > 0:
            below = find_source(layers[number - 1].path)
            if below.is_lifted and index_descriptor(below.current.name) is not None:
                return Chain((*layers[:number], *open_unlifted(below).layers))
    return chain
