import os
import random

import numpy as np
import pytest
from tests.support.mounts import on_a_loop_device

from chainlift.host.shared_blocks import shared_blocks
from chainlift.lift.build.copying import Copier

BLOCK = 4096
PIECE = 4 * BLOCK
PIECES = 256

pytestmark = [pytest.mark.integration, pytest.mark.needs("loop")]


@pytest.fixture(params=["xfs", "btrfs"])
def place(tmp_path, request):
    mount = tmp_path / "mount"
    mount.mkdir()
    with on_a_loop_device(mount, request.param, tmp_path / "disk", 400 << 20):
        yield mount


def places_of(descriptor):
    """Where each piece of a file lies."""
    offset = np.arange(PIECES, dtype=np.int64) * PIECE
    size = os.fstat(descriptor).st_size
    return shared_blocks(descriptor, size).place(offset, np.full(PIECES, PIECE, dtype=np.int64))


def same_pieces(one, other):
    """Whether each piece of a file lies where that of the other does."""
    ours, theirs = places_of(one), places_of(other)
    return (ours >= 0) & (ours == theirs)


@pytest.fixture
def files(place):
    """A file, and one that shares every other piece with it, with the same bytes elsewhere; open."""
    content = random.Random(1).randbytes(PIECES * PIECE)
    (place / "one").write_bytes(content)
    one, other = os.open(place / "one", os.O_RDWR), os.open(place / "other", os.O_RDWR | os.O_CREAT)
    with Copier(other) as copier:
        for number in range(0, PIECES, 2):
            copier.add(one, number * PIECE, PIECE, number * PIECE)
    assert copier.done.copied_bytes == 0
    for number in range(1, PIECES, 2):
        os.pwrite(other, content[number * PIECE : (number + 1) * PIECE], number * PIECE)
    yield one, other
    os.close(one)
    os.close(other)


def test_what_was_cloned_lies_in_the_same_blocks_and_nothing_else_does(files):
    assert same_pieces(*files).tolist() == [number % 2 == 0 for number in range(PIECES)]


def test_what_was_written_since_does_not_whoever_has_synced_it(files):
    for number, descriptor in ((0, files[0]), (2, files[1])):
        os.pwrite(descriptor, b"other", number * PIECE + BLOCK)
    os.fsync(files[1])
    os.ftruncate(files[0], (PIECES - 2) * PIECE + 100)
    assert np.flatnonzero(same_pieces(*files)).tolist() == list(range(4, PIECES - 2, 2))


def test_whatever_is_cloned_and_written_the_same_place_means_the_same_bytes(place):
    chance = random.Random(7)
    descriptors = [os.open(place / name, os.O_RDWR | os.O_CREAT) for name in "abc"]
    for descriptor in descriptors:
        os.ftruncate(descriptor, PIECES * PIECE)
    found = 0
    for _ in range(30):
        for _ in range(40):
            one, other = chance.sample(descriptors, 2)
            length = chance.randrange(1, 64) * BLOCK
            start, to = (chance.randrange(PIECES * PIECE // BLOCK - 64) * BLOCK for _ in range(2))
            if chance.random() < 0.3:
                to = start
            if chance.random() < 0.5:
                os.pwrite(one, chance.randbytes(length), start + chance.choice([0, 100]))
            else:
                with Copier(other) as copier:
                    copier.add(one, start, length, to)
        for one, other in ((0, 1), (0, 2), (1, 2)):
            is_same = same_pieces(descriptors[one], descriptors[other])
            found += int(is_same.sum())
            for number in np.flatnonzero(is_same).tolist():
                ours, theirs = (os.pread(descriptors[each], PIECE, number * PIECE) for each in (one, other))
                assert ours == theirs
    assert found > 100
    for descriptor in descriptors:
        os.close(descriptor)


def test_where_no_blocks_are_shared_there_are_none(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100000))
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    assert len(shared_blocks(descriptor, 100000).start) == 0
    os.close(descriptor)
    descriptor = os.open("/proc/self/status", os.O_RDONLY)
    assert len(shared_blocks(descriptor, 0).start) == 0
    os.close(descriptor)
