"""L2 entries and refcounts as arrays: put together, taken apart, laid out as the bytes that a file holds.

Everything here is arithmetic on numpy arrays of native uint64; nothing opens a file. The specification's sections are
"Cluster mapping", "Extended L2 Entries" and "Host cluster management".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2 import layout

if TYPE_CHECKING:
    from numpy.typing import NDArray


def standard_entries(host_offset: NDArray[np.int64], *, copied: bool) -> NDArray[np.uint64]:
    """Return L2 entries of standard clusters at these host offsets (bytes, multiples of the cluster).

    :param copied: set the COPIED flag: the refcount of each cluster is exactly one.
    """
    entries = host_offset.astype(np.uint64)
    return entries | np.uint64(layout.OFLAG_COPIED) if copied else entries


def compressed_entries(
    host_offset: NDArray[np.int64], length: NDArray[np.int64], cluster_bits: int
) -> NDArray[np.uint64]:
    """Return L2 entries of compressed clusters.

    :param host_offset: where each begins, in bytes; needs no alignment.
    :param length: bytes that each has; stored as sectors, which may reach beyond them.
    :raise ValueError: if an offset or a length does not fit into the descriptor.
    """
    offset_bits = compressed_offset_bits(cluster_bits)
    first = host_offset // layout.SECTOR_SIZE
    additional = (host_offset + length - 1) // layout.SECTOR_SIZE - first
    if host_offset.size and int(host_offset.max()) >> offset_bits:
        raise ValueError(f"a compressed cluster's host offset has at most {offset_bits} bits")
    if additional.size and int(additional.max()) >> (62 - offset_bits):
        raise ValueError("a compressed cluster has at most two clusters of sectors")
    sectors = additional.astype(np.uint64) << np.uint64(offset_bits)
    return host_offset.astype(np.uint64) | sectors | np.uint64(layout.OFLAG_COMPRESSED)


def split_compressed(entries: NDArray[np.uint64], cluster_bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return host offset and length in bytes of compressed entries; the length is to the end of the last sector."""
    offset_bits = np.uint64(compressed_offset_bits(cluster_bits))
    offset = (entries & ((np.uint64(1) << offset_bits) - np.uint64(1))).astype(np.int64)
    descriptor = entries & np.uint64(layout.OFLAG_COMPRESSED - 1)
    sectors = (descriptor >> offset_bits).astype(np.int64) + 1
    return offset, sectors * layout.SECTOR_SIZE - offset % layout.SECTOR_SIZE


def compressed_offset_bits(cluster_bits: int) -> int:
    """Return how many bits of a compressed descriptor are the host offset: the smaller the clusters, the more."""
    return 62 - (cluster_bits - 8)


def pack_l2(
    clusters: NDArray[np.int64],
    entries: NDArray[np.uint64],
    l2_entries: int,
    bitmaps: NDArray[np.uint64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Lay entries out as the L2 tables that hold them.

    :param clusters: guest cluster numbers, sorted, each once.
    :param entries: one L2 entry each.
    :param l2_entries: entries in a table.
    :param bitmaps: the subcluster bitmap each, where the image has extended L2 entries.
    :return: the L1 indexes that get a table, and the tables: shape (tables, 64-bit words in a table), native order.
    """
    words = 1 if bitmaps is None else 2
    l1_index = clusters // l2_entries
    is_first = np.ones(len(clusters), dtype=bool)
    is_first[1:] = l1_index[1:] != l1_index[:-1]
    row = np.cumsum(is_first) - 1
    used = l1_index[is_first]
    tables = np.zeros((len(used), l2_entries, words), dtype=np.uint64)
    column = clusters - l1_index * l2_entries
    tables[row, column, 0] = entries
    if bitmaps is not None:
        tables[row, column, 1] = bitmaps
    return used, tables.reshape(len(used), l2_entries * words)


def pack_refcounts(counts: NDArray[np.int64], refcount_order: int) -> bytes:
    """Return refcounts as a refcount block holds them; widths below a byte fill it from its least significant bit.

    :raise ValueError: if a count does not fit.
    """
    bits = 1 << refcount_order
    if counts.size and int(counts.max()) >> min(bits, 62):
        raise ValueError(f"a refcount of {int(counts.max())} does not fit into {bits} bits")
    if bits >= 8:
        return counts.astype(f">u{bits // 8}").tobytes()
    per_byte = 8 // bits
    padded = np.zeros(-(-len(counts) // per_byte) * per_byte, dtype=np.uint8)
    padded[: len(counts)] = counts
    shifts = (np.arange(per_byte, dtype=np.uint8) * bits).astype(np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(padded.reshape(-1, per_byte) << shifts, axis=1)
    return packed.tobytes()


def unpack_refcounts(data: bytes, refcount_order: int) -> NDArray[np.uint64]:
    """Return the refcounts that the bytes of a refcount block say."""
    bits = 1 << refcount_order
    if bits >= 8:
        return np.frombuffer(data, dtype=f">u{bits // 8}").astype(np.uint64)
    shifts = (np.arange(8 // bits, dtype=np.uint8) * bits).astype(np.uint8)
    raw = np.frombuffer(data, dtype=np.uint8)[:, None] >> shifts
    return (raw & np.uint8((1 << bits) - 1)).ravel().astype(np.uint64)


def to_disk(words: NDArray[np.uint64]) -> bytes:
    """Return native 64-bit words as the format's big-endian bytes."""
    return words.astype(">u8").tobytes()
