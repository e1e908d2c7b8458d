"""A qcow2 image's header and its extensions, as a value: read from bytes, written to bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.layout import Autoclear, Compatible, CompressionType, CryptMethod, ExtensionType, Incompatible


@dataclass(frozen=True)
class Header:
    """The header of one image. Names are the specification's; sizes and offsets are in bytes."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    crypt_method: CryptMethod = CryptMethod.NONE
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible_features: Incompatible = field(default=Incompatible(0))
    compatible_features: Compatible = field(default=Compatible(0))
    autoclear_features: Autoclear = field(default=Autoclear(0))
    refcount_order: int = 4
    compression_type: CompressionType = CompressionType.ZLIB
    #: As it stands in the header, undecoded: file names are bytes. None: no backing file.
    backing_file: bytes | None = None
    backing_format: str | None = None
    data_file: bytes | None = None
    #: Type -> content of every header extension that occurs, the unknown ones too.
    extensions: dict[int, bytes] = field(default_factory=dict)

    @cached_property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @cached_property
    def extended_l2(self) -> bool:
        """Whether an L2 entry has 16 bytes and describes 32 subclusters."""
        return Incompatible.EXTENDED_L2 in self.incompatible_features

    @cached_property
    def l2_entry_size(self) -> int:
        """Bytes in an L2 entry."""
        return 16 if self.extended_l2 else 8

    @cached_property
    def l2_entries(self) -> int:
        """Entries in an L2 table (a table fills one cluster)."""
        return self.cluster_size // self.l2_entry_size

    @cached_property
    def subcluster_size(self) -> int:
        """Bytes in the smallest unit that can be allocated: a subcluster, or a cluster where there are none."""
        return self.cluster_size // layout.SUBCLUSTERS_PER_CLUSTER if self.extended_l2 else self.cluster_size

    @cached_property
    def virtual_size(self) -> int:
        """Bytes of the disk a guest sees: QEMU counts whole sectors."""
        return self.size // layout.SECTOR_SIZE * layout.SECTOR_SIZE

    @cached_property
    def has_data_file(self) -> bool:
        """Whether guest data lies in a file of its own."""
        return Incompatible.DATA_FILE in self.incompatible_features

    def encode(self) -> bytes:
        """Return the header cluster: header, extensions, backing file name, padded with zeros.

        :raise ValueError: if they do not fit into one cluster.
        """
        extensions = bytearray()
        for kind, content in self._extensions_to_write().items():
            extensions += layout.EXTENSION.pack(kind, len(content)) + content + bytes(-len(content) % 8)
        extensions += layout.EXTENSION.pack(ExtensionType.END, 0)
        length = layout.HEADER_V2_LENGTH if self.version == 2 else layout.HEADER_FULL_LENGTH
        name_offset = length + len(extensions) if self.backing_file is not None else 0
        fixed = layout.HEADER_V2.pack(
            layout.QCOW_MAGIC, self.version, name_offset, len(self.backing_file or b""), self.cluster_bits, self.size,
            self.crypt_method, self.l1_size, self.l1_table_offset, self.refcount_table_offset,
            self.refcount_table_clusters, self.nb_snapshots, self.snapshots_offset,
        )  # fmt: skip
        if self.version >= 3:
            fixed += layout.HEADER_V3_TAIL.pack(
                self.incompatible_features, self.compatible_features, self.autoclear_features,
                self.refcount_order, layout.HEADER_FULL_LENGTH,
            )  # fmt: skip
            fixed += bytes([self.compression_type]) + bytes(7)
        whole = fixed + extensions + (self.backing_file or b"")
        if len(self.backing_file or b"") > layout.MAX_BACKING_NAME:
            raise ValueError(f"a backing file name has at most {layout.MAX_BACKING_NAME} bytes")
        if len(whole) > self.cluster_size:
            raise ValueError("header, extensions and backing file name do not fit into one cluster")
        return whole.ljust(self.cluster_size, b"\0")

    def _extensions_to_write(self) -> dict[int, bytes]:
        written = {kind: content for kind, content in self.extensions.items() if kind not in _NAMED_EXTENSIONS}
        if self.backing_format is not None:
            written[ExtensionType.BACKING_FORMAT] = self.backing_format.encode()
        if self.data_file is not None:
            written[ExtensionType.DATA_FILE] = self.data_file
        # Version 2 has no features to name; in a cluster of 512 bytes the table would leave no room for a backing name.
        if self.version >= 3 and self.cluster_bits >= 11:
            written[ExtensionType.FEATURE_NAMES] = b"".join(
                layout.FEATURE_NAME.pack(kind, bit, name.encode()) for (kind, bit), name in layout.FEATURE_NAMES.items()
            )
        return written


