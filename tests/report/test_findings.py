import pytest
from tests.support.results import host_read

from chainlift.report.data import Results
from chainlift.report.explain import explanation, verdicts
from chainlift.report.findings import (
    comparison_sentence,
    failure_sentences,
    growth_sentence,
    headline,
    lift_sentences,
    memory_sentence,
)
from chainlift.report.warnings import warnings
from chainlift.results.model import QemuFacts


def results(path):
    return Results.load([path])


def memory(length, megabytes, **more):
    metrics = {"peak_rss_bytes": 2e9, "peak_rss_without_guest_bytes": megabytes * 2**20}
    return host_read(length, 0, test="memory", variant="boot-read-halt", metrics=metrics, **more)


def test_the_headline_takes_the_shortest_and_the_longest_chain(make):
    path = make(host_read(100, 0.2), host_read(300, 0.43), host_read(1, 0.01))
    assert headline(results(path)) == "A 4 KiB read through 300 layers takes 43 times as long as through 1."


def test_without_host_reads_the_headline_is_of_another_test(make):
    iops = [host_read(n, 0, test="random", variant="", metrics={"iops": rate}) for n, rate in ((1, 900.0), (300, 30.0))]
    assert headline(results(make(*iops))) == (
        "The rate of random reads in the guest is lower through 300 layers: 30.0 /s instead of 900 /s through 1."
    )


def test_memory_is_that_of_qemu_without_the_guest(make):
    assert memory_sentence(results(make(memory(1, 10), memory(301, 310)))) == (
        "QEMU holds 300 MiB more, 1.00 MiB for each layer."
    )


def test_the_question_linear_or_factorial_is_answered_from_the_samples(make):
    path = make(*[host_read(n, 1e-3 * (10 + 0.01 * n**2)) for n in (1, 10, 100, 300)])
    sentence = growth_sentence(results(path))
    assert sentence is not None
    assert "a 4 KiB read grows as length^2.0 ± 0.0 (95 %, 3 lengths from 10 to 300)" in sentence
    assert "From 100 to 300 layers it grows 9-fold, where a linear cost would grow 3-fold and a factorial" in sentence


def test_a_lift_is_compared_with_the_chain_it_lifts(make):
    path = make(host_read(1, 0.01), host_read(300, 0.43), host_read(300, 0.0125, lift="index"))
    (sentence,) = lift_sentences(results(path))
    assert sentence == (
        "Behind an index, a 4 KiB read of the same 300 layers takes 1.25 times what it takes through 1, instead of 43 "
        "times."
    )


def test_a_crash_names_signal_and_length(make):
    crash = [host_read(n, 0, outcome="crashed", signal=11, metrics={}) for n in (2000, 1000)]
    assert failure_sentences(results(make(*crash))) == [
        "QEMU 7.2.22 crashed, signal 11 (SIGSEGV), at length 1,000, 2,000 (host 4k-strided-d1)."
    ]


def test_a_difference_within_the_noise_is_no_effect(make):
    noisy = [host_read(n, wall, repeat=i) for n in (1, 300) for i, wall in enumerate((0.01, 0.011 + n * 1e-5, 0.02))]
    (verdict,) = verdicts(results(make(*noisy)))
    assert verdict.shows == "hardly: within the noise"


def test_a_guest_that_is_the_bottleneck_is_recognised_from_its_run(make):
    samples = []
    for length, guest_s, host_s in ((1, 40.0, 0.5), (300, 44.0, 5.0)):
        samples.append(host_read(length, 0, test="read", variant="", metrics={"wall_s": guest_s, "bytes": 1 << 30}))
        samples.append(
            host_read(length, 0, variant="4m-seq-d1", metrics={"wall_s": host_s, "bytes": 1 << 30, "requests": 256})
        )
    tcg = QemuFacts(label="host", binary="q", version="7.2", source="host", accelerator="tcg")
    (ranking, bound) = explanation(results(make(*samples, qemus=[tcg])))
    assert "host reads of 4 MiB sequential, depth 1 (10x)" in ranking
    assert "500 ms at length 1, 1 % of the guest's 40.0 s and 5.00 s at length 300, 11 % of the guest's 44.0 s" in bound
    assert "the chain adds 4.50 s to the block layer's work and 4.00 s to the guest's dd" in bound
    assert "bound by the emulated CPU" in bound


@pytest.mark.parametrize(
    ("samples", "warning"),
    [
        ([host_read(1, w, repeat=i) for i, w in enumerate((1.0, 1.0, 1.5))], "spread by more than 10 %"),
        ([host_read(1, 1.0)], "1 cell has fewer than 3 samples"),
        ([host_read(1, 1.0, load_1m=9.5)], "in 1 of 1 samples the load average was over its 2 CPUs (up to 9.5)"),
    ],
)
def test_what_a_reader_must_know_is_said(make, samples, warning):
    assert any(warning in text for text in warnings(results(make(*samples))))


def test_quiet_complete_results_have_no_warning(make):
    quiet = [host_read(n, 0.1 * n + i * 1e-4, repeat=i, load_1m=0.3) for n in (1, 300) for i in range(3)]
    assert warnings(results(make(*quiet))) == []


def test_several_qemus_are_compared_at_the_longest_chain_that_all_of_them_read(make):
    qemus = [
        QemuFacts(label=label, binary="q", version=version, source=label, accelerator="tcg")
        for label, version in (("debian:trixie", "10.0.2 (Debian)"), ("host", "7.2.22"))
    ]
    samples = [host_read(n, 0.001 * n * k, qemu=q) for n in (1, 300) for q, k in (("debian:trixie", 2), ("host", 1))]
    samples.append(host_read(1000, 1.0, qemu="host"))
    loaded = results(make(*samples, qemus=qemus))
    assert (
        comparison_sentence(loaded)
        == "The CPU time of a 4 KiB read through 300 layers against 1: QEMU 10.0.2 300 times, QEMU 7.2.22 300 times."
    )
    assert headline(loaded) == "A 4 KiB read through 1,000 layers takes 1000 times as long as through 1.", "its own"


def test_a_failure_that_is_not_qemus_is_not_said_to_be_one(make):
    failed = host_read(1, 0, lift="squash", outcome="failed", detail="a chain of length 1 needs no squash", metrics={})
    assert failure_sentences(results(make(failed))) == [
        "Measuring behind the squash failed, at length 1 (host 4k-strided-d1): a chain of length 1 needs no squash."
    ]


def test_where_only_limits_were_measured_they_are_the_headline(make):
    limit = host_read(2000, 0, test="limits", variant="read", metrics={"longest": 866.0})
    assert headline(results(make(limit))) == "QEMU 7.2.22 reads chains of up to 866 layers."


def test_on_a_busy_machine_the_headline_is_of_cpu_time(make):
    def read(length, wall_s, cpu_s, **more):
        metrics = {"wall_s": wall_s, "cpu_user_s": cpu_s, "requests": 1000, "bytes": 4096000}
        return host_read(length, 0, metrics=metrics, load_1m=12.0, **more)

    loaded = results(make(read(1, 0.1, 0.01), read(300, 30.0, 0.43), read(300, 9.0, 0.0125, lift="index")))
    assert headline(loaded) == "A 4 KiB read through 300 layers takes 43 times the CPU time of one through 1."
    (sentence,) = lift_sentences(loaded)
    assert sentence.endswith("takes 1.25 times the CPU time of one through 1, instead of 43 times.")
