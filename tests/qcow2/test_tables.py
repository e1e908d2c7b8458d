"""Arithmetic on entries and refcounts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainlift.qcow2 import tables


@given(
    st.integers(9, 21).flatmap(
        lambda bits: st.tuples(st.just(bits), st.integers(0, 1 << 40), st.integers(1, 1 << bits))
    )
)
def test_compressed_descriptors_name_all_sectors_of_the_stream(case):
    bits, offset, length = case
    entries = tables.compressed_entries(np.array([offset]), np.array([length]), bits)
    (back,), (stored,) = tables.split_compressed(entries, bits)
    assert back == offset
    assert length <= stored < length + 512
    assert (back + stored) % 512 == 0


def test_a_compressed_offset_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="49 bits"):
        tables.compressed_entries(np.array([1 << 49]), np.array([100]), 21)


@given(st.integers(0, 6), st.data())
def test_refcounts_of_every_width_come_back(order, data):
    counts = data.draw(st.lists(st.integers(0, min((1 << (1 << order)) - 1, (1 << 62) - 1)), min_size=8, max_size=64))
    counts = counts[: len(counts) // 8 * 8]
    packed = tables.pack_refcounts(np.array(counts, dtype=np.int64), order)
    assert len(packed) * 8 == len(counts) << order
    assert tables.unpack_refcounts(packed, order).tolist() == counts


def test_narrow_refcounts_begin_at_the_least_significant_bit():
    assert tables.pack_refcounts(np.array([1, 0, 0, 0, 0, 0, 0, 0]), 0) == b"\x01"
    assert tables.pack_refcounts(np.array([3, 0, 1, 0]), 1) == b"\x13"


def test_a_refcount_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit into 1 bits"):
        tables.pack_refcounts(np.array([2]), 0)


def test_entries_are_laid_out_in_the_tables_that_hold_them():
    used, packed = tables.pack_l2(np.array([0, 63, 64, 300]), np.array([1, 2, 3, 4], dtype=np.uint64), 64)
    assert used.tolist() == [0, 1, 4]
    assert packed.shape == (3, 64)
    assert (packed[0, 0], packed[0, 63], packed[1, 0], packed[2, 300 - 256], packed.sum()) == (1, 2, 3, 4, 10)
