"""Compressed clusters: raw deflate with a 4 KiB window, or zstd (specification, section "Compressed Clusters")."""

from __future__ import annotations

import zlib

from chainlift.qcow2.layout import CompressionType

#: As QEMU's block/qcow2-threads.c: raw deflate, a window of 2^12 bytes.
_ZLIB_WINDOW_BITS = -12
#: More than any cluster has; a stream that asks for a larger window wants our memory, not to be read.
_ZSTD_WINDOW_BYTES = 8 << 20


def compress_cluster(data: bytes, kind: CompressionType) -> bytes | None:
    """Compress one cluster; None where it would not get smaller, and has to be stored as it is."""
    if kind is CompressionType.ZSTD:
        import zstandard

        packed = zstandard.ZstdCompressor(level=3).compress(data)
    else:
        deflate = zlib.compressobj(zlib.Z_DEFAULT_COMPRESSION, zlib.DEFLATED, _ZLIB_WINDOW_BITS)
        packed = deflate.compress(data) + deflate.flush()
    return packed if len(packed) < len(data) else None


def decompress_cluster(data: bytes, cluster_size: int, kind: CompressionType) -> bytes:
    """Decompress one cluster.

    :param data: from the descriptor's host offset to the end of its last sector; what follows the stream is ignored.
    :raise ValueError: if the stream does not hold exactly one cluster. Never gives, or allocates, more than that.
    """
    if kind is CompressionType.ZSTD:
        import zstandard

        try:
            stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).stream_reader(
                data, read_across_frames=True
            )
            whole = stream.read(cluster_size)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    else:
        try:
            whole = zlib.decompressobj(_ZLIB_WINDOW_BITS).decompress(data, cluster_size)
        except zlib.error as error:
            raise ValueError(str(error)) from error
    if len(whole) != cluster_size:
        raise ValueError(f"holds {len(whole)} bytes instead of {cluster_size}")
    return bytes(whole)
