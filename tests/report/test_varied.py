"""What a plan varies, and latencies of single requests, in the report."""

import pytest
from tests.support.results import host_read

from chainlift.errors import InputError
from chainlift.report import document, write_report
from chainlift.report.data import Results
from chainlift.report.figures.latency import draw_latencies, histograms_of
from chainlift.report.figures.settings import draw_settings
from chainlift.report.findings import headline


def varied(costs, **more):
    return [
        host_read(n, v * (1 + 0.01 * r), repeat=r, setting=setting, **more)
        for setting, by_length in costs.items()
        for n, v in by_length.items()
        for r in range(3)
    ]


def test_the_cost_is_drawn_against_each_value_in_their_order(make):
    costs = {"l2_cache_size=64k": {1: 0.1, 300: 9.0}, "l2_cache_size=1M": {1: 0.1, 300: 4.0}}
    path = make(*varied(costs), *varied({"l2_cache_size=1M": {300: 0.2}}, lift="index"))
    picture = draw_settings(Results.load([path]))
    assert [label.get_text() for label in picture.figure.axes[0].get_xticklabels()] == [
        "l2_cache_size\n64k", "l2_cache_size\n1M", "l2_cache_size\n1M\nindex"
    ]  # fmt: skip
    assert "l2_cache_size=64k: 8.2 ms (95 %: 8.0 ms to 8.4 ms); l2_cache_size=1M: 3.6 ms" in picture.alt
    assert "Against what was varied" in write_report([path]).read_text(encoding="utf-8")


def test_ratios_and_sentences_are_within_a_setting(make):
    costs = {"cache=none": {1: 1.0, 300: 9.0}, "cache=writeback": {1: 0.1, 300: 4.0}}
    path = make(*varied(costs), *varied({"cache=writeback": {300: 0.2}}, lift="index"))
    assert "takes 9.00 times the CPU time of one through 1 (95 %" in headline(Results.load([path]))
    rows = next(t for t in document([path]).tables if t.title.startswith("Host read: 4 KiB")).rows
    text = [str(row) for row in rows]
    assert any("40" in one and "cache=writeback" in one for one in text)
    assert not any("Behind an index" in finding for finding in document([path]).findings)


def test_where_nothing_is_varied_nothing_is_drawn_against_it(make):
    assert draw_settings(Results.load([make(host_read(1, 0.1), host_read(300, 9.0))])) is None


def test_latencies_of_all_repeats_are_drawn_by_length(make):
    path = make(host_read(1, 0.1))
    (path / "latencies").mkdir()
    for name, text in {
        "4k-single-d1--host--1-layers--0": "0.00001,90\n0.0001,9\n0.01,1\n",
        "4k-single-d1--host--1-layers--1": "0.00001,100\n",
        "4k-single-d1--host--300-layers--0": "0.001,99\n0.002,1\n",
        "4k-single-d1--host--300-layers--index--0": "0.5,100\n",
        "4k-single-d1--debian_trixie--1-layers--0": "0.5,100\n",
        "4k-single-d1--host--1-layers--cache=none--0": "0.5,100\n",
    }.items():
        (path / f"latencies/{name}.csv").write_text("at_most_s,requests\n" + text)
    found = histograms_of(Results.load([path]))
    assert found["4k-single-d1"][1].total() == 200
    assert found["4k-single-d1"][300] == {0.001: 99, 0.002: 1}, "of the chain itself, one QEMU, one setting"
    picture = draw_latencies(Results.load([path]))
    assert "1 layer: half took at most 10.0 µs, 99 % at most 100 µs" in picture.alt
    assert "300 layers: half took at most 1.0 ms, 99 % at most 1.0 ms" in picture.alt
    (path / "latencies/4k-single-d1--host--1-layers--2.csv").write_text("hello\nworld\n")
    with pytest.raises(InputError, match="is no histogram of latencies"):
        draw_latencies(Results.load([path]))
