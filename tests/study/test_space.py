import pytest

from chainlift.errors import InputError
from chainlift.study.plan_file import load_plan
from chainlift.study.space import RESERVE_BYTES, base_bytes, chain_bytes, layer_bytes, measuring_bytes, require_space


def test_a_snapshot_of_the_experiment_is_estimated_as_it_was():
    # The authors' were 4.9 MB on average.
    assert 4e6 < layer_bytes(load_plan("seed").chain) < 7e6


def test_the_base_and_every_layer_count():
    plan = load_plan("seed")
    assert chain_bytes(plan) > plan.chain.workload.size + plan.chain.length * 4e6


def test_what_a_stream_copies_counts_also_where_it_is_only_profiled():
    plan = load_plan("seed-profile")
    assert measuring_bytes(plan) < 100 << 20
    profile = plan.profile.model_copy(update={"work": ("read", "stream")})
    assert measuring_bytes(plan.model_copy(update={"profile": profile})) > base_bytes(plan)


def test_a_small_chain_asks_for_little():
    # 117 MB of chain wanted 1.81 GiB.
    chain = load_plan("quick").chain
    small = chain.model_copy(
        update={"build": "offline", "length": 40, "workload": chain.workload.model_copy(update={"size": 32 << 20})}
    )
    plan = load_plan("quick").model_copy(update={"chain": small, "tests": ("host",), "lift": ("none",)})
    assert chain_bytes(plan) + measuring_bytes(plan) + RESERVE_BYTES < 600 << 20
    squashed = plan.model_copy(update={"lift": ("none", "squash"), "lift_lengths": (40,)})
    assert measuring_bytes(squashed) - measuring_bytes(plan) == 40 * layer_bytes(small)


def test_too_little_space_says_how_much_is_needed_and_touches_nothing(tmp_path):
    with pytest.raises(InputError, match=r"the plan huge needs about 1.00 EiB free, there are .*; make room") as caught:
        require_space(tmp_path / "not/there", 1 << 60, "the plan huge")
    assert caught.value.exit_status == 2
    assert not (tmp_path / "not").exists()


def test_writes_take_a_cluster_each_in_a_throw_away_layer():
    plan = load_plan("quick")
    writing = plan.model_copy(update={"host_read": plan.host_read.model_copy(update={"also": ("write",)})})
    assert measuring_bytes(writing) - measuring_bytes(plan) == 2 * 1000 * 65536
