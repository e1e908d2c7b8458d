"""What a sample must have in it."""

import pytest
from tests.support.chains import make_chain

from chainlift.chain import open_chain
from chainlift.lift.compare.sample import MOST_FILES, PIECE_BYTES, SAMPLE, choose_sample
from chainlift.lift.compare.spans import Pair
from chainlift.qcow2.writer import write_image

CLUSTER = 65536
SIZE = 1 << 36


def layers(directory, clusters, *, sizes=None):
    """Write a chain of layers that have these clusters; return its top."""
    name = None
    for number, mine in enumerate(clusters):
        write_image(
            directory / f"{number}", virtual_size=SIZE if sizes is None else sizes[number], clusters=mine,
            backing_file=name, backing_format=name and "qcow2",
        )  # fmt: skip
        name = f"{number}"
    return directory / name


def sample(top, other=None, **options):
    with open_chain(top) as one, open_chain(other or top) as two:
        return choose_sample(Pair(one, two), **options)


def has(pieces, offset):
    return any(start <= offset < start + length for start, length in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_on_the_disk_in_order_and_always_the_same(tmp_path, seed):
    top, other = make_chain(tmp_path / "a", seed), make_chain(tmp_path / "b", seed + 100)
    pieces = sample(top, other)
    with open_chain(top) as one, open_chain(other) as two:
        size = max(one.virtual_size, two.virtual_size)
    assert pieces == sample(top, other)
    assert has(pieces, 0)
    assert has(pieces, size - 1)
    end = 0
    for start, length in pieces:
        assert start >= end
        assert 0 < length <= PIECE_BYTES
        end = start + length
    assert end == size


def test_every_layer_that_is_seen_has_a_piece_and_one_that_is_hidden_has_none(tmp_path):
    # Layer 5 is wholly under layer 6; all others have one cluster of a million.
    clusters = [[number * 3001] for number in range(100)]
    clusters[6] = [5 * 3001, 6 * 3001]
    pieces = sample(layers(tmp_path, clusters))
    assert all(has(pieces, number * 3001 * CLUSTER) for number in range(100))
    assert len(pieces) == 101  # and the disk's end: nothing else is mapped


def test_layers_of_a_chain_that_is_too_long_are_spread(tmp_path):
    length = MOST_FILES + 80
    pieces = sample(layers(tmp_path, [[number * 601, number * 601 + 300] for number in range(length)]))
    found = [has(pieces, at * 601 * CLUSTER) or has(pieces, (at * 601 + 300) * CLUSTER) for at in range(length)]
    assert found[0]
    assert found[-1]
    assert max(len(gap) for gap in "".join("x" if one else "." for one in found).split("x")) <= 2
    assert MOST_FILES <= len(pieces) <= MOST_FILES + 32


def test_of_a_disk_that_is_all_one_file_there_are_as_many_as_wanted_all_over_it(tmp_path):
    pieces = sample(layers(tmp_path, [range(20000)]))
    assert len(pieces) == SAMPLE
    thirds = [sum(start // CLUSTER * 3 // 20000 == third for start, _ in pieces) for third in range(3)]
    assert min(thirds) > SAMPLE // 6
    assert pieces != sample(tmp_path / "0", seed=1)


def test_where_a_shorter_layer_ends_and_data_begin_after_nothing(tmp_path):
    short = 1000 * CLUSTER + 512
    top = layers(tmp_path, [range(900, 1001), [5]], sizes=[short, SIZE])
    pieces = sample(top)
    assert has(pieces, short - 1)
    assert has(pieces, short)
    for cluster in (5, 900):
        assert has(pieces, cluster * CLUSTER)
