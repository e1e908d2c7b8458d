"""What a qcow2 file looks like on disk: constants, flags and structures, and no logic.

Names are those of the qcow2 specification (QEMU's ``docs/interop/qcow2.txt``) and of ``block/qcow2.h``. All integers of
the format are big endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

QCOW_MAGIC = 0x514649FB  # "QFI\xfb"

# Specification, section "Header": the part that version 2 has, and what version 3 adds to it.
HEADER_V2 = struct.Struct(">IIQIIQIIQQIIQ")
HEADER_V3_TAIL = struct.Struct(">QQQII")
HEADER_V2_LENGTH = 72
HEADER_V3_LENGTH = 104
#: With the compression type (one byte) and its padding.
HEADER_FULL_LENGTH = 112

MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
MAX_REFCOUNT_ORDER = 6
#: Extended L2 entries need subclusters of at least a sector: clusters of 16 KiB.
MIN_EXTENDED_L2_CLUSTER_BITS = 14
SUBCLUSTERS_PER_CLUSTER = 32

# Limits that QEMU puts on an image (block/qcow2.h, block/qcow2.c); beyond them it refuses, and so do we.
MAX_L1_BYTES = 32 << 20
MAX_REFTABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MAX_SNAPSHOT_EXTRA_BYTES = 1024
MAX_BITMAPS = 65535
MAX_BITMAP_NAME = 1023
MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * (24 + MAX_BITMAP_NAME)
MAX_BACKING_NAME = 1023

SECTOR_SIZE = 512

L1E_OFFSET_MASK = 0x00FFFFFFFFFFFE00
L2E_OFFSET_MASK = 0x00FFFFFFFFFFFE00
REFT_OFFSET_MASK = 0xFFFFFFFFFFFFFE00
OFLAG_COPIED = 1 << 63
OFLAG_COMPRESSED = 1 << 62
OFLAG_ZERO = 1 << 0
#: Of the second half of an extended L2 entry: subclusters 0 to 31 are allocated / read as zeros.
L2_BITMAP_ALL_ALLOC = 0x00000000FFFFFFFF
L2_BITMAP_ALL_ZEROES = 0xFFFFFFFF00000000

EXTENSION = struct.Struct(">II")
FEATURE_NAME = struct.Struct(">BB46s")
BITMAPS_EXTENSION = struct.Struct(">IIQQ")
BITMAP_ENTRY = struct.Struct(">QIIBBHI")
SNAPSHOT_HEADER = struct.Struct(">QIHHIIQII")


class CryptMethod(IntEnum):
    """How the payload is encrypted."""

    NONE = 0
    AES = 1
    LUKS = 2


class CompressionType(IntEnum):
    """How compressed clusters are compressed."""

    ZLIB = 0
    ZSTD = 1


class Incompatible(IntFlag):
    """Features that a reader must know, or leave the image alone."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(IntFlag):
    """Features that a reader may ignore."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(IntFlag):
    """Features that a writer that does not know them must clear."""

    BITMAPS = 1 << 0
    DATA_FILE_RAW = 1 << 1


class ExtensionType(IntEnum):
    """Header extensions that are understood; others are kept out of the way, as the specification asks."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    CRYPTO_HEADER = 0x0537BE77
    DATA_FILE = 0x44415441


class Kind(IntEnum):
    """What one layer (or a whole chain) says about one cluster or subcluster."""

    #: The layer says nothing: the answer is further down, or zeros where nothing is.
    UNALLOCATED = 0
    #: Reads as zeros, no host cluster.
    ZERO_PLAIN = 1
    #: Reads as zeros, and a host cluster is set aside.
    ZERO_ALLOC = 2
    #: Data at the host offset.
    DATA = 3
    #: A compressed cluster that starts at the host offset.
    COMPRESSED = 4


#: (feature set, bit) -> the name QEMU writes into the feature name table; feature sets in the table's numbering.
FEATURE_NAMES = {
    (0, 0): "dirty bit",
    (0, 1): "corrupt bit",
    (0, 2): "external data file",
    (0, 3): "compression type",
    (0, 4): "extended L2 entries",
    (1, 0): "lazy refcounts",
    (2, 0): "bitmaps",
    (2, 1): "raw external data",
}
