"""Whether lifts are still true: their files, and all that they stand on, are what they were when they were built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain.digest import digest_tables
from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.compare.content import first_difference
from chainlift.lift.find import find_lifts
from chainlift.lift.record.identity import identify, metadata_digest
from chainlift.lift.record.lifts import find_lift
from chainlift.lift.record.pointer import open_pointer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from chainlift.lift.disk import Change, Disk
    from chainlift.lift.record.lifts import Lift
    from chainlift.lift.record.manifest import FileIdentity, Layer


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was."""

    #: The file.
    path: str
    #: What is not, a phrase.
    what: str


@dataclass(frozen=True)
class Verified:
    """One lift of a disk's chain, looked at."""

    #: The image that stands on it.
    image: Path
    #: The lift itself.
    lift: Lift
    #: What is not as it was; nothing if the lift is true.
    findings: list[Finding]


def verify(disk: Disk, *, content: bool = False, progress: Callable[[int], None] | None = None) -> list[Verified]:
    """Check every lift in a disk's chain against its record. Nothing is changed.

    >>> with open_disk("disk.qcow2") as disk:
    ...     lifted = index(disk)
    ...     [(lift.image.name, lift.findings) for lift in verify(disk, content=True)]
    [('disk.qcow2', [])]

    :param disk: from :func:`~chainlift.lift.open.open_disk`.
    :param content: compare every byte with the original chain, too, where there is one; what lies in the same place of
        the same files need not be read for that.
    :param progress: called with the bytes compared so far.
    :return: the lifts, the uppermost first, each with what is not as it was. That it is not true is no error here.
    :raise ImageError: if the disk stands on no lift, or a header or a record cannot be read.
    """
    verified = []
    for entry in find_lifts(disk, as_far_as_possible=True):
        findings = _findings(entry.lift)
        if content and not findings:
            findings = _content(entry.change, progress)
        verified.append(Verified(entry.change.owner, entry.lift, findings))
    if not verified:
        standing = disk.standing()[0]
        lift = None if standing.pointer is None else find_lift(disk.image, standing.pointer)
        if lift is None:
            raise ImageError("is not lifted", path=disk.image, hint="lift it with chainlift index or squash")
        verified.append(Verified(disk.image, lift, _findings(lift)))
    return verified


def _findings(lift: Lift) -> list[Finding]:
    manifest = lift.manifest
    findings: list[Finding] = []
    for layer in [*([] if manifest.deleted else manifest.layers), *manifest.below]:
        findings += _changes(layer.identity) or _other_tables(layer)
        if layer.data_file is not None:
            findings += _changes(layer.data_file)
    for file in manifest.files:
        findings += _changes(file)
    return findings


def _changes(was: FileIdentity) -> list[Finding]:
    path = Path(was.path)
    try:
        now = identify(path)
    except ImageError as error:
        return [Finding(was.path, "is gone" if isinstance(error.__cause__, FileNotFoundError) else error.what)]
    is_device = was.inode == now.inode == 0  # its number may be another after every boot
    if (now.device, now.inode) != (was.device, was.inode) and not is_device:
        return [Finding(was.path, "is another file than it was")]
    if now.size_bytes != was.size_bytes:
        what = "was cut off" if now.size_bytes < was.size_bytes else "has grown"
        return [Finding(was.path, f"{what}: {was.size_bytes} bytes then, {now.size_bytes} now")]
    if was.metadata_sha256 is not None and _digest(path) != was.metadata_sha256:
        return [Finding(was.path, "has another header or L1 table than it had")]
    if now.mtime_ns != was.mtime_ns:
        return [Finding(was.path, "was written to")]
    if now.ctime_ns != was.ctime_ns:
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


def _content(change: Change, progress: Callable[[int], None] | None) -> list[Finding]:
    try:
        with open_pointer(change.owner, change.readable) as lifted, open_pointer(change.owner, change.new) as original:
            if lifted.virtual_size != original.virtual_size:
                return [Finding(str(change.owner), "the lift has another size than the original chain")]
            difference = first_difference(lifted, original, progress)
    except ChainliftError as error:
        return [Finding(error.path or str(change.owner), error.what)]
    if difference is None:
        return []
    return [Finding(str(change.owner), f"reads other bytes than the original chain from offset {difference} on")]
