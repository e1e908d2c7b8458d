import pytest

from chainlift.results.statistics import summarise


def test_a_summary_is_the_median_and_the_extremes():
    found = summarise([3.0, 1.0, 2.0, 10.0])
    assert (found.count, found.median, found.low, found.high) == (4, 2.5, 1.0, 10.0)
    assert found.spread == pytest.approx(9 / 2.5)


def test_nothing_has_no_summary():
    assert summarise([]) is None
