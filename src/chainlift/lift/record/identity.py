"""Files as they were when a lift was built, so that it can be told whether they still are."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.record.manifest import FileIdentity
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
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


def absolute_name(name: str) -> str:
    """Return an absolute name; links in it stay, as QEMU resolves names."""
    return os.path.abspath(name)  # noqa: PTH100


def metadata_digest(file: ImageFile) -> str | None:
    """Return the SHA-256 of an image's header and L1 table, None for a file that is no qcow2 image."""
    try:
        header = read_header(file)
    except ImageError:
        return None
    return digest_header(file, header)


def digest_header(file: ImageFile, header: Header) -> str:
    """Return the SHA-256 of an image's header and L1 table."""
    # The header cluster up to the end of the backing file's name: behind that nobody looks.
    head = file.pread(0, 4096)
    name_end = int.from_bytes(head[8:16], "big") + int.from_bytes(head[16:20], "big")
    digest = hashlib.sha256(head if name_end <= len(head) else file.pread(0, header.cluster_size))
    digest.update(file.pread(header.l1_table_offset, header.l1_size * 8))
    return digest.hexdigest()
