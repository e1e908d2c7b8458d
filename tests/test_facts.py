"""The table of what is known of releases."""

import pytest

from chainlift import facts
from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.cost.store import shipped_parameters
from chainlift.lift.compare.stock import MOST_LAYERS
from chainlift.qemu.binary import parse_version

ALL = [one for one in vars(facts).values() if isinstance(one, facts.Fact | facts.Value)]


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.what[:40])
def test_each_says_what_where_it_was_seen_and_when(one):
    assert one.what
    assert one.seen
    if isinstance(one, facts.Value):
        assert [first for first, _ in one.values] == sorted(first for first, _ in one.values)
        return
    assert one.since or one.until
    assert one.since is None or one.until is None or one.since < one.until


def test_a_fact_holds_from_its_first_release_to_before_its_last():
    assert [facts.NESTS.holds(version) for version in ((10, 7, 9), (10, 8, 0), (11, 10, 0), (12, 0, 0))] == [
        False,
        True,
        True,
        False,
    ]
    assert facts.CX16.holds((7, 2, 22))
    assert not facts.CX16.holds((8, 0, 0))


def test_a_release_has_the_value_of_the_last_known_before_it():
    longest = facts.LONGEST_READ
    assert [longest.at(version) for version in ((5, 0, 0), (7, 2, 9), (9, 1, 0), (10, 0, 13), (12, 0, 0))] == [
        1101,
        1085,
        1085,
        867,
        906,
    ]
    assert longest.least == 867


def test_everybody_has_the_same_longest_chain():
    for shipped in shipped_parameters():
        assert shipped.longest_layers == facts.LONGEST_READ.at(parse_version(shipped.qemu))
    assert facts.LONGEST_READ.least > MOST_LAYERS
    assert libvirt_limit((11, 3, 0)).longest == 24
