"""What is fuzzed: bytes in, and nothing but a clean error or an answer out."""

import contextlib
import os

from chainlift import open_chain
from chainlift.chain.extents import map_json
from chainlift.chain.names import parse_name
from chainlift.chain.summarize import summarize
from chainlift.errors import ChainliftError, ImageError
from chainlift.qcow2.header import Header, parse_header
from chainlift.qcow2.layout import Autoclear, CompressionType, Incompatible

_MAP_ENTRIES = 2000


def header(data: bytes) -> None:
    """A header, parsed; one that parses must come out again as it was understood."""
    try:
        parsed = parse_header(data, "fuzz")
    except ImageError as error:
        assert str(error).isprintable()
        return
    with contextlib.suppress(ValueError):  # what does not fit into a cluster of 512 bytes
        again = parse_header(parsed.encode(), "fuzz")
        assert (again.virtual_size, again.l1_size) == (parsed.virtual_size, parsed.l1_size)
        assert again.backing_file == parsed.backing_file


def tables(data: bytes) -> None:
    """A file with a sound header whose L1 table, L2 tables and content are the fuzzer's, read in every way."""
    if len(data) < 2:
        return
    flags, cluster_bits = data[0], (9, 10, 14, 16)[data[1] & 3]
    extended = bool(flags & 1) and cluster_bits >= 14
    incompatible = (Incompatible.EXTENDED_L2 if extended else Incompatible(0)) | (
        Incompatible.COMPRESSION if flags & 2 else Incompatible(0)
    )
    entries = (1 << cluster_bits) // (16 if extended else 8)
    head = Header(
        version=2 if flags & 4 and not incompatible else 3,
        cluster_bits=cluster_bits,
        size=((data[1] >> 2) * entries + (flags >> 3)) << cluster_bits,
        l1_size=64,
        l1_table_offset=1 << cluster_bits,
        refcount_table_offset=1 << cluster_bits,
        refcount_table_clusters=1,
        incompatible_features=incompatible,
        autoclear_features=Autoclear(0),
        compression_type=CompressionType.ZSTD if flags & 2 else CompressionType.ZLIB,
    )
    whole(head.encode() + data[2:])


def whole(content: bytes) -> None:
    """A whole file, in memory, opened as a chain and read in every way."""
    descriptor = os.memfd_create("image")
    try:
        os.write(descriptor, content)
        with contextlib.suppress(ChainliftError), open_chain(f"/proc/self/fd/{descriptor}", format="qcow2") as chain:
            summarize(chain)
            for _ in zip(map_json(chain), range(_MAP_ENTRIES), strict=False):
                pass
            for offset in range(0, chain.virtual_size, max(1, chain.virtual_size // 8)):
                with contextlib.suppress(ImageError):
                    length = min(4096, chain.virtual_size - offset)
                    assert len(chain.read(offset, length)) == length
    finally:
        os.close(descriptor)


def name(data: bytes) -> None:
    """A backing file name."""
    try:
        reference = parse_name(os.fsdecode(data), named_in="/images/top.qcow2")
    except ChainliftError as error:
        assert str(error).isprintable()
        return
    assert reference.path
    assert "\0" not in reference.path


TARGETS = {"header": header, "tables": tables, "name": name}
