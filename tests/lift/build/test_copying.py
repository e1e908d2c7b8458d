import os
import random

import pytest
from tests.support.mounts import on_a_loop_device

from chainlift.lift.build.copying import Copier, can_clone


@pytest.fixture
def sources(tmp_path):
    generator = random.Random(7)
    descriptors = []
    for number in range(3):
        path = tmp_path / f"s{number}"
        path.write_bytes(generator.randbytes(300_000 + number * 777))
        descriptors.append(os.open(path, os.O_RDONLY))
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("unit", [512, 4096, 65536])
def test_pieces_of_many_files_arrive_where_they_belong(tmp_path, sources, direct, unit):
    generator = random.Random(unit)
    wanted = bytearray(6 << 20)
    out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with Copier(out, direct=direct) as copier:
        position = 0
        while position + 40 * unit < len(wanted):
            if generator.random() < 0.2:
                position += generator.randrange(5) * unit
            length = generator.choice([1, 1, 2, 8, 40]) * unit
            if generator.random() < 0.1:
                data = generator.randbytes(length)
                copier.add(lambda data=data: data, 0, length, position)
            else:
                source = generator.choice(sources)
                offset = generator.randrange(320_000 // unit) * unit
                data = os.pread(source, length, offset).ljust(length, b"\0")
                copier.add(source, offset, length, position)
            wanted[position : position + length] = data
            position += length
    assert copier.done.copied_bytes + copier.done.cloned_bytes > 0
    found = os.pread(out, len(wanted), 0)
    assert found.ljust(len(wanted), b"\0") == bytes(wanted)
    os.close(out)


def test_a_piece_longer_than_a_buffer_is_split(tmp_path):
    data = random.Random(1).randbytes(9 << 20)
    (tmp_path / "in").write_bytes(data)
    source, out = os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with Copier(out, clone=False) as copier:
        copier.add(source, 0, len(data), 65536)
    assert os.pread(out, len(data) + 1, 65536) == data
    os.close(source)
    os.close(out)


def test_zeros_can_be_left_out(tmp_path):
    (tmp_path / "in").write_bytes(bytes(1 << 20) + b"x" * 65536 + bytes(1 << 20))
    source, out = os.open(tmp_path / "in", os.O_RDONLY), os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    with Copier(out, clone=False, skip_zeros=True) as copier:
        copier.add(source, 0, (2 << 20) + 65536, 0)
    assert (tmp_path / "out").stat().st_blocks * 512 <= 128 << 10
    assert os.pread(out, 65536, 1 << 20) == b"x" * 65536
    os.close(source)
    os.close(out)


def test_an_error_of_the_destination_comes_out(tmp_path, sources):
    out = os.open(tmp_path / "out", os.O_RDONLY | os.O_CREAT)
    with pytest.raises(OSError, match="Bad file descriptor"), Copier(out, direct=False, clone=False) as copier:
        copier.add(sources[0], 0, 65536, 0)
    os.close(out)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_blocks_are_shared_where_the_file_system_can(tmp_path, kind):
    image, mount = tmp_path / "disk", tmp_path / "mount"
    mount.mkdir()
    with on_a_loop_device(mount, kind, image, 400 << 20):
        (mount / "in").write_bytes(os.urandom(8 << 20))
        source, out = os.open(mount / "in", os.O_RDONLY), os.open(mount / "out", os.O_RDWR | os.O_CREAT)
        directory = os.open(mount, os.O_RDONLY)
        assert can_clone(directory, source)
        with Copier(out) as copier:
            copier.add(source, 1 << 20, 4 << 20, 0)
            copier.add(source, 0, 1 << 20, 4 << 20)
        assert copier.done.cloned_bytes == 5 << 20
        assert os.pread(out, 4 << 20, 0) == os.pread(source, 4 << 20, 1 << 20)
        for descriptor in (source, out, directory):
            os.close(descriptor)
