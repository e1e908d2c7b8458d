"""Every sentence of a report on odd data: none states what its samples do not bear."""

import numpy as np
import pytest
from tests.support.results import host_read

from chainlift.report import write_report
from chainlift.report.data import Results
from chainlift.report.explain import effects, explanation
from chainlift.report.findings import headline, lift_sentences, limits_sentence, memory_sentence
from chainlift.report.growths import growth_sentence
from chainlift.report.warnings import warnings


def repeats(costs, spread=0.01, **more):
    """Three repeats of each length; their noise is a share of the cost."""
    return [host_read(n, v * (1 + spread * (r - 1)), repeat=r, **more) for n, v in costs.items() for r in range(3)]


@pytest.fixture
def load(make):
    def loader(*samples, **more):
        return Results.load([make(*samples, **more)])

    return loader


def test_an_index_that_is_slower_than_the_chain_is_said_to_be(load):
    found = load(*repeats({1: 0.01, 300: 0.05}), *repeats({300: 0.2}, lift="index"))
    (sentence,) = lift_sentences(found)
    assert "takes 20 times the CPU time of one through 1 (95 %: 20 to 20), instead of 5.00 times" in sentence
    assert "beside the chain itself 0.25 times its speed (95 %: 0.24 to 0.26)" in sentence


def test_a_lift_whose_gain_is_noise_is_not_called_faster(load):
    found = load(*repeats({1: 0.01, 300: 0.05}, 0.3), *repeats({300: 0.045}, 0.3, lift="index"))
    (sentence,) = lift_sentences(found)
    assert "whether it is faster than the chain itself cannot be told" in sentence


def test_a_chain_that_costs_less_is_not_said_to_cost_more(load):
    found = load(*repeats({1: 0.1, 300: 0.05}))
    assert headline(found).startswith(
        "A 4 KiB read through 300 layers takes 0.50 times the CPU time of one through 1 (95 %: 0."
    )
    assert explanation(found)[0].startswith("It costs less, beyond the noise, in host reads of 4 KiB")


def test_of_one_length_there_is_no_comparison(load):
    found = load(*repeats({300: 0.05}))
    assert headline(found) == "A 4 KiB read through 300 layers takes 50.0 µs (95 %: 48.8 µs to 51.3 µs)."
    assert (growth_sentence(found), memory_sentence(found), explanation(found), lift_sentences(found)) == (
        None, None, [], [],
    )  # fmt: skip


def test_one_repeat_has_no_interval_and_no_exponent(load):
    found = load(*[host_read(n, 0.01 * n) for n in (1, 30, 100, 200, 300)])
    assert headline(found).endswith("takes 300 times the CPU time of one through 1 (measured once).")
    assert "cannot be told: it takes 4 lengths with two repeats or more, there are 0" in growth_sentence(found)
    assert "Measured once" in explanation(found)[0]


def test_a_length_that_crashed_in_some_repeats_is_named(load):
    good = repeats({n: 0.01 + 1e-5 * n**2 for n in (1, 100, 200, 300, 400)})[:-1]
    crash = [host_read(400, 0, outcome="crashed", signal=11, metrics={}, repeat=2)]
    always = [host_read(500, 0, outcome="crashed", signal=11, metrics={}, repeat=r) for r in range(3)]
    found = load(*good, *crash, *always)
    assert growth_sentence(found).endswith("Left out: 500 (crashed).")
    assert any("at length 400 1 of 3 repeats crashed" in text for text in warnings(found))
    assert not any("at length 500" in text and "repeats" in text for text in warnings(found))


def test_samples_without_any_variance_claim_no_interval_and_no_exponent(load):
    found = load(*repeats({n: 0.01 * n for n in (1, 100, 200, 300)}, 0))
    assert headline(found).endswith("takes 300 times the CPU time of one through 1 (all samples are alike).")
    assert "the repeats do not differ at all" in growth_sentence(found)