_KNOWN_INCOMPATIBLE = 0b11111
# As plain integers: a flag's own arithmetic takes longer than all the rest of a header.
_DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (
    flag.value for flag in (Incompatible.DATA_FILE, Incompatible.COMPRESSION, Incompatible.EXTENDED_L2)
)
_NAMED_EXTENSIONS = (ExtensionType.BACKING_FORMAT, ExtensionType.DATA_FILE, ExtensionType.FEATURE_NAMES)


def parse_header(data: bytes, path: str) -> Header:
    """Read a header from the first bytes of an image.

    :param data: the first cluster, or as much of it as the file has; 2 MiB are always enough.
    :param path: the file, for errors.
    :raise ImageError: if it is not a qcow2 header, or one that may not be read (an unknown incompatible feature).
    """
    if len(data) < layout.HEADER_V2_LENGTH or data[:4] != layout.QCOW_MAGIC.to_bytes(4, "big"):
        raise ImageError("is not a qcow2 image", path=path)
    (
        _, version, backing_offset, backing_length, cluster_bits, size, crypt_method, l1_size, l1_offset,
        reftable_offset, reftable_clusters, nb_snapshots, snapshots_offset,
    ) = layout.HEADER_V2.unpack_from(data)  # fmt: skip
    if version not in (2, 3):
        raise ImageError(f"qcow2 version {version} is not supported", path=path)
    if not layout.MIN_CLUSTER_BITS <= cluster_bits <= layout.MAX_CLUSTER_BITS:
        raise ImageError(f"header field cluster_bits is {cluster_bits}, not 9 to 21", path=path)
    cluster = data[: 1 << cluster_bits]
    incompatible = compatible = autoclear = 0
    refcount_order, header_length, compression = 4, layout.HEADER_V2_LENGTH, 0
    if version == 3:
        if len(cluster) < layout.HEADER_V3_LENGTH:
            raise ImageError("the header is cut off", path=path)
        incompatible, compatible, autoclear, refcount_order, header_length = layout.HEADER_V3_TAIL.unpack_from(
            cluster, layout.HEADER_V2_LENGTH
        )
        if not layout.HEADER_V3_LENGTH <= header_length <= len(cluster):
            raise ImageError(f"header field header_length is {header_length}", path=path)
        if header_length > layout.HEADER_V3_LENGTH:
            compression = cluster[layout.HEADER_V3_LENGTH]
    if backing_offset > len(cluster):
        raise ImageError(f"header field backing_file_offset is {backing_offset}, outside the first cluster", path=path)
    extensions = _parse_extensions(cluster, header_length, backing_offset or len(cluster), path)
    _check_features(cluster_bits, incompatible, compression, extensions, path)
    _check_geometry(cluster_bits, size, l1_size, refcount_order, crypt_method, incompatible, path)
    _check_tables(1 << cluster_bits, l1_size, l1_offset, reftable_offset, reftable_clusters, path)
    if nb_snapshots > layout.MAX_SNAPSHOTS:
        raise ImageError(f"header field nb_snapshots is {nb_snapshots}, more than {layout.MAX_SNAPSHOTS}", path=path)
    return Header(
        version=version,
        cluster_bits=cluster_bits,
        size=size,
        l1_size=l1_size,
        l1_table_offset=l1_offset,
        refcount_table_offset=reftable_offset,
        refcount_table_clusters=reftable_clusters,
        crypt_method=CryptMethod(crypt_method),
        nb_snapshots=nb_snapshots,
        snapshots_offset=snapshots_offset,
        incompatible_features=Incompatible(incompatible),
        # Bits without a name are allowed in these two, and of no consequence to a reader.
        compatible_features=Compatible(compatible & 1),
        autoclear_features=Autoclear(autoclear & 3),
        refcount_order=refcount_order,
        compression_type=CompressionType(compression),
        backing_file=_parse_backing_name(cluster, backing_offset, backing_length, path),
        backing_format=_text(extensions.get(ExtensionType.BACKING_FORMAT)),
        data_file=extensions.get(ExtensionType.DATA_FILE) if incompatible & _DATA_FILE else None,
        extensions=extensions,
    )


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace")


