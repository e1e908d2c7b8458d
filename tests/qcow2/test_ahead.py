import threading
from pathlib import Path

import numpy as np
import pytest

from chainlift.errors import ImageError
from chainlift.qcow2.ahead import PIECE_BYTES, Piece, ReadAhead
from chainlift.qcow2.file import ImageFile


@pytest.fixture
def words(tmp_path):
    content = np.random.default_rng(1).integers(0, 1 << 63, 3 * PIECE_BYTES >> 3, dtype=np.uint64)
    (tmp_path / "file").write_bytes(content.tobytes())
    return content


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def pieces(file, *spans):
    return [Piece(number, file, offset, length) for number, (offset, length) in enumerate(spans)]


def test_large_and_small_pieces_come_in_their_order(tmp_path, words):
    file = ImageFile(str(tmp_path / "file"))
    rng = np.random.default_rng(2)
    spans = [
        (int(rng.integers(0, len(words) // 2)) * 8, int(length) * 8)
        for length in rng.choice([1, 512, 8191, PIECE_BYTES >> 4, PIECE_BYTES >> 3], 200)
    ]
    count = 0
    for number, found in ReadAhead().read(pieces(file, *spans)):
        assert number == count
        offset, length = spans[number]
        assert np.array_equal(found, words[offset >> 3 : offset + length >> 3])
        count += 1
    assert count == len(spans)


def test_a_piece_past_the_end_is_an_error_and_the_next_one_is_read(tmp_path, words):
    file = ImageFile(str(tmp_path / "file"))
    end = len(words) * 8
    spans = [(end - 4096, 1 << 20), (end - 4096, 8192), (0, 1 << 20)]
    one, two, three = (content for _, content in ReadAhead().read(pieces(file, *spans)))
    for failed in (one, two):
        assert isinstance(failed, ImageError)
        assert "are cut off" in str(failed)
    assert not isinstance(three, ImageError)


def test_a_reader_that_is_left_early_leaves_no_thread_and_no_descriptor(tmp_path, words):
    file = ImageFile(str(tmp_path / "file"))
    before = descriptors()
    reader = ReadAhead().read(pieces(file, *[(0, PIECE_BYTES)] * 5))
    _, found = next(reader)
    assert found[0] == words[0]
    reader.close()
    assert "chainlift-read-ahead" not in [thread.name for thread in threading.enumerate()]
    assert descriptors() == before


def test_pieces_are_taken_two_ahead(tmp_path, words):
    file = ImageFile(str(tmp_path / "file"))
    taken = []

    def wanted():
        for piece in pieces(file, *[(0, 512)] * 6):
            taken.append(piece.what)
            yield piece

    for number, found in ReadAhead().read(wanted()):
        assert len(found) == 64
        assert len(taken) <= number + 3
    assert len(taken) == 6
