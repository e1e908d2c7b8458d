import pytest

from chainlift.errors import InputError
from chainlift.study.plan import load_plan
from chainlift.study.space import base_bytes, chain_bytes, layer_bytes, measuring_bytes, require_space


def test_a_snapshot_of_the_experiment_is_estimated_as_it_was():
    # The authors' were 4.9 MB on average.
    assert 4e6 < layer_bytes(load_plan("seed").chain) < 7e6


def test_the_base_and_every_layer_count():
    plan = load_plan("seed")
    assert chain_bytes(plan) > plan.chain.workload.size + plan.chain.length * 4e6


def test_what_a_stream_copies_counts_also_where_it_is_only_profiled():
    plan = load_plan("seed-profile")
    assert measuring_bytes(plan) == 1 << 30
    profile = plan.profile.model_copy(update={"work": ("read", "stream")})
    assert measuring_bytes(plan.model_copy(update={"profile": profile})) > base_bytes(plan)


def test_too_little_space_says_how_much_is_needed_and_touches_nothing(tmp_path):
    with pytest.raises(InputError, match=r"the plan huge needs about 1.00 EiB free, there are .*; make room") as caught:
        require_space(tmp_path / "not/there", 1 << 60, "the plan huge")
    assert caught.value.exit_status == 2
    assert not (tmp_path / "not").exists()
