"""How long a chain each release of libvirt takes; tests/field/test_libvirt_limits.py asks the one that is there."""

import pytest
from tests.support.long_chain import make_long_chain

from chainlift import open_chain
from chainlift.chain.libvirt_limits import libvirt_limit


@pytest.mark.parametrize(
    ("version", "longest"),
    [((9, 0, 0), 199), ((10, 7, 0), 199), ((10, 8, 0), 24), ((11, 3, 0), 24), ((11, 10, 0), 24), ((12, 0, 0), 199)],
)
def test_a_release_takes_a_plain_chain_of_so_many_layers(tmp_path, version, longest):
    limit = libvirt_limit(version)
    assert limit.longest == longest
    assert (limit.is_near(longest), limit.is_near(longest // 2)) == (True, False)
    with open_chain(make_long_chain(tmp_path, 3)[-1]) as chain:
        assert libvirt_limit(version, chain.layers) == limit
        assert libvirt_limit(version, chain.layers, above=9) == limit


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "longest"), [("raw", 25), ("bitmap", 21)])
def test_what_a_base_says_of_itself_counts_where_nesting_does(tmp_path, kind, longest):
    with open_chain(make_long_chain(tmp_path, 3, kind)[-1]) as chain:
        assert libvirt_limit((11, 3, 0), chain.layers).longest == longest
        assert libvirt_limit((9, 0, 0), chain.layers).longest == 199
