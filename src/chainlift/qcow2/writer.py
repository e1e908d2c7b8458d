"""Writing qcow2 images: a low level that lays clusters, tables and refcounts out, and :func:`write_image` on top of it.

Metadata follows the data it describes and the header is written last, so that a file whose writer was killed is no
qcow2 image rather than a broken one. A backing file is only named, never opened.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from chainlift.qcow2 import layout, tables
from chainlift.qcow2.compression import compress_cluster
from chainlift.qcow2.header import Header
from chainlift.qcow2.layout import Compatible, CompressionType, Incompatible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from numpy.typing import ArrayLike, NDArray

    Bytes = bytes | bytearray | memoryview
    Data = Callable[[int], Bytes] | Bytes | NDArray[np.uint8]

_BATCH_BYTES = 4 << 20
NO_COMPATIBLE = Compatible(0)


class ImageWriter:
    """A qcow2 image in the making; :meth:`finish` makes it one.

    As a context manager it removes the file where its block ends with an error or without :meth:`finish`.

    :param path: the file; it must not exist, unless there is a descriptor of it.
    :param descriptor: None, or an empty file or a block device to write to; it is the caller's to close and to remove.
        What a device has behind the image stays, and nothing is left to chance of what it has before.
    :param virtual_size: bytes of the disk, a multiple of 512.
    :param cluster_size: bytes, a power of two from 512 to 2 MiB.
    :param refcount_order: refcounts have ``2 ** refcount_order`` bits.
    :param backing_file: as it is to stand in the header.
    :param compatible: feature bits to set that a reader may ignore.
    :param mode: of the new file, less the umask.
    :raise ValueError: if the parameters describe no valid image.
    :raise FileExistsError: if the file exists.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        descriptor: int | None = None,
        virtual_size: int,
        cluster_size: int = 65536,
        version: int = 3,
        refcount_order: int = 4,
        extended_l2: bool = False,
        compression: Literal["zlib", "zstd"] = "zlib",
        backing_file: str | bytes | os.PathLike[str] | None = None,
        backing_format: str | None = None,
        compatible: Compatible = NO_COMPATIBLE,
        mode: int = 0o644,
    ) -> None:
        self.compression = CompressionType[compression.upper()]
        incompatible = Incompatible.EXTENDED_L2 if extended_l2 else Incompatible(0)
        if self.compression is not CompressionType.ZLIB:
            incompatible |= Incompatible.COMPRESSION
        _check_parameters(virtual_size, cluster_size, version, refcount_order, incompatible)
        self._header = Header(
            version=version,
            cluster_bits=cluster_size.bit_length() - 1,
            size=virtual_size,
            l1_size=0,
            l1_table_offset=0,
            refcount_table_offset=0,
            refcount_table_clusters=0,
            incompatible_features=incompatible,
            compatible_features=compatible,
            refcount_order=refcount_order,
            compression_type=self.compression,
            backing_file=None if backing_file is None else os.fsencode(backing_file),
            backing_format=backing_format,
        )
        self.cluster_size = cluster_size
        self._header.encode()  # before a file is made: does it fit?
        l1_size = max(1, -(-virtual_size // (cluster_size * self._header.l2_entries)))
        if l1_size * 8 > layout.MAX_L1_BYTES:
            raise ValueError(f"a disk of {virtual_size} bytes needs larger clusters than {cluster_size} bytes")
        self._l1 = np.zeros(l1_size, dtype=np.uint64)
        self._pending: tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64] | None] | None = None
        self._next_cluster = 1
        self._shared: dict[int, int] = {}  # host cluster -> refcount, of those that hold compressed clusters
        self._compressed_end = 0
        self._finished = False
        self.path = os.fspath(path)
        self._is_own = descriptor is None
        self.fd = (
            os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            if descriptor is None
            else descriptor
        )
        self._is_device = stat.S_ISBLK(os.fstat(self.fd).st_mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_own:
            return
        os.close(self.fd)
        if not self._finished:
            os.unlink(self.path)  # noqa: PTH108 - the name as it was given

    @property
    def extended_l2(self) -> bool:
        """Whether entries have subcluster bitmaps."""
        return self._header.extended_l2

    def reserve(self, count: int) -> int:
        """Set ``count`` consecutive clusters aside at the file's end; return the host offset of the first, in bytes."""
        offset = self._next_cluster * self.cluster_size
        self._next_cluster += count
        return offset

    def write(self, offset: int, data: Bytes) -> None:
        """Write bytes at a host offset that was reserved."""
        view = memoryview(data).cast("B")
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written

    def store_compressed(self, data: bytes) -> int:
        """Store one compressed cluster behind the last one, as tight as refcounts allow; return its host offset."""
        offset = self._compressed_end
        first, last = self._sectors_clusters(offset, len(data))
        limit = min((1 << (1 << self._header.refcount_order)) - 1, 1 << 16)
        has_room = offset % self.cluster_size != 0 and self._shared[first] < limit
        # Running over into the next cluster is possible where that one is still free.
        if not has_room or (last > first and first != self._next_cluster - 1):
            offset = self._next_cluster * self.cluster_size
            first, last = self._sectors_clusters(offset, len(data))
        self._next_cluster = max(self._next_cluster, last + 1)
        for cluster in range(first, last + 1):
            self._shared[cluster] = self._shared.get(cluster, 0) + 1
        self.write(offset, data)
        self._compressed_end = offset + len(data)
        return offset

    def _sectors_clusters(self, offset: int, length: int) -> tuple[int, int]:
        # qemu-img check counts the whole sectors that a descriptor names, not the bytes of the stream.
        end = -(-(offset + length) // layout.SECTOR_SIZE) * layout.SECTOR_SIZE
        return offset // self.cluster_size, (end - 1) // self.cluster_size

    def set_entries(
        self, clusters: NDArray[np.int64], entries: NDArray[np.uint64], bitmaps: NDArray[np.uint64] | None = None
    ) -> None:
        """Map guest clusters. Calls must come in ascending order of guest clusters; memory is that of one call.

        :param clusters: guest cluster numbers, sorted, each once.
        :param entries: the L2 entry of each, as it is to stand in the table (see :mod:`chainlift.qcow2.tables`).
        :param bitmaps: the subcluster bitmap of each; needed exactly with extended L2 entries.
        :raise ValueError: if the order is wrong, a cluster is outside the disk, or bitmaps are not as needed.
        """
        if (bitmaps is not None) != self._header.extended_l2:
            raise ValueError("subcluster bitmaps go with extended L2 entries, and only with them")
        if self._pending is not None:
            clusters = np.concatenate((self._pending[0], clusters))
            entries = np.concatenate((self._pending[1], entries))
            if bitmaps is not None and self._pending[2] is not None:
                bitmaps = np.concatenate((self._pending[2], bitmaps))
        if len(clusters) == 0:
            return
        if np.any(clusters[1:] <= clusters[:-1]):
            raise ValueError("guest clusters must be sorted and each given once")
        if int(clusters[0]) < 0 or int(clusters[-1]) * self.cluster_size >= self._header.size:
            raise ValueError("a guest cluster is outside the disk")
        last_table = int(clusters[-1]) // self._header.l2_entries
        keep = int(np.searchsorted(clusters, last_table * self._header.l2_entries))
        self._write_tables(clusters[:keep], entries[:keep], None if bitmaps is None else bitmaps[:keep])
        self._pending = clusters[keep:], entries[keep:], None if bitmaps is None else bitmaps[keep:]

    def _write_tables(
        self, clusters: NDArray[np.int64], entries: NDArray[np.uint64], bitmaps: NDArray[np.uint64] | None
    ) -> None:
        per_table = self._header.l2_entries
        batch = max(1, _BATCH_BYTES // self.cluster_size) * per_table
        start = 0
        while start < len(clusters):
            end = int(np.searchsorted(clusters, int(clusters[start]) // per_table * per_table + batch))
            chosen = slice(start, end)
            used, packed = tables.pack_l2(
                clusters[chosen], entries[chosen], per_table, None if bitmaps is None else bitmaps[chosen]
            )
            if np.any(self._l1[used]):
                raise ValueError("guest clusters must come in ascending order")
            offset = self.reserve(len(used))
            self.write(offset, tables.to_disk(packed))
            self._l1[used] = offset + np.arange(len(used), dtype=np.uint64) * np.uint64(self.cluster_size)
            start = end

    def finish(self, *, sync: bool = False) -> int:
        """Write L1 table, refcounts and header.

        :param sync: the file is on stable storage when this returns.
        :return: the file's size in bytes, a multiple of the cluster.
        """
        if self._pending is not None:
            self._write_tables(*self._pending)
            self._pending = None
        l1_offset = self.reserve(-(-len(self._l1) * 8 // self.cluster_size))
        self.write(l1_offset, self._l1_bytes())
        table_offset, table_clusters = self._write_refcounts()
        header = replace(
            self._header,
            l1_size=len(self._l1),
            l1_table_offset=l1_offset,
            refcount_table_offset=table_offset,
            refcount_table_clusters=table_clusters,
        )
        size = self._next_cluster * self.cluster_size
        if not self._is_device:
            os.ftruncate(self.fd, size)
        if sync:
            os.fdatasync(self.fd)
        self.write(0, header.encode())
        if sync:
            os.fsync(self.fd)
        self._finished = True
        return size

    def _l1_bytes(self) -> bytes:
        return tables.to_disk(np.where(self._l1 != 0, self._l1 | np.uint64(layout.OFLAG_COPIED), np.uint64(0)))

    def _write_refcounts(self) -> tuple[int, int]:
        per_block = self.cluster_size * 8 >> self._header.refcount_order
        blocks = table_clusters = 0
        while True:  # refcount blocks and table describe themselves too: grow until they fit
            need = -(-(self._next_cluster + blocks + table_clusters) // per_block)
            need_table = -(-need * 8 // self.cluster_size)
            if (need, need_table) == (blocks, table_clusters):
                break
            blocks, table_clusters = need, need_table
        if table_clusters * self.cluster_size > layout.MAX_REFTABLE_BYTES:
            raise ValueError("the refcount table would be larger than QEMU accepts; use larger clusters")
        blocks_offset, table_offset = self.reserve(blocks), self.reserve(table_clusters)
        shared = np.array(sorted(self._shared.items()), dtype=np.int64).reshape(-1, 2)
        for block in range(blocks):
            first = block * per_block
            counts = np.zeros(per_block, dtype=np.int64)
            counts[: max(0, self._next_cluster - first)] = 1
            low, high = np.searchsorted(shared[:, 0], (first, first + per_block))
            counts[shared[low:high, 0] - first] = shared[low:high, 1]
            self.write(
                blocks_offset + block * self.cluster_size, tables.pack_refcounts(counts, self._header.refcount_order)
            )
        table = blocks_offset + np.arange(blocks, dtype=np.uint64) * np.uint64(self.cluster_size)
        # All of its clusters are read, and what they have had is no matter of ours on a device.
        self.write(
            table_offset, tables.to_disk(table).ljust(table_clusters * self.cluster_size * self._is_device, b"\0")
        )
        return table_offset, table_clusters


def write_image(
    path: str | os.PathLike[str],
    *,
    virtual_size: int,
    cluster_size: int = 65536,
    version: int = 3,
    refcount_order: int = 4,
    extended_l2: bool = False,
    compression: Literal["zlib", "zstd"] = "zlib",
    backing_file: str | bytes | os.PathLike[str] | None = None,
    backing_format: str | None = None,
    clusters: ArrayLike = (),
    data: Data | None = None,
    compress: bool = False,
    subclusters: ArrayLike | None = None,
    zero_clusters: ArrayLike = (),
    zero_alloc_clusters: ArrayLike = (),
) -> None:
    """Write a qcow2 image that ``qemu-img check`` finds clean, without opening its backing file.

    :param path: the file; it must not exist.
    :param virtual_size: bytes, a multiple of 512.
    :param clusters: guest cluster numbers that have data, sorted, each once.
    :param data: their content: a function from guest cluster number to that cluster's bytes, or one buffer with the
        content of all of them, cluster after cluster. None leaves holes: allocated clusters that read as zeros.
    :param compress: store data compressed; clusters that do not get smaller are stored as they are.
    :param subclusters: with ``extended_l2``, each cluster's bitmap: bits 0-31 allocated, 32-63 reads as zeros.
        None: all 32 are allocated.
    :param zero_clusters: guest cluster numbers that read as zeros and have no host cluster (version 3).
    :param zero_alloc_clusters: the same with a host cluster set aside.
    :raise ValueError: if the parameters describe no valid image.
    :raise FileExistsError: if the file exists.
    """
    data_clusters = np.asarray(clusters, dtype=np.int64)
    plain = np.asarray(zero_clusters, dtype=np.int64)
    alloc = np.asarray(zero_alloc_clusters, dtype=np.int64)
    if version < 3 and plain.size + alloc.size:
        raise ValueError("version 2 has no zero clusters")
    if compress and data is None and data_clusters.size:
        raise ValueError("compressed clusters need data")
    with ImageWriter(
        path,
        virtual_size=virtual_size,
        cluster_size=cluster_size,
        version=version,
        refcount_order=refcount_order,
        extended_l2=extended_l2,
        compression=compression,
        backing_file=backing_file,
        backing_format=backing_format,
    ) as writer:
        if compress and data is not None:
            entries = _store_compressed(writer, data_clusters, data)
        else:
            offset = writer.reserve(len(data_clusters))
            if data is not None:
                _store_plain(writer, data_clusters, data, offset)
            host = offset + np.arange(len(data_clusters), dtype=np.int64) * cluster_size
            entries = tables.standard_entries(host, copied=True)
        alloc_offset = writer.reserve(len(alloc)) + np.arange(len(alloc), dtype=np.int64) * cluster_size
        zero_flag = np.uint64(0 if extended_l2 else layout.OFLAG_ZERO)
        all_clusters = np.concatenate((data_clusters, plain, alloc))
        all_entries = np.concatenate((
            entries,
            np.full(len(plain), zero_flag),
            tables.standard_entries(alloc_offset, copied=True) | zero_flag,
        ))  # fmt: skip
        order = np.argsort(all_clusters, kind="stable")
        bitmaps = None
        if extended_l2:
            bitmaps = _bitmaps(entries, subclusters, len(plain) + len(alloc))[order]
        writer.set_entries(all_clusters[order], all_entries[order], bitmaps)
        writer.finish()


def _bitmaps(entries: NDArray[np.uint64], subclusters: ArrayLike | None, zeros: int) -> NDArray[np.uint64]:
    if subclusters is None:
        of_data = np.full(len(entries), layout.L2_BITMAP_ALL_ALLOC, dtype=np.uint64)
    else:
        of_data = np.array(subclusters, dtype=np.uint64)
    of_data[(entries & np.uint64(layout.OFLAG_COMPRESSED)) != 0] = 0  # the specification reserves it there
    return np.concatenate((of_data, np.full(zeros, layout.L2_BITMAP_ALL_ZEROES, dtype=np.uint64)))


def _contents(clusters: NDArray[np.int64], data: Data, cluster_size: int) -> Iterator[memoryview]:
    if callable(data):
        for cluster in clusters.tolist():
            content = memoryview(data(cluster)).cast("B")
            if len(content) != cluster_size:
                raise ValueError(f"cluster {cluster} has {len(content)} bytes of data instead of {cluster_size}")
            yield content
        return
    whole = memoryview(data.tobytes() if isinstance(data, np.ndarray) else data).cast("B")
    if len(whole) != len(clusters) * cluster_size:
        raise ValueError(f"{len(whole)} bytes of data for {len(clusters)} clusters of {cluster_size}")
    for start in range(0, len(whole), cluster_size):
        yield whole[start : start + cluster_size]


def _store_plain(writer: ImageWriter, clusters: NDArray[np.int64], data: Data, offset: int) -> None:
    batch: list[memoryview] = []
    per_batch = max(1, _BATCH_BYTES // writer.cluster_size)
    for content in _contents(clusters, data, writer.cluster_size):
        batch.append(content)
        if len(batch) == per_batch:
            writer.write(offset, b"".join(batch))
            offset += len(batch) * writer.cluster_size
            batch.clear()
    writer.write(offset, b"".join(batch))


def _store_compressed(writer: ImageWriter, clusters: NDArray[np.int64], data: Data) -> NDArray[np.uint64]:
    cluster_bits = writer.cluster_size.bit_length() - 1
    entries = np.zeros(len(clusters), dtype=np.uint64)
    for index, content in enumerate(_contents(clusters, data, writer.cluster_size)):
        packed = compress_cluster(bytes(content), writer.compression)
        if packed is None:
            offset = writer.reserve(1)
            writer.write(offset, content)
            entries[index] = offset | layout.OFLAG_COPIED
        else:
            offset = writer.store_compressed(packed)
            entries[index] = tables.compressed_entries(np.array([offset]), np.array([len(packed)]), cluster_bits)[0]
    return entries


def _check_parameters(
    virtual_size: int, cluster_size: int, version: int, refcount_order: int, incompatible: Incompatible
) -> None:
    bits = cluster_size.bit_length() - 1
    if cluster_size != 1 << bits or not layout.MIN_CLUSTER_BITS <= bits <= layout.MAX_CLUSTER_BITS:
        raise ValueError(f"a cluster size of {cluster_size} is no power of two from 512 to 2 MiB")
    if virtual_size < 0 or virtual_size % layout.SECTOR_SIZE or virtual_size >= 1 << 62:
        raise ValueError(f"a virtual size of {virtual_size} is no multiple of 512 below 2^62")
    if version not in (2, 3):
        raise ValueError(f"there is no qcow2 version {version}")
    if version == 2 and (incompatible or refcount_order != 4):
        raise ValueError("version 2 has 16-bit refcounts, zlib compression and no extended L2 entries")
    if not 0 <= refcount_order <= layout.MAX_REFCOUNT_ORDER:
        raise ValueError(f"a refcount order of {refcount_order} is not 0 to 6")
    if Incompatible.EXTENDED_L2 in incompatible and bits < layout.MIN_EXTENDED_L2_CLUSTER_BITS:
        raise ValueError("extended L2 entries need clusters of at least 16 KiB")
