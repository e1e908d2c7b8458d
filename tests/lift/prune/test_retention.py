from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainlift.lift.prune.retention import Retention

NOON = datetime(2026, 3, 4, 12)  # a Wednesday


def kept(retention, times):
    return retention.kept([time.timestamp() for time in times])


def test_the_newest_of_each_period_stays_and_what_a_finer_rule_keeps_does_not_count():
    hours = [NOON - timedelta(hours=number) for number in range(72)]
    assert kept(Retention(last=2, daily=2), hours) == {
        0: "last 1",
        1: "last 2",
        13: "daily 1",  # Tuesday's 23:00: Wednesday's newest is kept already
        37: "daily 2",
    }


def test_borgs_own_example_of_days_months_and_years_without_the_years():
    # docs/misc/prune-example.txt: one a day in 2015 but for December 19, --keep-daily 14 --keep-monthly 6
    days = [datetime(2015, 1, 1, 20) + timedelta(days=number) for number in range(365)]
    days = [day for day in reversed(days) if (day.month, day.day) != (12, 19)]
    found = kept(Retention(daily=14, monthly=6), days)
    assert [f"{days[number]:%m-%d}" for number, why in found.items() if why.startswith("daily")] == [
        *(f"12-{day}" for day in range(31, 19, -1)), "12-18", "12-17",
    ]  # fmt: skip
    assert [f"{days[number]:%m-%d}" for number, why in found.items() if why.startswith("monthly")] == [
        "11-30", "10-31", "09-30", "08-31", "07-31", "06-30",
    ]  # fmt: skip


def test_periods_without_a_snapshot_do_not_count():
    days = [NOON, NOON - timedelta(days=30), NOON - timedelta(days=31), NOON - timedelta(days=400)]
    assert kept(Retention(daily=3), days) == {0: "daily 1", 1: "daily 2", 2: "daily 3"}


def test_weeks_begin_on_monday_also_over_a_new_year():
    days = [datetime(2027, 1, 4, 9) - timedelta(days=number) for number in range(9)]  # Monday back to Sunday
    assert kept(Retention(weekly=2), days) == {0: "weekly 1", 1: "weekly 2"}  # the week of 28 December ends on Sunday


def test_a_rule_that_does_not_find_its_number_keeps_the_oldest_too():
    hours = [NOON - timedelta(hours=number) for number in range(10)]
    assert kept(Retention(daily=7), hours) == {0: "daily 1", 9: "daily 2, the oldest"}
    assert kept(Retention(monthly=-1), hours) == {0: "monthly 1"}


def test_nothing_is_kept_by_no_rule_and_everything_by_any_number():
    hours = [NOON - timedelta(hours=number) for number in range(5)]
    assert kept(Retention(), hours) == {}
    assert Retention().keeps_nothing
    assert len(kept(Retention(last=-1), hours)) == 5
    assert len(kept(Retention(hourly=-1), hours)) == 5
    assert kept(Retention(last=3, daily=3), []) == {}


def test_periods_are_those_of_the_local_time_zone(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours before UTC
    time.tzset()
    try:
        # One day in UTC, two days there.
        times = [datetime.fromisoformat(f"2026-03-04T{hour:02}:30:00+00:00") for hour in (11, 9)]
        assert kept(Retention(daily=2), times) == {0: "daily 1", 1: "daily 2"}
        monkeypatch.setenv("TZ", "UTC")
        time.tzset()
        assert kept(Retention(daily=1), times) == {0: "daily 1"}
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("rule", ["hourly", "daily", "weekly", "monthly"])
@given(st.lists(st.integers(0, 3_000_000), max_size=40), st.integers(1, 12))
def test_each_rule_keeps_what_its_definition_says(rule, minutes, wanted):
    times = sorted((NOON - timedelta(minutes=number) for number in minutes), reverse=True)
    periods = {"hourly": "%Y%j%H", "daily": "%Y%j", "weekly": "%G%V", "monthly": "%Y%m"}[rule]
    first_of = {}
    for number, time in enumerate(times):
        first_of.setdefault(time.strftime(periods), number)
    expected = set(list(first_of.values())[:wanted])
    if times and len(first_of) < wanted:
        expected.add(len(times) - 1)
    assert kept(Retention(**{rule: wanted}), times).keys() == expected
