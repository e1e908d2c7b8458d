"""Surveys of several days and hosts."""

import pytest
from tests.support.surveys import chain, survey

from chainlift.results.survey.trend import lay_together, slope


def test_growth_and_when_a_limit_is_reached():
    days = [
        survey(chain("a", 10 + 24 * day, libvirt_longest=199), chain("b", 5, libvirt_longest=199), day=day)
        for day in range(4)
    ]
    together = lay_together([days[2], days[0], days[3], days[1]])
    a, b = together.trends
    assert a.layers_per_day == pytest.approx(24)
    assert a.bytes_per_day == pytest.approx(24 << 20)
    assert (a.limit, a.days_left) == (199, pytest.approx((199 - 82) / 24))
    assert [length for _, length in a.points] == [10, 34, 58, 82]
    assert (b.layers_per_day, b.days_left) == (0, None)
    assert [one.length for one in together.survey.chains] == [82, 5]


def test_a_limit_that_was_passed_is_reached():
    (trend,) = lay_together([survey(chain("a", 20 + 6 * day, libvirt_longest=24), day=day) for day in range(2)]).trends
    assert (trend.limit, trend.days_left) == (24, 0.0)


def test_a_chain_that_is_pruned_every_night_does_not_grow():
    lengths = [24, 27, 31, 24, 26, 30, 24]
    days = [survey(chain("a", length, crash_layers=866), day=day) for day, length in enumerate(lengths)]
    (trend,) = lay_together(days).trends
    assert abs(trend.layers_per_day) < 1


def test_what_is_new_and_what_is_gone():
    together = lay_together(
        [survey(chain("old", 1), chain("kept", 1)), survey(chain("kept", 2), chain("new", 1), day=1)]
    )
    assert [one.path for one in together.survey.chains] == ["/srv/kept", "/srv/new"]
    assert (together.new, together.gone) == (1, 1)


def test_what_a_later_survey_has_not_looked_at_is_not_gone():
    first = survey(chain("a", 1))
    for later in (
        survey(day=1, host="h2"),
        survey(day=1, place="/else"),
        survey(day=1, place="/srv/deeper"),
        survey(day=1, ended=False),
    ):
        assert len(lay_together([first, later]).survey.chains) == 1
    assert not lay_together([first, survey(day=1)]).survey.chains


def test_two_hosts_are_one_fleet():
    other = chain("a", 4, host="h2")
    together = lay_together([survey(chain("a", 3)), survey(other, host="h2", day=0.1)])
    assert {(one.host, one.length) for one in together.survey.chains} == {("h1", 3), ("h2", 4)}
    assert {source.host for source in together.survey.sources} == {"h1", "h2"}
    assert not together.trends


def test_the_slope_of_one_point_is_none():
    assert slope([1.0], [5.0]) == 0
    assert slope([1.0, 1.0], [5.0, 9.0]) == 0
