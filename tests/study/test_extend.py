import pytest

from chainlift.study.extend import extends
from chainlift.study.plan_file import load_plan

PLAN = load_plan("seed")


def changed(**values):
    return PLAN.model_copy(update=values)


@pytest.mark.parametrize(
    "more",
    [
        {"repeats": 4},
        {"lengths": (1, 10, 20, 50, 100, 200, 300)},
        {"qemu": ("host", "debian:trixie")},
        {"tests": (*PLAN.tests, "boot")},
        {"lift": ("none", "index")},
        {"live": True},
        {"name": "other", "chains": "/elsewhere"},
    ],
)
def test_more_of_the_same_extends_a_plan_and_less_does_not(more):
    assert extends(changed(**more), PLAN)
    if not {"name"} & more.keys():
        assert not extends(PLAN, changed(**more))


@pytest.mark.parametrize(
    "other",
    [
        {"cache": "none"},
        {"aio": "io_uring"},
        {"lengths": (1, 300)},
        {"guest_lengths": (1,)},
        {"chain": PLAN.chain.model_copy(update={"cluster_size": 4096})},
        {"host_read": PLAN.host_read.model_copy(update={"max_requests": 50})},
    ],
)
def test_what_changes_a_figure_makes_another_plan(other):
    assert not extends(changed(**other), PLAN)


def test_settings_of_a_test_that_was_not_measured_are_free():
    other = PLAN.profile.model_copy(update={"seconds": 9.0})
    without = changed(tests=("read", "stream"))
    assert extends(changed(profile=other), without)
    assert not extends(changed(profile=other), changed(tests=("read", "profile")))


def test_an_empty_list_of_lengths_is_all_of_them():
    some = changed(guest_lengths=(1, 300))
    assert extends(PLAN, some)
    assert not extends(some, PLAN)
