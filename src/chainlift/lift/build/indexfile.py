"""The index's own file: one merged L1/L2 table pair for a whole chain, made so that nobody can write through it.

The file is the first extent of a linear space in which the layers' files follow (see
:mod:`chainlift.chain.descriptor`), and every offset in it is one of that space. Its first page is a text for
people, so that the file by itself is no qcow2 image which a tool could open, repair or write; the qcow2 header follows
where the extent begins. Three walls keep a write from reaching a layer (tests/lift/test_hardening.py tries each alone,
and that writes do reach layers without them):

1. Incompatible feature bit 1, *corrupt*: QEMU refuses to open the image for writing and reads it as ever. A commit
   reopens the image and gets by.
2. Nothing may be written in place and nothing is free: an internal snapshot shares all L2 tables of the disk, so every
   visible cluster has a refcount of 2 or more and no COPIED flag, and the rest of the linear space hangs in the same
   snapshot behind the disk's end. All counts are true, so ``qemu-img check -r`` finds nothing to "repair".
3. The name in the overlay says ``"read-only": true`` for every node of it.

Layout (qcow2 spec, version 3; 16-bit refcounts)::

    header | L2 tables of the disk | copied clusters | L2 tables of the rest | L1 | snapshot's L1 | snapshot table |
    refcount table | refcount blocks
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from chainlift.errors import OperationError
from chainlift.qcow2 import layout as qcow2
from chainlift.qcow2 import tables
from chainlift.qcow2.header import Header
from chainlift.qcow2.layout import CompressionType, Incompatible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

#: Where the extent begins in the file: the text for people fills what is before.
PREAMBLE_BYTES: Final = 4096
SNAPSHOT_NAME: Final = b"chainlift: shares every cluster, so that none is written in place"

_PREAMBLE: Final = """\
This is the table of a chainlift index. It is no disk image by itself: QEMU reads it as the first extent of the VMDK
descriptor beside it (a qcow2 header follows at byte {offset}), and the .json beside it names the layers it points into.
Do not edit, convert or repair it. `chainlift verify IMAGE` checks it, `chainlift restore IMAGE` takes the image off it.
"""


class IndexFile:
    """Writes the file in two passes: tables with provisional offsets as they are resolved, then everything for good.

    :param descriptor: file descriptor of an empty file, open for reading and writing.
    :param virtual_size: of the disk, in bytes.
    :param cluster_size: of the index, in bytes, 4096 to 2 MiB.
    """

    def __init__(self, descriptor: int, *, virtual_size: int, cluster_size: int) -> None:
        self.fd = descriptor
        self.virtual_size = virtual_size
        self.cluster_size = cluster_size
        self.cluster_bits = cluster_size.bit_length() - 1
        self.entries_per_table = cluster_size // 8
        self._zstd = False
        self._l1 = np.zeros(-(-virtual_size // (cluster_size * self.entries_per_table)), np.uint64)
        self._tables = 0

    @property
    def tables(self) -> int:
        """L2 tables of the disk that were added."""
        return self._tables

    def use_zstd(self, zstd: bool) -> None:  # noqa: FBT001
        """Say whether the compressed clusters that are pointed at are zstd streams."""
        self._zstd = zstd

    def add_table(self, l1_index: int, entries: NDArray[np.uint64]) -> None:
        """Add the L2 table of this L1 entry; offsets in it may be provisional until :meth:`finish`."""
        offset = (1 + self._tables) * self.cluster_size
        write_all(self.fd, tables.to_disk(entries), PREAMBLE_BYTES + offset)
        self._l1[l1_index] = offset
        self._tables += 1

    def provisional_tables(self) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Read the tables back: L1 index and entries, in the order of the guest's addresses."""
        for l1_index in np.flatnonzero(self._l1):
            raw = read_exactly(self.fd, self.cluster_size, PREAMBLE_BYTES + int(self._l1[l1_index]))
            yield int(l1_index), np.frombuffer(raw, ">u8").astype(np.uint64)

    @property
    def copied_offset(self) -> int:
        """Linear offset of the first copied cluster; the L2 tables must all be there."""
        return (1 + self._tables) * self.cluster_size

    def size_with(self, copied_clusters: int, rest_bytes: int) -> int:
        """Return how long the extent of this file is, with so many copied clusters and so much space behind it."""
        return self._layout(copied_clusters, rest_bytes).end

    def finish(
        self,
        translate: Callable[[NDArray[np.uint64]], NDArray[np.uint64]],
        *,
        copied_clusters: int,
        rest_bytes: int,
    ) -> int:
        """Write every table with its final offsets, the counts, and the header last.

        :param translate: from the provisional entries of a table to the final ones, which have no COPIED flags.
        :param copied_clusters: how many clusters were, or will be, written from :attr:`copied_offset` on.
        :param rest_bytes: length of the linear space behind this file, a multiple of the cluster size.
        :return: the extent's length in bytes.
        """
        size, bits = self.cluster_size, self.cluster_bits
        layout = self._layout(copied_clusters, rest_bytes)
        counts = np.zeros((layout.end + rest_bytes) >> bits, np.uint16)
        counts[: layout.end >> bits] = 1
        counts[1 : 1 + self._tables] = 2  # by the disk and by the snapshot
        counts[self.copied_offset >> bits : layout.rest_tables >> bits] = 0
        counts[layout.end >> bits :] = 1  # by the snapshot, behind the disk's end

        for l1_index, entries in self.provisional_tables():
            final = translate(entries)
            write_all(self.fd, tables.to_disk(final), PREAMBLE_BYTES + int(self._l1[l1_index]))
            self._count(counts, final)

        rest = np.arange(layout.end, layout.end + rest_bytes, size, dtype=np.uint64)
        for start in range(0, len(rest), self.entries_per_table):
            part = tables.to_disk(rest[start : start + self.entries_per_table])
            self._write_clusters(layout.rest_tables + start * 8, part)
        rest_l1 = np.arange(layout.rest_tables, layout.l1, size, dtype=np.uint64)
        self._write_clusters(layout.l1, tables.to_disk(self._l1))
        snapshot_l1 = np.concatenate([self._l1, rest_l1])
        self._write_clusters(layout.snapshot_l1, tables.to_disk(snapshot_l1))
        self._write_clusters(layout.snapshots, self._snapshot(layout.snapshot_l1, len(snapshot_l1)))
        blocks = np.arange(layout.refcount_blocks, layout.end, size, dtype=np.uint64)
        self._write_clusters(layout.refcount_table, tables.to_disk(blocks))
        per_block = size // 2
        for number, start in enumerate(range(0, len(counts), per_block)):
            block = tables.pack_refcounts(counts[start : start + per_block].astype(np.int64), 4)
            self._write_clusters(layout.refcount_blocks + number * size, block)
        preamble = _PREAMBLE.format(offset=PREAMBLE_BYTES).encode()
        write_all(self.fd, preamble.ljust(PREAMBLE_BYTES, b"\n"), 0)
        self._write_clusters(0, self._header(layout))
        return layout.end

    def _layout(self, copied_clusters: int, rest_bytes: int) -> _Layout:
        size = self.cluster_size
        rest_tables = self.copied_offset + copied_clusters * size
        tables = -(-(rest_bytes >> self.cluster_bits) // self.entries_per_table)
        l1 = rest_tables + tables * size
        snapshot_l1 = l1 + self._clusters(len(self._l1) * 8)
        snapshots = snapshot_l1 + self._clusters((len(self._l1) + tables) * 8)
        refcount_table = snapshots + size
        # The blocks count themselves and their table too: add until it fits.
        blocks = table_bytes = 0
        while True:
            end = refcount_table + table_bytes + blocks * size
            needed = -(-((end + rest_bytes) >> self.cluster_bits) // (size // 2))
            if needed == blocks and table_bytes == self._clusters(blocks * 8):
                return _Layout(rest_tables, l1, snapshot_l1, snapshots, refcount_table, end - blocks * size, end)
            blocks = needed
            table_bytes = self._clusters(blocks * 8)

    def _clusters(self, length: int) -> int:
        return -(-length // self.cluster_size) * self.cluster_size

    def _write_clusters(self, offset: int, data: bytes) -> None:
        write_all(self.fd, data.ljust(self._clusters(len(data)), b"\0"), PREAMBLE_BYTES + offset)

    def _count(self, counts: NDArray[np.uint16], entries: NDArray[np.uint64]) -> None:
        compressed = (entries & np.uint64(qcow2.OFLAG_COMPRESSED)) != 0
        offsets = entries[~compressed] & np.uint64(qcow2.L2E_OFFSET_MASK)
        np.add.at(counts, (offsets[offsets != 0] >> np.uint64(self.cluster_bits)).astype(np.int64), np.uint16(2))
        if compressed.any():
            start, length = tables.split_compressed(entries[compressed], self.cluster_bits)
            first = start >> self.cluster_bits
            last = (start + length - 1) >> self.cluster_bits
            while len(first):
                np.add.at(counts, first, np.uint16(2))
                more = first < last
                first, last = first[more] + 1, last[more]

    def _snapshot(self, l1_offset: int, l1_entries: int) -> bytes:
        disk_size = l1_entries * self.entries_per_table * self.cluster_size
        identifier = b"1"
        # qcow2 spec, section "Snapshots"; the extra data are VM state size and disk size.
        entry = qcow2.SNAPSHOT_HEADER.pack(
            l1_offset, l1_entries, len(identifier), len(SNAPSHOT_NAME), 0, 0, 0, 0, 16
        )  # fmt: skip
        entry += bytes(8) + disk_size.to_bytes(8, "big") + identifier + SNAPSHOT_NAME
        return entry + bytes(-len(entry) % 8)

    def _header(self, layout: _Layout) -> bytes:
        features = Incompatible.CORRUPT | (Incompatible.COMPRESSION if self._zstd else Incompatible(0))
        return Header(
            version=3,
            cluster_bits=self.cluster_bits,
            size=self.virtual_size,
            l1_size=len(self._l1),
            l1_table_offset=layout.l1,
            refcount_table_offset=layout.refcount_table,
            refcount_table_clusters=(layout.refcount_blocks - layout.refcount_table) >> self.cluster_bits,
            nb_snapshots=1,
            snapshots_offset=layout.snapshots,
            incompatible_features=features,
            compression_type=CompressionType.ZSTD if self._zstd else CompressionType.ZLIB,
        ).encode()


@dataclass(frozen=True)
class _Layout:
    """Linear offsets of the file's parts, in their order."""

    rest_tables: int
    l1: int
    snapshot_l1: int
    snapshots: int
    refcount_table: int
    refcount_blocks: int
    end: int


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write every byte at this offset, however many calls it takes.

    :param descriptor: of the file, open for writing.
    :param data: what is written.
    :param offset: in bytes.
    :raise OperationError: if the file system takes no more.
    """
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        if written == 0:
            raise OperationError("the file system takes no more data")
        view = view[written:]
        offset += written


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """Read exactly so many bytes; a file that ends before is an error.

    :param descriptor: of the file.
    :param length: in bytes.
    :param offset: in bytes.
    :raise OperationError: if the file ends before.
    """
    parts = []
    while length:
        part = os.pread(descriptor, length, offset)
        if not part:
            raise OperationError("a file ended before it should")
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)
