"""What comes first, and what is said of all."""

import pytest
from tests.support.surveys import advice, chain, cost

from chainlift.results.survey.overview import danger_of, overview, rank
from chainlift.results.survey.records import bin_label, bin_of


def test_depths_are_counted_in_ranges_that_double():
    labels = [bin_label(bin_of(depth)) for depth in (0, 1, 2, 3, 4, 7, 8, 300)]
    assert labels == ["0", "1", "2-3", "2-3", "4-7", "4-7", "8-15", "256-511"]


@pytest.mark.parametrize(
    ("length", "libvirt", "crash", "limit", "is_passed"),
    [
        (10, 24, 900, None, False),
        (18, 24, 900, 24, False),
        (24, 24, 900, 24, False),
        (25, 24, 900, 24, True),
        (200, 199, 900, 199, True),
        (867, None, 866, 866, True),
        (867, 199, 866, 199, True),
        (5000, None, None, None, False),
    ],
)
def test_a_limit_that_is_near_or_passed(length, libvirt, crash, limit, is_passed):
    danger = danger_of(chain("a", length, libvirt_longest=libvirt, crash_layers=crash))
    assert (limit, is_passed) == (None, False) if danger is None else (danger.limit, danger.is_passed)


def test_the_order_in_which_to_do_something():
    chains = [
        chain("fine", 2),
        chain("cheap", 50, cost=cost(2e-5), advice=advice(1e-5)),
        chain("dear", 300, cost=cost(8e-4), advice=advice(1e-5)),
        chain("runs", 40, cost=cost(3e-5), advice=advice(1e-5), is_running=True),
        chain("near", 20, cost=cost(1.5e-5), advice=advice(1e-5), libvirt_longest=24),
        chain("passed", 900, crash_layers=866, advice=advice(1e-5)),
    ]
    ranking = rank(chains)
    assert [one.chain.path for one in ranking] == ["/srv/passed", "/srv/near", "/srv/runs", "/srv/dear", "/srv/cheap"]
    assert ranking[3].gives_back_cpu_s == pytest.approx(790)
    assert ranking[0].gives_back_cpu_s is None


def test_all_together():
    chains = [
        chain("a", 3, is_running=True, cost=cost(1e-4, 5e6), advice=advice(2e-5, frees_bytes=7), own_shadowed_bytes=9),
        chain("b", 3, cost=cost(1e-4)),
        chain("c", 0, shared_base="/srv/t", shared_by=2, shared_bytes=11, broken="is gone"),
        chain("d", 1, shared_base="/srv/t", shared_by=2, shared_bytes=11),
    ]
    whole = overview(chains)
    assert (whole.chains, whole.running, whole.broken) == (4, 1, 1)
    assert (whole.lengths, whole.running_lengths) == ((1, 1, 2), (0, 0, 1))
    assert sum(whole.fall_bytes) == 4 << 20
    assert (whole.unreadable_bytes, whole.policy_frees_bytes) == (9, 7)
    assert [(base.path, base.chains, base.disk_bytes) for base in whole.shared] == [("/srv/t", 2, 11)]
    assert whole.running_cpu_s == pytest.approx(100)
    assert whole.running_cpu_back_s == pytest.approx(80)
    assert whole.running_memory_back_bytes == pytest.approx(4e6)


def test_no_chain_at_all():
    whole = overview([])
    assert (whole.chains, whole.lengths, whole.ranking) == (0, (), ())