def test_pure_noise_is_an_effect_in_one_of_twenty_reports_at_most(make):
    rng = np.random.default_rng(7)
    runs = 60
    claimed = 0
    for run in range(runs):
        samples = [
            host_read(n, 0.01 * float(np.exp(rng.normal(0, 0.2))), repeat=r)
            for n in (1, 100, 200, 300)
            for r in range(3)
        ]
        found = Results.load([make(*samples, name=f"run-{run}")])
        (effect,) = effects(found)
        claimed += effect.verdict.value != "cannot be told"
        assert ("cannot be told" in headline(found)) == (effect.verdict.value == "cannot be told")
        assert "cannot be told" in growth_sentence(found)
    assert claimed <= 0.1 * runs


def test_what_was_only_measured_behind_an_index_is_not_the_chains_own_cost(load):
    found = load(*repeats({1: 0.01, 300: 0.0125}, lift="index"))
    assert headline(found).startswith("Behind an index, a 4 KiB read through 300 layers takes 1.25 times the CPU time")
    assert found.label(found.series[0]) == "index"
    assert (explanation(found), lift_sentences(found)) == ([], [])
    text = write_report([found.runs[0].path]).read_text(encoding="utf-8")
    assert "behind an index, how what the chain adds" in text.lower()


def test_an_index_that_was_measured_at_all_lengths_has_a_line(load):
    found = load(*repeats({1: 0.01, 100: 0.1, 300: 0.4}), *repeats({1: 0.01, 100: 0.011, 300: 0.012}, lift="index"))
    text = write_report([found.runs[0].path]).read_text(encoding="utf-8")
    assert "behind the index" in text


def test_other_depths_are_reported_as_the_known_ones_are(load):
    samples = [s for d, k in (("d8", 2), ("d4", 1)) for s in repeats({1: k, 300: 40 * k}, variant=f"4k-strided-{d}")]
    found = load(*samples)
    assert headline(found).startswith(
        "A 4 KiB read at depth 4 through 300 layers takes 40 times the CPU time of one through 1"
    )
    text = write_report([found.runs[0].path]).read_text(encoding="utf-8")
    assert "4 KiB read on the host" in text


def test_a_limit_that_was_not_reached_is_a_lower_bound(load):
    reached = host_read(120, 0, test="limits", variant="read", metrics={"longest": 80.0, "signal": 11.0})
    longest = host_read(120, 0, test="limits", variant="read", metrics={"longest": 120.0}, qemu="other")
    alone = limits_sentence(load(longest, name="a"))
    assert alone == "QEMU other reads chains of 120 layers, the longest that was tried, and may read longer ones."
    assert limits_sentence(load(reached, longest, name="b")) == (
        "The longest chains that can be read: 80 on QEMU 7.2.22, at least 120 on QEMU other."
    )
    none = host_read(120, 0, test="limits", variant="read", metrics={"longest": 0.0})
    assert limits_sentence(load(none, name="c")) == "QEMU 7.2.22 reads no chain at all."


def test_memory_within_the_noise_is_not_more(load):
    def memory(n, mib, r):
        return host_read(n, 0, test="memory", variant="boot-halt", metrics={"peak_rss_bytes": mib * 2**20}, repeat=r)

    both = ((1, (10, 30, 50)), (300, (20, 40, 60)))
    samples = [memory(n, mib, r) for n, each in both for r, mib in enumerate(each)]
    assert memory_sentence(load(*samples)) == (
        "Whether QEMU's memory after boot and halt is more through 300 layers than through 1 cannot be told "
        "(95 %: -35.3 MiB to 55.3 MiB)."
    )


def test_a_rate_that_rises_is_not_called_lower(load):
    def rate(n, iops, r):
        return host_read(n, 0, test="random", variant="", metrics={"iops": iops * (1 + 0.01 * r)}, repeat=r)

    found = load(*[rate(n, iops, r) for n, iops in ((1, 100.0), (300, 150.0)) for r in range(3)])
    assert "is 1.50 times higher through 300 layers than through 1" in headline(found)
    assert "1.50x more" in write_report([found.runs[0].path]).read_text(encoding="utf-8")


def test_sentence_and_figure_are_of_the_same_quantity(load):
    found = load(*repeats({1: 0.01, 300: 0.43}), *repeats({300: 0.0125}, lift="index"))
    assert "the CPU time of one" in lift_sentences(found)[0]
    text = write_report([found.runs[0].path]).read_text(encoding="utf-8")
    assert "Host, 4 KiB strided, CPU time" in text
