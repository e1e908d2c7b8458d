"""One qcow2 image, open for reading: its header, and where its L1 table says that L2 tables are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.compression import decompress_cluster
from chainlift.qcow2.header import Header, parse_header
from chainlift.qcow2.layout import CryptMethod

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from chainlift.qcow2.file import ImageFile

#: Entries of an L1 table that are looked at in one go when searching for the next one in use.
_L1_STRIDE = 8192
_HEAD_BYTES = 4096


class Image:
    """One qcow2 image.

    :param file: the file with the metadata.
    :param header: its header, from :func:`read_header`.
    :param data_file: the external data file, where the header asks for one; data lies in ``file`` otherwise.
    """

    def __init__(self, file: ImageFile, header: Header, data_file: ImageFile | None = None) -> None:
        self.file = file
        self.header = header
        self.data_file = data_file or file
        self._l1_end = header.l1_table_offset + header.l1_size * 8
        if header.l1_size and self._l1_end > file.size and self._l1_end > file.refresh_size():
            raise ImageError(
                f"header field l1_table_offset: the L1 table ends at {self._l1_end}, past the file's end",
                path=file.path,
            )

    @property
    def path(self) -> str:
        """The name of the file with the metadata."""
        return self.file.path

    @property
    def batch_key(self) -> tuple[int, ...] | None:
        """What images have in common whose L2 entries can be decoded together; None if only by themselves."""
        header = self.header
        return None if header.extended_l2 or header.has_data_file else (header.version, header.cluster_bits)

    @property
    def table_span(self) -> int:
        """Bytes of guest disk that one L2 table maps."""
        return self.header.l2_entries * self.header.cluster_size

    def l2_offsets(self, first: int, last: int) -> NDArray[np.int64]:
        """Return where the L2 tables of L1 entries ``first`` to ``last - 1`` are, 0 for none.

        :raise ImageError: if a table is not aligned or reaches past the file's end.
        """
        last = min(last, self.header.l1_size)
        cluster_size = self.header.cluster_size
        data = self.file.pread(self.header.l1_table_offset + 8 * first, 8 * max(0, last - first))
        offsets = (np.frombuffer(data, ">u8") & np.uint64(layout.L1E_OFFSET_MASK)).astype(np.int64)
        if len(offsets) < last - first:
            raise ImageError("the L1 table is cut off", path=self.path)
        if int(np.bitwise_or.reduce(offsets)) & (cluster_size - 1):
            index = int(((offsets & (cluster_size - 1)) != 0).argmax())
            raise ImageError(
                f"L1 entry {first + index}: L2 table offset {offsets[index]:#x} is not aligned", path=self.path
            )
        end = int(offsets.max(initial=0))
        if end and end + cluster_size > self.file.size and end + cluster_size > self.file.refresh_size():
            index = int(offsets.argmax())
            raise ImageError(
                f"L1 entry {first + index}: L2 table at {offsets[index]:#x} reaches past the file's end", path=self.path
            )
        return offsets

    def next_tables(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the next L1 entries that have an L2 table, and where the tables are.

        :param first: the first L1 entry that is looked at.
        :param count: how many are wanted at most; fewer are returned only where the L1 table ends.
        :raise ImageError: if a table is not aligned, reaches past the file's end or stands in two entries.
        """
        indexes: list[NDArray[np.int64]] = []
        tables: list[NDArray[np.int64]] = []
        for start in range(first, self.header.l1_size, _L1_STRIDE):
            offsets = self.l2_offsets(start, start + _L1_STRIDE)
            (used,) = offsets.nonzero()
            if len(used):
                indexes.append(used + start)
                tables.append(offsets[used])
                self._refuse_shared_tables(indexes[-1], tables[-1])
                if sum(map(len, tables)) >= count:
                    break
        if not tables:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        return np.concatenate(indexes)[:count], np.concatenate(tables)[:count]

    def _refuse_shared_tables(self, index: NDArray[np.int64], offset: NDArray[np.int64]) -> None:
        # No writer makes them, and a small file could stand for years of reading.
        by_offset = offset.argsort(kind="stable")
        (shared,) = (np.diff(offset[by_offset]) == 0).nonzero()
        if len(shared):
            one, other = index[by_offset[shared[0] : shared[0] + 2]].tolist()
            raise ImageError(f"L1 entries {one} and {other} share an L2 table", path=self.path)

    def require_plain(self) -> None:
        """Refuse encrypted content.

        :raise ImageError: if the payload is encrypted.
        """
        method = self.header.crypt_method
        if method is not CryptMethod.NONE:
            raise ImageError(f"is encrypted ({method.name}): its content cannot be read", path=self.path)

    def read_data(self, host_offset: int, length: int) -> bytes:
        """Read bytes of standard clusters; what an allocated cluster has past the file's end is zeros."""
        self.require_plain()
        return self.data_file.pread(host_offset, length).ljust(length, b"\0")

    def read_compressed(self, host_offset: int, stored_bytes: int) -> bytes:
        """Read and decompress the cluster whose descriptor says this.

        :raise ImageError: if the stream does not hold a cluster.
        """
        self.require_plain()
        data = self.file.pread(host_offset, stored_bytes)
        try:
            return decompress_cluster(data, self.header.cluster_size, self.header.compression_type)
        except ValueError as error:
            raise ImageError(f"compressed cluster at {host_offset:#x} is damaged: {error}", path=self.path) from error


def read_header(file: ImageFile) -> Header:
    """Read an image's header.

    :raise ImageError: as :func:`chainlift.qcow2.header.parse_header`.
    """
    # Not more than needed: what was read is in the page cache, and set-aside extents that are there are holes no more
    # to SEEK_HOLE, nor then to "qemu-img map".
    head = file.pread(0, _HEAD_BYTES)
    cluster_bits = int.from_bytes(head[20:24], "big")
    if len(head) == _HEAD_BYTES and cluster_bits <= layout.MAX_CLUSTER_BITS:
        name_offset, name_size = int.from_bytes(head[8:16], "big"), int.from_bytes(head[16:20], "big")
        # Without a name extensions may go on to the end of the cluster.
        needed = min(name_offset + name_size if name_offset else 1 << cluster_bits, 1 << cluster_bits)
        if needed > _HEAD_BYTES:
            head = file.pread(0, needed)
    return parse_header(head, file.path)
