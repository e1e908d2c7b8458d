"""What is open in a window, and what is filled in; every question asked of a plain model too."""

import random

import numpy as np
import pytest

from chainlift.chain.partial_window import PartialWindow
from chainlift.qcow2.layout import Kind
from chainlift.qcow2.mapping import Mapping

GRANULE = 4096
START = 1 << 20


def partial_window(granules=100):
    return PartialWindow(START, START + granules * GRANULE, GRANULE)


def mapping(*rows):
    """Units of a layer: (unit, kind, host offset)."""
    unit, kind, host = zip(*rows, strict=True)
    return Mapping(
        np.array(unit, np.int64), np.array(kind, np.uint8), np.array(host, np.int64), np.zeros(len(unit), np.int32)
    )


def layers(*indexes):
    return np.array(indexes, np.int64)


def owners(found):
    return found.window.layer.tolist()


def test_what_an_upper_layer_has_said_stays(tmp_path):
    found = partial_window(4)
    first = START // GRANULE
    found.fill(layers(0, 0), mapping((first, Kind.DATA, 8192), (first + 2, Kind.ZERO_PLAIN, -1)), GRANULE, 1 << 40)
    found.fill(layers(1, 1), mapping((first, Kind.DATA, 65536), (first + 1, Kind.DATA, 69632)), GRANULE, 1 << 40)
    assert owners(found) == [0, 1, 0, -1]
    assert found.window.host_offset.tolist() == [8192, 69632, -1, -1]
    assert found.window.kind.tolist() == [Kind.DATA, Kind.DATA, Kind.ZERO_PLAIN, Kind.UNALLOCATED]
    assert found.remaining == 1


def test_of_several_layers_filled_in_at_once_the_first_is_right():
    found = partial_window(3)
    first = START // GRANULE
    found.fill(
        layers(2, 2, 5, 5),
        mapping(
            (first + 1, Kind.DATA, 0),
            (first + 2, Kind.DATA, 4096),
            (first, Kind.DATA, 8192),
            (first + 1, Kind.DATA, 12288),
        ),
        GRANULE,
        1 << 40,
    )
    assert owners(found) == [5, 2, 2]
    assert found.window.host_offset.tolist() == [8192, 0, 4096]
    assert found.remaining == 0


def test_a_unit_larger_than_a_granule_fills_all_of_its_granules_and_what_lies_outside_is_left_out():
    found = PartialWindow(START + GRANULE, START + 6 * GRANULE, GRANULE)
    unit = 4 * GRANULE
    found.fill(
        layers(0, 0), mapping((START // unit, Kind.DATA, 1 << 20), (START // unit + 1, Kind.COMPRESSED, 777)), unit, 0
    )
    assert found.window.host_offset.tolist() == [(1 << 20) + n * GRANULE for n in (1, 2, 3)] + [777, 777]
    assert found.remaining == 0


@pytest.mark.parametrize(("ends_at", "place"), [(1 << 40, -1), (START, 4096)])
def test_a_subcluster_without_content_is_open_and_its_place_is_told_where_nothing_is_below(ends_at, place):
    found = partial_window(2)
    found.fill(layers(3), mapping((START // GRANULE, Kind.UNALLOCATED, 4096)), GRANULE, ends_at)
    assert (owners(found), found.window.host_offset[0], found.remaining) == ([-1, -1], place, 2)


def test_a_layer_that_ends_closes_what_follows_and_a_longer_one_below_opens_nothing():
    found = partial_window(10)
    found.close_from(START + 6 * GRANULE)
    found.close_from(START + 8 * GRANULE)
    assert found.remaining == 6
    found.fill_raw(7)
    assert owners(found) == [7] * 6 + [-1] * 4
    assert found.window.host_offset.tolist() == [START + n * GRANULE for n in range(6)] + [-1] * 4
    found.close_from(0)
    assert found.remaining == 0


@pytest.mark.parametrize("seed", range(5))
def test_what_is_hidden_is_known_for_every_span(seed):
    """Buckets of 4,096 granules tell early, and never wrongly that something is hidden."""
    rng = random.Random(seed)
    count = 3 * 4096 + 77
    found, is_open = partial_window(count), np.ones(count, bool)
    first = START // GRANULE
    for layer in range(6):
        at = rng.randrange(count)
        units = np.arange(at, min(count, at + rng.randrange(1, 9000)))
        found.fill(layers(*[layer] * len(units)), mapping(*[(first + n, Kind.ZERO_PLAIN, -1) for n in units]),
                    GRANULE, 1 << 40)  # fmt: skip
        is_open[units] = False
        assert found.remaining == is_open.sum()
        begins = np.array([rng.randrange(count) for _ in range(200)])
        span = rng.choice([1, 40, 4096, 10000])
        truth = np.array([is_open[b : b + span].any() for b in begins])
        told = found.has_open(START + begins * GRANULE, span * GRANULE)
        assert not (truth & ~told).any()
        for begin, opened in zip(begins.tolist(), truth.tolist(), strict=True):
            assert found.is_hidden(START + begin * GRANULE, START + (begin + span) * GRANULE) == (not opened)
        buckets = [is_open[n : n + 4096].any() for n in range(0, count, 4096)]
        assert found.has_closed_bucket == (not all(buckets))
        whole = np.arange(0, count, 4096)
        assert found.has_open(START + whole * GRANULE, GRANULE).tolist() == buckets
