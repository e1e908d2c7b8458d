"""Headers, to bytes and back, and as QEMU writes them."""

import subprocess

import pytest

from chainlift.errors import ImageError
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.header import Header, parse_header
from chainlift.qcow2.image import Image, read_header
from chainlift.qcow2.layout import Autoclear, Compatible, CompressionType, CryptMethod, Incompatible

MINIMAL = {
    "cluster_bits": 16, "size": 1 << 30, "l1_size": 2, "l1_table_offset": 65536, "refcount_table_offset": 131072,
    "refcount_table_clusters": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"version": 2, "backing_file": b"base.qcow2", "backing_format": "qcow2"},
        {"version": 3, "backing_file": b"x" * 1023},
        {"version": 3, "data_file": b"data.raw", "incompatible_features": Incompatible.DATA_FILE},
        {"version": 3, "refcount_order": 0, "compatible_features": Compatible.LAZY_REFCOUNTS},
        {"version": 3, "incompatible_features": Incompatible.COMPRESSION, "compression_type": CompressionType.ZSTD},
    ],
)
def test_what_is_written_is_read_back(more):
    header = Header(**MINIMAL, **more)
    parsed = parse_header(header.encode(), "x")
    for name in (
        "version",
        "size",
        "backing_file",
        "backing_format",
        "data_file",
        "refcount_order",
        "compression_type",
    ):
        assert getattr(parsed, name) == getattr(header, name)


def test_unknown_extensions_and_compatible_bits_are_no_obstacle():
    header = Header(version=3, **MINIMAL, extensions={0x12345678: b"later"})
    data = bytearray(header.encode())
    data[80:96] = b"\xff" * 16  # compatible and autoclear features
    parsed = parse_header(bytes(data), "x")
    assert parsed.extensions[0x12345678] == b"later"
    assert parsed.autoclear_features == Autoclear.BITMAPS | Autoclear.DATA_FILE_RAW


def test_a_header_longer_than_ours_is_read_where_its_length_says():
    data = bytearray(Header(version=3, **MINIMAL, backing_format="raw").encode())
    data = data[:112] + bytes(40) + data[112:-40]
    data[100:104] = (152).to_bytes(4, "big")
    assert parse_header(bytes(data), "x").backing_format == "raw"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("compat=0.10", {"version": 2, "refcount_order": 4}),
        ("cluster_size=512,refcount_bits=1", {"cluster_bits": 9, "refcount_order": 0}),
        ("cluster_size=2M,extended_l2=on", {"cluster_bits": 21, "subcluster_size": 65536}),
        ("compression_type=zstd", {"compression_type": CompressionType.ZSTD}),
        ("lazy_refcounts=on", {"compatible_features": Compatible.LAZY_REFCOUNTS}),
    ],
)
def test_qemus_headers_are_understood(tmp_path, options, expected):
    path = tmp_path / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "1G"], check=True, timeout=60)
    header = read_header(ImageFile(str(path)))
    assert {name: getattr(header, name) for name in expected} == expected
    assert header.virtual_size == 1 << 30


def test_a_size_that_is_no_multiple_of_a_sector_is_cut_as_qemu_cuts_it():
    assert Header(version=3, **{**MINIMAL, "size": 1000}).virtual_size == 512


def test_an_l1_table_past_the_end_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(Header(version=3, **MINIMAL).encode())
    file = ImageFile(str(path))
    with pytest.raises(ImageError, match="l1_table_offset"):
        Image(file, read_header(file))


def test_encryption_is_named():
    assert (
        parse_header(Header(version=2, **MINIMAL, crypt_method=CryptMethod.AES).encode(), "x").crypt_method.name
        == "AES"
    )
