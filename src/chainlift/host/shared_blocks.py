"""Which bytes of files lie in the same blocks of their file system: these are the same, and nobody need read them.

FS_IOC_FIEMAP (the kernel's Documentation/filesystems/fiemap.rst) says for each extent of a file where it lies, and
whether another file, or this one at another place, has the same blocks.
"""

from __future__ import annotations

import array
import fcntl
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_FS_IOC_FIEMAP: Final = 0xC020660B
#: struct fiemap without its extents: start, length, flags, extents there are, extents there is room for.
_REQUEST: Final = struct.Struct("=QQIII4x")
_FLAG_SYNC: Final = 1
_EXTENT: Final = np.dtype(
    [("logical", "=u8"), ("physical", "=u8"), ("length", "=u8"), ("", "=u8", 2), ("flags", "=u4"), ("", "=u4", 3)]
)
_AT_A_TIME: Final = 4096
_LAST: Final = 0x1
_MERGED: Final = 0x1000
_SHARED: Final = 0x2000


class SharedBlocks(NamedTuple):
    """The extents of a file that others share, ascending."""

    #: Byte of the file at which each begins, int64.
    start: NDArray[np.int64]
    #: Bytes, int64.
    length: NDArray[np.int64]
    #: Where it lies, as a byte of the file system's device (or of what the file system takes for one), int64.
    physical: NDArray[np.int64]

    def place(self, offset: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where pieces of the file lie.

        :param offset: bytes of the file at which they begin.
        :param length: bytes of each; of the same shape.
        :return: for each its byte on the device; -1 where it does not lie in one of these extents as a whole.
        """
        if not len(self.start):
            return np.full(len(offset), -1, dtype=np.int64)
        row = np.maximum(self.start.searchsorted(offset, side="right") - 1, 0)
        within = offset - self.start[row]
        is_inside = (within >= 0) & (within + length <= self.length[row])
        return np.where(is_inside, self.physical[row] + within, np.int64(-1))


NONE_SHARED: Final = SharedBlocks(*(np.zeros(0, dtype=np.int64) for _ in range(3)))


def shared_blocks(descriptor: int, size_bytes: int) -> SharedBlocks:
    """Ask the file system which blocks of a file are shared; nobody may write to it meanwhile.

    :param descriptor: of a regular file, open for reading.
    :param size_bytes: of the file; what its last block has behind that is no part of it.
    :return: nothing where the file system cannot tell, or shares nothing.
    """
    try:
        # To sync a file may take long, and where nothing is shared it is not worth it.
        if not any((part["flags"] & _SHARED).any() for part in _extents(descriptor, 0)):
            return NONE_SHARED
        found = np.concatenate(list(_extents(descriptor, _FLAG_SYNC)))
    except OSError:
        return NONE_SHARED
    # What is packed, encrypted, not written yet or nowhere yet has another flag.
    found = found[((found["flags"] & _SHARED) != 0) & ((found["flags"] & ~np.uint32(_LAST | _MERGED | _SHARED)) == 0)]
    start, length, physical = (found[name].astype(np.int64) for name in ("logical", "length", "physical"))
    if not len(start):
        return NONE_SHARED
    length = np.minimum(length, np.maximum(size_bytes - start, 0))
    follows = (start[1:] == start[:-1] + length[:-1]) & (physical[1:] == physical[:-1] + length[:-1])
    first = np.flatnonzero(np.append(True, ~follows))
    return SharedBlocks(start[first], np.add.reduceat(length, first), physical[first])


def _extents(descriptor: int, flags: int) -> Iterator[NDArray[np.void]]:
    """Yield the extents of a file, some at a time."""
    position = 0
    buffer = array.array("B", bytes(_REQUEST.size + _AT_A_TIME * _EXTENT.itemsize))
    while True:
        _REQUEST.pack_into(buffer, 0, position, (1 << 64) - 1 - position, flags, 0, _AT_A_TIME)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, buffer)
        count = _REQUEST.unpack_from(buffer)[3]
        found = np.frombuffer(buffer, _EXTENT, count, _REQUEST.size).copy()
        yield found
        if not count or found["flags"][-1] & _LAST:
            return
        position = int(found["logical"][-1] + found["length"][-1])
