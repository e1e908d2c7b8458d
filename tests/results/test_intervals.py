"""Intervals of medians, ratios and differences, and whether they cover what they say."""

import numpy as np
import pytest

from chainlift.results.intervals import (
    MANY,
    difference_interval,
    median_interval,
    ratio_interval,
    ratio_of_differences,
)
from chainlift.results.student import f_tail, incomplete_beta, t_95


def test_quantiles_are_the_textbooks():
    assert [round(t_95(d), 3) for d in (1, 2, 3, 10, 30, 120)] == [12.706, 4.303, 3.182, 2.228, 2.042, 1.98]
    assert t_95(float("inf")) == pytest.approx(1.959964)
    # F(2, 6) = 5.143 and F(1, 10) = 4.965 at 5 %; t of 10 degrees squared is F(1, 10).
    assert f_tail(5.143, 2, 6) == pytest.approx(0.05, abs=1e-4)
    assert f_tail(t_95(10) ** 2, 1, 10) == pytest.approx(0.05, abs=1e-4)
    assert (f_tail(0, 2, 6), incomplete_beta(2, 3, 0), incomplete_beta(2, 3, 1)) == (1, 0, 1)
    assert incomplete_beta(2, 3, 0.5) == pytest.approx(11 / 16)


@pytest.mark.parametrize("count", [2, 3, 5, MANY])
def test_an_interval_covers_what_it_says(count):
    rng, runs = np.random.default_rng(2), 1200 if count < MANY else 400
    held = np.zeros(3)
    for _ in range(runs):
        loud = (4.0 * np.exp(rng.normal(0, 0.15, count))).tolist()
        quiet = (2.0 * np.exp(rng.normal(0, 0.05, count))).tolist()
        held += [
            median_interval(loud).holds(4.0),
            ratio_interval(loud, quiet).holds(2.0),
            difference_interval(rng.normal(9, 1, count).tolist(), rng.normal(5, 0.3, count).tolist()).holds(4.0),
        ]
    assert all(0.92 <= share <= 0.98 for share in held / runs)


def test_the_median_is_in_its_interval_whatever_the_samples_are():
    rng = np.random.default_rng(3)
    for count in (2, 3, 4, 7, 11, 15):
        for _ in range(50):
            values = np.exp(rng.standard_cauchy(count).clip(-20, 20)).tolist()
            found = median_interval(values)
            assert found.value == pytest.approx(np.median(values))
            assert found.low <= found.value <= found.high


def test_samples_that_are_alike_have_an_interval_without_width():
    assert median_interval([3.0, 3.0, 3.0]).is_point
    found = ratio_interval([0.3, 0.3], [0.1, 0.1])
    assert found.low == found.high == pytest.approx(3.0)


def test_a_ratio_of_ratios_has_the_noise_of_four_groups():
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(600):
        a, b, c, d = ((m * np.exp(rng.normal(0, 0.1, 4))).tolist() for m in (8.0, 2.0, 3.0, 1.5))
        held += ratio_interval(a, b, d, c).holds(2.0)
    assert 0.92 <= held / 600 <= 0.98


@pytest.mark.parametrize("left", [80.0, 10.5, 10.0], ids=["some", "little", "nothing"])
@pytest.mark.parametrize("count", [3, 5, MANY])
def test_a_ratio_of_differences_covers_what_it_says(left, count):
    """What a chain adds without a function over what it adds with it: also where nothing is left."""
    rng, runs = np.random.default_rng(5), 800 if count < MANY else 200
    held = told = 0
    for _ in range(runs):
        groups = [(m * np.exp(rng.normal(0, 0.06, count))).tolist() for m in (left, 10.0, 600.0, 11.0)]
        found = ratio_of_differences((groups[0], groups[1]), (groups[2], groups[3]))
        told += found is not None
        held += found is not None and found.holds((left - 10) / 589)
    assert told == runs
    assert 0.92 <= held / runs <= 0.995


def test_of_what_a_chain_may_not_add_there_is_no_share():
    assert ratio_of_differences(([2.0, 3.0], [1.0, 1.1]), ([5.0, 9.0], [5.0, 8.0])) is None
    assert ratio_of_differences(([2.0], [1.0]), ([5.0], [1.0])) is None
    found = ratio_of_differences(([3.0, 3.0], [1.0, 1.0]), ([9.0, 9.0], [1.0, 1.0]))
    assert (found.value, found.is_point) == (0.25, True)


def test_one_sample_has_no_interval():
    assert median_interval([1.0]) is None
    assert ratio_interval([1.0, 2.0], [1.0]) is None
    assert difference_interval([1.0], [1.0, 2.0]) is None


def test_a_ratio_of_nothing_has_no_interval():
    assert ratio_interval([1.0, 2.0], [0.0, 1.0]) is None
    assert median_interval([float("inf"), 1.0]) is None


def test_the_same_samples_give_the_same_interval():
    values = np.random.default_rng(1).lognormal(0, 0.3, 40).tolist()
    assert median_interval(values) == median_interval(values)
    one = ratio_interval(values, values[::-1])
    assert one.inverse().low == pytest.approx(1 / one.high)
