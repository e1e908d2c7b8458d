"""Whether a plan extends another one, so that both can share a result directory: more of the same, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chainlift.study.plan import Plan

#: Where there may be more: lists of what is measured, and how often.
_LISTS = ("lengths", "tests", "qemu", "lift")
#: Lists of lengths that are all lengths where they are empty.
_LENGTHS = ("guest_lengths", "lift_lengths", "stream_lengths")
#: What changes no figure by itself: how a study is called and where its chain lies, in which order its cells are
#: measured, how long it waits for a quiet machine.
_FREE = ("name", "chains", "live", "seed", "quiet")
#: Settings that are called as the one test that has them: of a test that was not measured, they are free.
_OF_TEST = ("profile", "limits")


def extends(plan: Plan, earlier: Plan) -> bool:
    """Say whether a plan asks for everything that an earlier one asked for in the same way, and maybe for more.

    More are lengths, tests with what they alone are told, QEMUs, lifts, values of what is varied, and repeats; whatever
    else changes a figure has to be as it was.
    """
    now, before = plan.model_dump(), earlier.model_dump()
    if not all(set(before[key]) <= set(now[key]) for key in _LISTS):
        return False
    if not all(_chosen(before, key) <= _chosen(now, key) for key in _LENGTHS):
        return False
    for key, values in now.pop("vary").items():
        # What was not varied has another name than each of its values.
        fewer = before["vary"][key]
        if bool(fewer) != bool(values) or not set(fewer) <= set(values):
            return False
    del before["vary"]
    if any(more < less for more, less in zip(_repeats(plan), _repeats(earlier), strict=True)):
        return False
    same: dict[str, object] = dict.fromkeys((*_LISTS, *_LENGTHS, "repeats", "stream_repeats", *_FREE))
    same |= dict.fromkeys(test for test in _OF_TEST if test not in earlier.tests)
    for values in (now, before):
        values["host_read"] |= dict.fromkeys(("repeats", "other_repeats"))
    return {**now, **same} == {**before, **same} and plan.live >= earlier.live


def _repeats(plan: Plan) -> list[int]:
    """Return how often each kind of test is measured."""
    host = plan.host_read
    return [
        plan.repeats,
        plan.stream_repeats or plan.repeats,
        max(plan.repeats, host.repeats),
        max(plan.repeats, host.other_repeats),
    ]


def _chosen(plan: dict[str, Any], key: str) -> set[int]:
    return set(plan[key] or plan["lengths"])
