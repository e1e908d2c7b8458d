"""What a function causes: a QEMU beside its copy without it."""

import numpy as np
import pytest
from tests.support.results import NOW, host_read, make_environment

from chainlift.report import document
from chainlift.report.causes import cause_sentences, cause_tables, causes
from chainlift.report.data import Results
from chainlift.report.figures.bars import colours
from chainlift.results.model import QemuFacts, Sample

COPY = "host,without=bdrv_is_inserted"
LENGTHS = (1, 30, 100, 200, 300)


def qemus():
    facts = {"binary": "/q", "version": "7.2.22 (Debian 1:7.2)", "source": "host", "accelerator": "tcg"}
    return [
        QemuFacts(label="host", **facts),
        QemuFacts(label=COPY, without="bdrv_is_inserted", copy_of="host", **facts),
    ]


def read(length, cost_us, repeat, **more):
    """1,000 reads of so many microseconds of CPU."""
    metrics = {"wall_s": cost_us / 500, "requests": 1000, "bytes": 4096000, "cpu_user_s": cost_us / 1000}
    return host_read(length, 1.0, repeat=repeat, metrics=metrics, **more)


def stream(length, cpu_s, repeat, qemu):
    return Sample(
        test="stream", variant="host", length=length, repeat=repeat, qemu=qemu, started_at=NOW,
        metrics={"wall_s": 2 * cpu_s, "cpu_user_s": cpu_s, "bytes": 1 << 30},
    )  # fmt: skip


@pytest.fixture
def run(make):
    """Reads that cost 10 + n**2 / 150 us on a QEMU, and 10 + n / 4 us on its copy."""
    rng = np.random.default_rng(1)
    noise = iter(np.exp(rng.normal(0, 0.01, 1000)).tolist())
    samples = [
        one
        for repeat in range(3)
        for n in LENGTHS
        for one in (
            read(n, (10 + n * n / 150) * next(noise), repeat),
            read(n, (10 + n / 4) * next(noise), repeat, qemu=COPY),
        )
    ]
    samples += [read(300, 12 * next(noise), repeat, lift="index") for repeat in range(3)]
    samples += [
        stream(n, seconds * next(noise), repeat, qemu)
        for repeat in range(3)
        for n, qemu, seconds in ((1, "host", 1), (300, "host", 21), (1, COPY, 1), (300, COPY, 6))
    ]
    return make(*samples, qemus=qemus(), plan='name = "cause"\ntests = ["host", "stream"]\n')


def test_a_functions_share_of_the_slowdown_is_what_is_gone_of_it(run):
    found = causes(Results.load([run]))
    reads = {c.length: c for c in found if c.measure.key == "cpu_request_s"}
    assert set(reads) == {30, 100, 200, 300}
    for n, cause in reads.items():
        truth = 1 - (n / 4 - 1 / 4) / (n * n / 150 - 1 / 150)
        assert cause.share.low <= truth <= cause.share.high
        assert cause.share.value == pytest.approx(truth, abs=0.1)
    assert reads[300].left.value == pytest.approx(85 / 10.25, rel=0.05)
    (streamed,) = (c for c in found if c.measure.key == "cpu_s")
    assert streamed.share.value == pytest.approx(0.75, abs=0.03)
    # At 30 layers the check is cheaper than what else the chain adds: nothing is hidden.
    assert reads[30].share.value < 0


def test_the_report_says_it_with_intervals_and_the_growth_that_is_left(run):
    (sentence,) = cause_sentences(Results.load([run]))
    assert sentence.startswith("On QEMU 7.2.22, bdrv_is_inserted causes 88 % (95 %: 87 % to 88 %) ")
    assert "of what 300 layers add to the CPU time of a 4 KiB read; without it 300 layers take 8." in sentence
    assert "which grows as length^1.0 (95 %: " in sentence
    share, growth, rest = cause_tables(Results.load([run]))
    assert [len(share.rows), len(growth.rows), len(rest.rows)] == [5, 1, 2]
    (row,) = growth.as_data()["rows"]
    assert (row["with_ruled_out"], row["without_ruled_out"]) == ("linear, n log n", "n log n, quadratic")
    row = rest.as_data()["rows"][0]
    assert row["index_low"] < 1.2 < row["index_high"]
    assert row["chain"] > 40 > row["without"]
    found = document([run])
    assert sentence in found.findings
    assert {"What bdrv_is_inserted causes", "Growth that is left without it"} <= {t.title for t in found.tables}


def test_a_share_of_no_slowdown_is_not_told_and_names_are_not_mixed_up(make):
    samples = [
        read(n, 10 + repeat, repeat, qemu=qemu) for n in (1, 300) for qemu in ("host", COPY) for repeat in range(2)
    ]
    results = Results.load([make(*samples, qemus=qemus())])
    assert [results.qemu_name(s) for s in results.series] == [
        "QEMU 7.2.22", "QEMU 7.2.22 without bdrv_is_inserted",
    ]  # fmt: skip
    assert [cause.share for cause in causes(results)] == [None]
    (sentence,) = cause_sentences(results)
    assert "what bdrv_is_inserted causes of the CPU time of a 4 KiB read cannot be told" in sentence


def test_a_run_without_a_copy_says_nothing_of_causes(make):
    results = Results.load([make(*(read(n, n, r) for n in (1, 300) for r in range(3)))])
    assert (cause_sentences(results), cause_tables(results)) == ([], [])


def test_a_copy_alone_is_named_and_has_no_share(make):
    alone = make(*(read(n, n, r, qemu=COPY) for n in (1, 300) for r in range(3)), qemus=qemus()[1:])
    results = Results.load([alone])
    assert causes(results) == []
    assert results.qemu_name(results.series[0]) == "QEMU host without bdrv_is_inserted"


def test_environments_without_copies_are_read_as_before():
    assert make_environment().qemus[0].without == ""


def test_a_copy_has_its_originals_colour(run):
    results = Results.load([run])
    plain = [s for s in results.series if s.is_plain]
    assert len(set(colours(results, plain).values())) == 1
    assert len(set(colours(results, results.series).values())) == 2
