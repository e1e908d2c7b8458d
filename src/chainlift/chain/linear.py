"""Files laid end to end as one: the linear space that a VMDK descriptor of FLAT extents describes.

Only the descriptors that chainlift writes are understood (:mod:`chainlift.chain.descriptor`); the grammar is
that of vmdk_parse_extents() in QEMU's block/vmdk.c, without its other kinds.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.layout import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

#: First lines of a descriptor.
DESCRIPTOR_HEAD: Final = """\
# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="twoGbMaxExtentFlat"
"""
#: QEMU reads one byte less than 1 MiB of a descriptor (vmdk_read_desc).
MAX_DESCRIPTOR_BYTES: Final = (1 << 20) - 1
_EXTENT: Final = re.compile(r'RW (\d{1,16}) FLAT "([^"\n]{1,511})" (\d{1,16})')
#: The driver writes a content identifier of its own where it was opened for writing; that changes nothing.
_CID: Final = re.compile(r"^CID=[0-9a-f]{1,8}$", re.MULTILINE)


@dataclass(frozen=True)
class Extent:
    """A piece of a file in the linear space.

    :param name: as it stands in the descriptor: absolute, or relative to the descriptor's directory.
    :param length: bytes in the linear space, a multiple of the cluster size; past the file's end it reads as zeros.
    :param offset: byte in the file where it begins, a multiple of 512.
    """

    name: str
    length: int
    offset: int = 0


def parse_descriptor(text: str) -> list[Extent]:
    """Read a descriptor as chainlift writes it; anything else in it is refused.

    :raise ImageError: if it is none of ours.
    """
    text = _CID.sub("CID=fffffffe", text, count=1)
    if not text.startswith(DESCRIPTOR_HEAD):
        raise ImageError("is not a VMDK descriptor of flat extents as chainlift writes it")
    extents = []
    for line in text[len(DESCRIPTOR_HEAD) :].split("\n"):
        if not line or line.startswith("ddb."):
            continue
        match = _EXTENT.fullmatch(line)
        if match is None:
            raise ImageError(f"has a line that chainlift does not write: {line[:60]!r}")
        extents.append(Extent(match[2], int(match[1]) * SECTOR_SIZE, int(match[3]) * SECTOR_SIZE))
    return extents


class ExtentsFile(ImageFile):
    """The linear space of a descriptor, read as if it were one file. The extents' files are opened when they are read.

    :param path: of the descriptor.
    :param check: as for :class:`~chainlift.qcow2.file.ImageFile`, for the extents' files too.
    :raise ImageError: if it is not a descriptor that chainlift writes.
    """

    def __init__(self, path: str, *, check: Callable[[str], None] | None = None) -> None:
        super().__init__(path, check=check)
        self._check = check
        data = super().pread(0, MAX_DESCRIPTOR_BYTES)
        try:
            self.extents = parse_descriptor(data.decode("utf-8", "surrogateescape"))
        except ImageError as error:
            raise ImageError(error.what, path=path) from error
        super().close()
        #: Where each extent begins in the linear space, in bytes.
        self.starts: list[int] = []
        self.size = 0
        for extent in self.extents:
            self.starts.append(self.size)
            self.size += extent.length
        if self.size >= 1 << 63:
            raise ImageError(f"describes {self.size} bytes, more than 2^63 - 1", path=path)
        self._files: dict[int, ImageFile] = {}

    def file(self, index: int) -> ImageFile:
        """Return the file of an extent.

        :raise ImageError: if it cannot be opened.
        """
        if index not in self._files:
            name = os.path.join(os.path.dirname(self.path), self.extents[index].name)  # noqa: PTH118, PTH120 - any bytes
            self._files[index] = ImageFile(name, check=self._check)
        return self._files[index]

    def pread(self, offset: int, length: int) -> bytes:
        """Read bytes; zeros where an extent is longer than its file."""
        length = max(0, min(length, self.size - offset))
        parts = []
        while length > 0:
            index = bisect_right(self.starts, offset) - 1
            within = offset - self.starts[index]
            count = min(length, self.extents[index].length - within)
            parts.append(self.file(index).pread(self.extents[index].offset + within, count).ljust(count, b"\0"))
            offset, length = offset + count, length - count
        return b"".join(parts)

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Read bytes into a buffer; return how many."""
        data = self.pread(offset, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def place(self, offset: int, length: int) -> tuple[int, int] | None:
        """Return where a span of bytes lies, if that is in one extent's file."""
        index = bisect_right(self.starts, offset) - 1
        within, extent, file = offset - self.starts[index], self.extents[index], self.file(index)
        if within + length > extent.length or extent.offset + within + length > file.size:
            return None
        return file.place(extent.offset + within, length)

    def refresh_size(self) -> int:
        """Return the size: it is the descriptor's, whatever the files do."""
        return self.size

    def next_data(self, offset: int) -> tuple[int, int]:
        """Return where the next data begin and where they end, asking the extents' files."""
        while offset < self.size:
            index = bisect_right(self.starts, offset) - 1
            shift = self.starts[index] - self.extents[index].offset
            end = self.starts[index] + self.extents[index].length
            begin, stop = self.file(index).next_data(offset - shift)
            if begin < stop and begin + shift < end:
                return begin + shift, min(stop + shift, end)
            offset = end
        return self.size, self.size

    @property
    def allocated_bytes(self) -> int:
        """What the descriptor and all extents' files take, as QEMU counts it."""
        files = {id(file): file for file in map(self.file, range(len(self.extents)))}
        return super().allocated_bytes + sum(file.allocated_bytes for file in files.values())

    def close(self) -> None:
        """Give up every descriptor."""
        super().close()
        for file in getattr(self, "_files", {}).values():
            file.close()
