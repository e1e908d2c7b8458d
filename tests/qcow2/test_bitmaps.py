"""Bitmaps that QEMU has written, read; and what a hostile file says of them, refused."""

import random
import struct
import subprocess

import numpy as np
import pytest

from chainlift.errors import ImageError
from chainlift.qcow2 import layout
from chainlift.qcow2.bitmaps import count_set_bits, list_bitmaps, read_bits
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header
from chainlift.qcow2.layout import ExtensionType
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration
K64 = 65536
MIB = 1 << 20


@pytest.fixture
def path(tmp_path):
    """An image of 9 MiB in clusters of 512 bytes with two bitmaps; the second one has a bit for each 512 bytes."""
    path = tmp_path / "image"
    write_image(path, virtual_size=9 * MIB, cluster_size=512)
    subprocess.run(["qemu-img", "bitmap", "--add", "--disable", "-g", "1M", path, "coarse"], check=True)
    subprocess.run(["qemu-img", "bitmap", "--add", "-g", "512", path, "fine"], check=True)
    commands = ["-c", "write 1M 1k", "-c", "write 8M 1M"]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, path], check=True, stdout=subprocess.DEVNULL)
    return path


def opened(path):
    file = ImageFile(str(path))
    return Image(file, read_header(file))


def bits_of(image, bitmap):
    bits = np.zeros(-(-image.header.virtual_size // bitmap.granularity), bool)
    for first, values in read_bits(image, bitmap):
        bits[first : first + image.header.cluster_size * 8] = values
    return bits


def test_bitmaps_are_listed_with_their_bits(path):
    image = opened(path)
    coarse, fine = sorted(list_bitmaps(image), key=lambda bitmap: bitmap.name)
    assert (coarse.name, coarse.granularity, coarse.auto, coarse.in_use) == ("coarse", MIB, False, False)
    assert (fine.name, fine.granularity, fine.auto, fine.in_use) == ("fine", 512, True, False)
    assert count_set_bits(image, coarse) == 0  # disabled when it was written to
    assert np.flatnonzero(bits_of(image, fine)).tolist() == [2048, 2049, *range(16384, 18432)]
    assert count_set_bits(image, fine) == 2050


def test_an_entry_that_says_all_ones_counts_to_the_disks_end(path):
    image = opened(path)
    (fine,) = (bitmap for bitmap in list_bitmaps(image) if bitmap.name == "fine")
    with path.open("r+b") as file:
        file.seek(fine.table_offset)
        file.write(struct.pack(">Q", 1) * fine.table_size)
    assert count_set_bits(image, fine) == 9 * MIB // 512
    assert bits_of(image, fine).all()


def test_stale_bitmaps_are_none(path):
    with path.open("r+b") as file:
        file.seek(95)  # the autoclear bit of a writer that knew no bitmaps
        file.write(b"\0")
    assert list_bitmaps(opened(path)) == []


def directory_of(path):
    content = opened(path).header.extensions[ExtensionType.BITMAPS]
    _, _, size, offset = layout.BITMAPS_EXTENSION.unpack(content)
    return offset, size


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (16, b"\2", "unknown type 2"),
        (17, b"\x08", "malformed"),
        (17, b"\x20", "malformed"),
        (18, b"\0\0", "malformed"),
        (18, b"\x03\xff", "malformed"),
        (20, b"\xff\xff\xff\xff", "malformed"),
    ],
)
def test_a_directory_that_lies_is_refused(path, at, data, match):
    offset, _ = directory_of(path)
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)
    with pytest.raises(ImageError, match=match):
        list_bitmaps(opened(path))


@pytest.mark.parametrize(
    ("at", "data", "match"),
    [
        (0, struct.pack(">Q", 1 << 40), "table is cut off"),
        (0, struct.pack(">Q", 513), "table is not aligned"),
        (0, struct.pack(">Q", 1 << 63), "table is not aligned"),
        (8, struct.pack(">I", 1), r"1 entries, the disk asks for"),
        (8, struct.pack(">I", 0xFFFFFFFF), r"4294967295 entries, the disk asks for"),
    ],
)
def test_a_table_that_lies_is_refused(path, at, data, match):
    bitmaps = list_bitmaps(opened(path))
    number = [bitmap.name for bitmap in bitmaps].index("fine")
    # The entries lie one after the other, padded to 8 bytes.
    offset = directory_of(path)[0] + sum(-(-(24 + len(bitmap.name)) // 8) * 8 for bitmap in bitmaps[:number])
    with path.open("r+b") as file:
        file.seek(offset + at)
        file.write(data)
    image = opened(path)
    with pytest.raises(ImageError, match=match):
        count_set_bits(image, list_bitmaps(image)[number])


def test_a_cluster_that_is_not_there_is_refused(path):
    image = opened(path)
    (fine,) = (bitmap for bitmap in list_bitmaps(image) if bitmap.name == "fine")
    with path.open("r+b") as file:
        file.seek(fine.table_offset)
        file.write(struct.pack(">Q", 1 << 40))
    with pytest.raises(ImageError, match="there is no cluster at 0x10000000000"):
        count_set_bits(image, fine)


def test_no_damage_to_a_directory_does_harm(path):
    offset, size = directory_of(path)
    whole = path.read_bytes()
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            damaged[offset + rng.randrange(size)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            image = opened(path)
            for bitmap in list_bitmaps(image):
                count_set_bits(image, bitmap)
        except ImageError:
            refused += 1
    assert refused > 100
