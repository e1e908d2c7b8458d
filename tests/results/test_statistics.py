from datetime import UTC, datetime

import pytest

from chainlift.results.model import Sample
from chainlift.results.statistics import fit_chain_growth, fit_growth, summaries, summarise

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def sample(length, repeat, wall_s, outcome="ok"):
    return Sample(
        test="host", length=length, repeat=repeat, started_at=NOW, outcome=outcome, metrics={"wall_s": wall_s}
    )


def test_a_summary_is_the_median_and_the_extremes():
    found = summarise([3.0, 1.0, 2.0, 10.0])
    assert (found.count, found.median, found.low, found.high) == (4, 2.5, 1.0, 10.0)
    assert found.spread == pytest.approx(9 / 2.5)


def test_nothing_has_no_summary():
    assert summarise([]) is None


def test_samples_that_did_not_end_well_are_not_summarised():
    samples = [sample(1, 0, 1.0), sample(1, 1, 3.0), sample(1, 2, 99.0, "crashed"), sample(300, 0, 5.0)]
    found = summaries(samples, "wall_s", lambda s: s.length)
    assert {n: s.median for n, s in found.items()} == {1: 2.0, 300: 5.0}
    assert summaries(samples, "iops", lambda s: s.length) == {}


def test_an_exact_power_law_is_found_with_no_doubt():
    found = fit_growth({n: 3e-6 * n**2.5 for n in (1, 10, 30, 100, 300)})
    assert found.exponent == pytest.approx(2.5)
    assert found.exponent_low == pytest.approx(2.5, abs=1e-6)
    assert found.exponent_high == pytest.approx(2.5, abs=1e-6)
    assert found.factor == pytest.approx(3e-6)
    assert found.r_squared == pytest.approx(1.0)
    assert found(50) == pytest.approx(3e-6 * 50**2.5)


def test_the_confidence_interval_is_the_textbooks():
    # Slope 1, residuals +e, -2e, +e on x = 0, 1, 2: s^2 = 6 e^2, standard error sqrt(6 e^2 / 2), t(1) = 12.706.
    e = 0.01
    found = fit_growth(
        {1: 2.718281828459045 ** (0 + e), 3: 3 * 2.718281828459045 ** (-2 * e), 9: 9 * 2.718281828459045**e}
    )
    error = (6 * e * e / 2) ** 0.5 / 1.0986122886681098
    assert found.exponent == pytest.approx(1.0)
    assert found.exponent_high - found.exponent == pytest.approx(12.706 * error)


def test_what_the_chain_adds_is_fitted_over_the_cost_of_a_short_chain():
    points = {n: 9.0 + 2e-3 * n**2 for n in (10, 100, 300, 1000)} | {1: 9.0}
    assert fit_growth(points).exponent < 1.2
    found = fit_chain_growth(points)
    assert found.exponent == pytest.approx(2.0)
    assert found.lengths == (10, 100, 300, 1000)
    assert found(300) == pytest.approx(9.0 + 2e-3 * 300**2)


def test_two_points_give_an_exponent_and_no_confidence():
    found = fit_growth({1: 1.0, 10: 100.0})
    assert found.exponent == pytest.approx(2.0)
    assert found.exponent_low == float("-inf")


@pytest.mark.parametrize("points", [{}, {1: 1.0}, {0: 1.0, 5: 2.0}, {1: 1.0, 10: 1.0, 100: 0.5}])
def test_too_little_to_fit_gives_none(points):
    assert fit_chain_growth(points) is None
