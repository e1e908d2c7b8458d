"""POSIX access control lists of files, as the kernel keeps them in an extended attribute (acl(5)).

The attribute is a version and entries of a tag, permissions and an id, all little endian (linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

#: (tag, id) -> permissions (4 read, 2 write, 1 execute); the id is :data:`NO_ID` where the tag takes none.
Acl = dict[tuple[int, int], int]

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID: Final = 0xFFFFFFFF
READ, WRITE, EXECUTE = 4, 2, 1
_VERSION: Final = 2
_HEAD: Final = struct.Struct("<I")
_ENTRY: Final = struct.Struct("<HHI")


def read_acl(path: str | os.PathLike[str] | int) -> Acl:
    """Return a file's list; where it has none, or the file system knows none, what its mode says.

    :raise OSError: if the file is not there.
    """
    data = read_attribute(path, ACCESS)
    if data is not None:
        return unpack_acl(data)
    mode = os.stat(path).st_mode  # noqa: PTH116 - a descriptor too
    return {(USER_OBJ, NO_ID): mode >> 6 & 7, (GROUP_OBJ, NO_ID): mode >> 3 & 7, (OTHER, NO_ID): mode & 7}


def unpack_acl(data: bytes) -> Acl:
    """Return the list that the extended attribute holds: the kernel has checked it."""
    return {(tag, who): permissions & 7 for tag, permissions, who in _ENTRY.iter_unpack(data[_HEAD.size :])}


def pack_acl(acl: Acl) -> bytes:
    """Return a list as the extended attribute holds it; the kernel wants the entries sorted."""
    return _HEAD.pack(_VERSION) + b"".join(_ENTRY.pack(tag, acl[tag, who], who) for tag, who in sorted(acl))


def permits(path: Path, wanted: int, *, uid: int, groups: Collection[int]) -> bool:
    """Whether a user has a permission on a file or directory (acl(5), "Access check algorithm"); root has them all.

    :param groups: all groups that the user is in.
    :raise OSError: if the file is not there.
    """
    if uid == 0:
        return True
    status, acl = path.stat(), read_acl(path)
    mask = acl.get((MASK, NO_ID), 7)
    if uid == status.st_uid:
        return bool(acl[USER_OBJ, NO_ID] & wanted)
    if (USER, uid) in acl:
        return bool(acl[USER, uid] & mask & wanted)
    matching = [acl[GROUP_OBJ, NO_ID]] if status.st_gid in groups else []
    matching += [permissions for (tag, who), permissions in acl.items() if tag == GROUP and who in groups]
    if matching:
        return any(permissions & mask & wanted for permissions in matching)
    return bool(acl[OTHER, NO_ID] & wanted)


def read_attribute(path: str | os.PathLike[str] | int, name: str) -> bytes | None:
    """Return an extended attribute; None where there is none, or the file system has no such.

    :raise OSError: if the file is not there, or reading fails.
    """
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS):
            return None
        raise


def remove_attribute(path: str | os.PathLike[str] | int, name: str) -> None:
    """Remove an extended attribute, if it is there."""
    try:
        os.removexattr(path, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