def _parse_backing_name(cluster: bytes, offset: int, length: int, path: str) -> bytes | None:
    if offset == 0 or length == 0:
        return None
    if length > layout.MAX_BACKING_NAME:
        raise ImageError(f"header field backing_file_size is {length}, more than {layout.MAX_BACKING_NAME}", path=path)
    if offset + length > len(cluster):
        raise ImageError("the backing file name reaches beyond the first cluster", path=path)
    name = cluster[offset : offset + length]
    # QEMU handles the name as a C string.
    return name.partition(b"\0")[0] or None


def _parse_extensions(cluster: bytes, offset: int, end: int, path: str) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + layout.EXTENSION.size <= end:
        kind, length = layout.EXTENSION.unpack_from(cluster, offset)
        offset += layout.EXTENSION.size
        if kind == ExtensionType.END:
            break
        if length > end - offset:
            raise ImageError(f"header extension 0x{kind:08x} has a length of {length}, beyond its space", path=path)
        found[kind] = cluster[offset : offset + length]
        offset += (length + 7) & ~7
    return found


def _check_features(
    cluster_bits: int, incompatible: int, compression: int, extensions: dict[int, bytes], path: str
) -> None:
    unknown = incompatible & ~_KNOWN_INCOMPATIBLE
    if unknown:
        names = feature_names(extensions.get(ExtensionType.FEATURE_NAMES, b""))
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        text = ", ".join(f"bit {bit} ({names[0, bit]})" if (0, bit) in names else f"bit {bit}" for bit in bits)
        raise ImageError(f"uses incompatible features that are not supported: {text}", path=path)
    if bool(incompatible & _COMPRESSION) != (compression != CompressionType.ZLIB):
        raise ImageError(f"header field compression_type is {compression}, against its feature bit", path=path)
    if compression > CompressionType.ZSTD:
        raise ImageError(f"compression type {compression} is not supported", path=path)
    if incompatible & _EXTENDED_L2 and cluster_bits < layout.MIN_EXTENDED_L2_CLUSTER_BITS:
        raise ImageError("has extended L2 entries in clusters of less than 16 KiB", path=path)


def _check_geometry(
    cluster_bits: int, size: int, l1_size: int, refcount_order: int, crypt_method: int, incompatible: int, path: str
) -> None:
    if refcount_order > layout.MAX_REFCOUNT_ORDER:
        raise ImageError(f"header field refcount_order is {refcount_order}, more than 6", path=path)
    if crypt_method > CryptMethod.LUKS:
        raise ImageError(f"header field crypt_method is {crypt_method}", path=path)
    if size >= 1 << 63:
        raise ImageError(f"header field size is {size}, more than 2^63 - 1", path=path)
    if l1_size * 8 > layout.MAX_L1_BYTES:
        raise ImageError(f"header field l1_size is {l1_size}, more than 4194304 entries", path=path)
    entry_bits = 4 if incompatible & _EXTENDED_L2 else 3
    table_span = 1 << (2 * cluster_bits - entry_bits)
    if l1_size < -(-size // table_span):
        raise ImageError(f"header field l1_size is {l1_size}, too small for a disk of {size} bytes", path=path)


def _check_tables(
    cluster_size: int, l1_size: int, l1_offset: int, reftable_offset: int, reftable_clusters: int, path: str
) -> None:
    if reftable_clusters * cluster_size > layout.MAX_REFTABLE_BYTES:
        raise ImageError(f"header field refcount_table_clusters is {reftable_clusters}, more than 8 MiB", path=path)
    for name, offset, used in (
        ("l1_table_offset", l1_offset, l1_size > 0),
        ("refcount_table_offset", reftable_offset, reftable_clusters > 0),
    ):
        if offset % cluster_size or offset >= 1 << 62 or (used and offset == 0):
            raise ImageError(f"header field {name} is {offset:#x}, not a cluster in the file", path=path)


def feature_names(table: bytes) -> dict[tuple[int, int], str]:
    """Return what a feature name table says: (feature set, bit) -> name."""
    found = {}
    for offset in range(0, len(table) - layout.FEATURE_NAME.size + 1, layout.FEATURE_NAME.size):
        kind, bit, name = layout.FEATURE_NAME.unpack_from(table, offset)
        found[kind, bit] = name.rstrip(b"\0").decode("utf-8", "backslashreplace")
    return found
