import pytest
from tests.support.results import host_read

from chainlift.report.data import Results
from chainlift.report.explain import effects, explanation
from chainlift.report.findings import (
    comparison_sentence,
    failure_sentences,
    headline,
    lift_sentences,
    memory_sentence,
)
from chainlift.report.growths import growth_sentence
from chainlift.report.method import how_it_was_measured
from chainlift.report.warnings import warnings
from chainlift.results.model import Conditions, QemuFacts


def results(path):
    return Results.load([path])


def thrice(costs, spread=0.01, **more):
    """Three repeats of each length, their noise a hundredth."""
    return [host_read(n, v * (1 + spread * (r - 1)), repeat=r, **more) for n, v in costs.items() for r in range(3)]


def memory(length, megabytes, **more):
    metrics = {"peak_rss_bytes": 2e9, "peak_rss_without_guest_bytes": megabytes * 2**20}
    return host_read(length, 0, test="memory", variant="boot-read-halt", metrics=metrics, **more)


def test_the_headline_takes_the_shortest_and_the_longest_chain(make):
    path = make(host_read(100, 0.2), host_read(300, 0.43), host_read(1, 0.01))
    assert (
        headline(results(path))
        == "A 4 KiB read through 300 layers takes 43 times the CPU time of one through 1 (measured once)."
    )


def test_without_host_reads_the_headline_is_of_another_test(make):
    iops = [host_read(n, 0, test="random", variant="", metrics={"iops": rate}) for n, rate in ((1, 900.0), (300, 30.0))]
    assert headline(results(make(*iops))) == (
        "The rate of random reads in the guest is 30 times lower through 300 layers than through 1: 30.0 /s instead of "
        "900 /s (measured once)."
    )


def test_memory_is_that_of_qemu_without_the_guest(make):
    samples = [memory(n, m + r, repeat=r) for n, m in ((1, 10), (301, 310)) for r in range(3)]
    assert memory_sentence(results(make(*samples))) == (
        "QEMU's memory after reading the disk is 300 MiB more through 301 layers than through 1 (95 %: 298 MiB to 302 "
        "MiB), 1.00 MiB for each layer."
    )


def test_the_question_linear_or_factorial_is_answered_from_the_samples(make):
    path = make(*thrice({n: 1e-3 * (10 + 0.01 * n**2) for n in (1, 10, 100, 200, 300)}))
    sentence = growth_sentence(results(path))
    assert sentence is not None
    assert "a 4 KiB read grows as length^2.0 (95 %: 1.98 to 2.02; 15 samples at 5 lengths, 1 to 300)." in sentence
    assert "The samples rule linear and n log n growth out, but not quadratic." in sentence
    assert "From 200 to 300 layers the whole cost grows 2.2-fold (95 %: 2.17 to 2.27); a linear one" in sentence


def test_a_lift_is_compared_with_the_chain_it_lifts(make):
    path = make(host_read(1, 0.01), host_read(300, 0.43), host_read(300, 0.0125, lift="index"))
    (sentence,) = lift_sentences(results(path))
    assert sentence == (
        "Behind an index, a 4 KiB read through 300 layers takes 1.25 times the CPU time of one through 1, instead of "
        "43 times: beside the chain itself 34 times its speed (measured once)."
    )


def test_a_crash_names_signal_and_length(make):
    crash = [host_read(n, 0, outcome="crashed", signal=11, metrics={}) for n in (2000, 1000)]
    assert failure_sentences(results(make(*crash))) == [
        "QEMU 7.2.22 crashed, signal 11 (SIGSEGV), at length 1,000, 2,000 (host 4k-strided-d1)."
    ]


def test_a_difference_within_the_noise_is_no_effect(make):
    noisy = [host_read(n, wall, repeat=i) for n in (1, 300) for i, wall in enumerate((0.01, 0.011 + n * 1e-5, 0.02))]
    loaded = results(make(*noisy))
    (effect,) = effects(loaded)
    assert effect.verdict.value == "cannot be told"
    assert explanation(loaded) == [
        "No difference can be told in host reads of 4 KiB strided, depth 1, CPU time (1.27x, 0.48 to 2.46x)."
    ]


