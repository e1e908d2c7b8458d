"""Block devices: what is written when one is, and who has it."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from tests.support.need import missing

from chainlift.host.block_device import made_of, openers, write_zeros

MIB = 1 << 20


def run(*words):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True)


@pytest.fixture
def loop(tmp_path):
    made = []

    def make(file, *options):
        done = run("losetup", "--show", *options, "-f", file)
        if done.returncode:
            missing("loop", "no loop device can be made here (needs root)")
        made.append(done.stdout.strip())
        return Path(made[-1])

    yield make
    for device in reversed(made):
        assert run("losetup", "-d", device).returncode == 0


def identity(path):
    found = path.stat()
    return (found.st_rdev,) if path.is_block_device() else (found.st_dev, found.st_ino)


def test_a_loop_device_is_made_of_its_file_and_what_that_is_made_of(tmp_path, loop):
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * MIB))
    lower = loop(file)
    upper = loop(lower)
    assert made_of(lower.stat().st_rdev) == {identity(lower), identity(file)}
    assert made_of(upper.stat().st_rdev) == {identity(upper), identity(lower), identity(file)}


def test_a_partition_is_made_of_its_disk_and_not_of_the_ones_beside_it(tmp_path, loop):
    file = tmp_path / "file"
    entries = b"".join(struct.pack("<4xB3xII", 0x83, start, 2048) for start in (2048, 4096))
    file.write_bytes((bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa").ljust(8 * MIB, b"\0"))
    disk = loop(file, "-P")
    numbers = []
    for part in (1, 2):
        place = Path(f"/sys/block/{disk.name}/{disk.name}p{part}/dev")
        if not place.exists():
            missing("partitions")
        numbers.append(os.makedev(*map(int, place.read_text().split(":"))))
    assert made_of(numbers[0]) == {(numbers[0],), identity(disk), identity(file)}
    assert made_of(disk.stat().st_rdev) == {identity(disk), identity(file), *((number,) for number in numbers)}


def test_who_has_a_device_open_is_named(tmp_path, loop):
    (tmp_path / "file").write_bytes(bytes(MIB))
    device = loop(tmp_path / "file")
    number = device.stat().st_rdev
    with device.open("rb"):
        assert openers(number) == []
        with subprocess.Popen(["sleep", "60"], stdin=device.open("rb")) as process:
            assert openers(number) == [f"sleep (process {process.pid})"]
            process.kill()


@pytest.mark.parametrize(("start", "end"), [(0, MIB), (512, 1024), (512, 9000), (4096, 8192), (3584, 4608), (100, 100)])
def test_zeros_are_written_from_byte_to_byte(tmp_path, loop, start, end):
    (tmp_path / "file").write_bytes(b"x" * MIB)
    device = loop(tmp_path / "file")
    with device.open("r+b", buffering=0) as file:
        write_zeros(file.fileno(), start, end)
        os.fsync(file.fileno())
    expected = b"x" * start + bytes(end - start) + b"x" * (MIB - end)
    assert (tmp_path / "file").read_bytes() == device.read_bytes() == expected