def test_a_guest_that_is_the_bottleneck_is_recognised_from_its_run(make):
    samples = []
    for length, guest_s, host_s in ((1, 40.0, 0.5), (300, 44.0, 5.0)):
        for r in range(3):
            noise = 1 + 0.001 * r
            dd = {"wall_s": guest_s * noise, "bytes": 1 << 30}
            read = {"wall_s": host_s * noise, "bytes": 1 << 30, "requests": 256}
            samples.append(host_read(length, 0, test="read", variant="", metrics=dd, repeat=r))
            samples.append(host_read(length, 0, variant="4m-seq-d1", metrics=read, repeat=r))
    tcg = QemuFacts(label="host", binary="q", version="7.2", source="host", accelerator="tcg")
    (ranking, bound) = explanation(results(make(*samples, qemus=[tcg])))
    assert "host reads of 4 MiB sequential, depth 1 (10x" in ranking
    assert "500 ms at 1 layer, 1 % of the guest's 40.0 s (95 %: 1 % to 1 %) and 5.00 s at 300 layers" in bound
    assert "The chain adds 4.50 s (95 %: 4.49 s to 4.52 s) to the block layer's work and 4.00 s (95 %" in bound
    assert "At 1 layer at most 1 % of the guest's dd are the block layer's; the rest is the emulated CPU" in bound


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
    assert comparison_sentence(loaded) == (
        "The CPU time of a 4 KiB read through 300 layers against 1: QEMU 10.0.2 300 times (measured once), QEMU 7.2.22 "
        "300 times (measured once)."
    )
    assert (
        headline(loaded)
        == "A 4 KiB read through 1,000 layers takes 1000 times the CPU time of one through 1 (measured once)."
    ), "its own"


def test_a_failure_that_is_not_qemus_is_not_said_to_be_one(make):
    failed = host_read(1, 0, lift="squash", outcome="failed", detail="a chain of length 1 needs no squash", metrics={})
    assert failure_sentences(results(make(failed))) == [
        "Measuring behind the squash failed, at length 1 (host 4k-strided-d1): a chain of length 1 needs no squash."
    ]


def test_where_only_limits_were_measured_they_are_the_headline(make):
    limit = host_read(2000, 0, test="limits", variant="read", metrics={"longest": 866.0})
    assert headline(results(make(limit))) == "QEMU 7.2.22 reads chains of up to 866 layers."


def test_however_busy_the_machine_is_the_headline_is_of_cpu_time_where_that_is_known(make):
    def read(length, wall_s, cpu_s, **more):
        metrics = {"wall_s": wall_s, "cpu_user_s": cpu_s, "requests": 1000, "bytes": 4096000}
        return host_read(length, 0, metrics=metrics, **more)

    loaded = results(make(read(1, 0.1, 0.01), read(300, 30.0, 0.43), read(300, 9.0, 0.0125, lift="index")))
    assert (
        headline(loaded)
        == "A 4 KiB read through 300 layers takes 43 times the CPU time of one through 1 (measured once)."
    )
    (sentence,) = lift_sentences(loaded)
    assert "takes 1.25 times the CPU time of one through 1, instead of 43 times: beside" in sentence
    unknown = [host_read(n, 0, metrics={"wall_s": w, "requests": 10}) for n, w in ((1, 0.1), (300, 30.0))]
    assert "takes 300 times as long as through 1" in headline(results(make(*unknown, name="unknown")))


def test_it_is_said_how_many_samples_were_disturbed_and_what_was_done_about_it(make):
    def read(repeat, others, steal=0.0, **more):
        disturbed = others > 0.1 or steal > 0.02
        seen = Conditions(others_share=others, steal_share=steal, slowdown=1, is_disturbed=disturbed, **more)
        return host_read(1, 1.0, repeat=repeat, conditions=seen)

    path = make(read(0, 0.05), read(1, 0.4, runs=3, waited_s=20.0), read(2, 0.04, steal=0.2), name="busy")
    (said,) = [text for text in warnings(results(path)) if "not quiet" in text]
    assert "others ran beside 2 of 3 samples (they took 5 % of the CPUs in the median, up to 40 %)" in said
    assert "The hypervisor gave up to 20 % of the CPUs to others." in said
    assert "The study waited 20.0 s and measured 1 sample again." in said
    assert any("1 of 3 samples were taken on a quiet machine" in text for text in how_it_was_measured(results(path)))
    quiet = make(*(read(n, 0.01) for n in range(3)), name="quiet")
    assert not [text for text in warnings(results(quiet)) if "quiet" in text or "busy" in text]
