import json

import pytest
from tests.support.results import NOW, host_read

from chainlift.report import result_tables
from chainlift.report.data import Results
from chainlift.report.tables import attempts_table
from chainlift.results.model import LimitAttempt
from chainlift.results.store import ResultDirectory


def test_a_table_has_medians_spread_and_ratios_by_length(make):
    path = make(*[host_read(n, w * n, repeat=i) for n in (1, 30) for i, w in enumerate((1.0, 1.2, 1.1))])
    table = result_tables([path])[0]
    assert table.title == "Host read: 4 KiB strided, depth 1, time a request"
    assert [[e.text for e in row][:6] for row in table.visible.rows] == [
        ["1", "1.1 ms", "1.0 ms", "1.2 ms", "1.00x", ""],
        ["30", "33.0 ms", "30.0 ms", "36.0 ms", "30x", "24 to 37"],
    ]
    row = table.as_data()["rows"][1]
    assert row["request_s"] == 0.033
    assert row["low_request_s"] < 0.030 < 0.036 < row["high_request_s"]
    assert row["ratio_low"] < 30 < row["ratio_high"]


def test_a_crash_stands_where_its_figure_would(make):
    path = make(host_read(1, 1.0), host_read(1000, 0, outcome="crashed", signal=11, metrics={}))
    tables = {t.title: t for t in result_tables([path])}
    assert tables["Host read: 4 KiB strided, depth 1, time a request"].rows[1][1].text == "crashed, signal 11 (SIGSEGV)"
    assert tables["Crashes and failures"].rows[0][2].value == 1000


def test_series_are_named_only_where_there_are_several(make):
    alone = result_tables([make(host_read(1, 1.0), name="alone")])[0]
    both = result_tables([make(host_read(1, 1.0), host_read(1, 1.0, lift="index"), name="both")])[0]
    assert alone.columns[0].title == "Length"
    assert [row[0].text for row in both.rows] == ["plain chain", "index"]


def test_the_ratio_of_a_lift_is_to_the_shortest_plain_chain(make):
    path = make(host_read(1, 1.0), host_read(300, 40.0), host_read(300, 1.5, lift="index"))
    assert [row[5].text for row in result_tables([path])[0].visible.rows] == ["1.00x", "40x", "1.50x"]


def test_every_table_of_recorded_results_is_json(recorded):
    tables = result_tables([recorded])
    assert len(tables) > 5
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        keys = [c.key for c in table.columns]
        assert len(keys) == len(set(keys)), table.title
        json.dumps(table.as_data(), allow_nan=False)


def test_without_samples_there_is_no_table(make):
    assert result_tables([make()]) == []


def test_the_limits_of_a_qemu_say_what_stopped_it(make):
    limit = host_read(
        2000, 0, test="limits", variant="read", metrics={"longest": 866.0, "open_s": 4.5, "file_descriptors": 870.0},
        detail="QEMU ended by signal 11 (SIGSEGV) at 867 layers",
    )  # fmt: skip
    (table,) = result_tables([make(limit)])
    texts = [entry.text for entry in table.rows[0]][1:]
    assert texts == ["read", "866", "4.50 s", "870", "QEMU ended by signal 11 (SIGSEGV) at 867 layers"]


def test_every_length_that_was_tried_is_told_beside_the_other_releases(make):
    path = make(host_read(2000, 0, test="limits", variant="read", metrics={"longest": 1000.0}))
    results = ResultDirectory.open(path)
    for qemu, length, open_s, signal in (
        ("host", 1000, 3.3, None), ("host", 1500, 8.0, 11), ("other", 1000, 33.0, 11), ("other", 2000, None, 14)
    ):  # fmt: skip
        results.append_attempt(
            LimitAttempt(qemu=qemu, repeat=0, length=length, started_at=NOW, open_s=open_s, signal=signal)
        )
    table = attempts_table(Results.load([path]))
    assert [column.title for column in table.columns] == ["Length", "QEMU 7.2.22", "QEMU other"]
    assert [[entry.text for entry in row] for row in table.rows] == [
        ["1,000", "3.30 s", "33.0 s, signal 11"],
        ["1,500", "8.00 s, signal 11", ""],
        ["2,000", "", "not opened, took too long"],
    ]
    assert attempts_table(Results.load([make(name="without")])).rows == ()


def noisy(costs, **more):
    return [host_read(n, v * (1 + 0.01 * (r - 1)), repeat=r, **more) for n, v in costs.items() for r in range(3)]


def test_growth_of_several_series_stands_side_by_side_over_the_same_lengths(make):
    lengths = (1, 10, 50, 100, 300)
    reads = noisy({n: 0.01 + 1e-6 * n for n in lengths}, qemu="a")
    # Were its longest chain counted, the other would be cubic.
    reads += noisy({n: 0.01 + 1e-6 * n**2 for n in lengths} | {1000: 1000.0}, qemu="b")
    table = next(t for t in result_tables([make(*reads)]) if t.title.startswith("Growth"))
    assert [c.title for c in table.visible.columns] == [
        "What the chain adds to",
        "Over the lengths",
        "QEMU a",
        "QEMU b",
    ]
    assert table.rows[0][1].text == "1, 10, 50, 100, 300"
    row = table.as_data()["rows"][0]
    assert row["exponent, QEMU b"] == pytest.approx(2.0, abs=0.02)
    assert row["exponent_low, QEMU b"] < 2 < row["exponent_high, QEMU b"]
    assert row["exponent, QEMU a"] is None, "a hundredth of noise hides what it adds"
    assert table.rows[0][2].text == "cannot be told"


def test_a_growth_that_cannot_be_told_says_why_and_what_was_left_out(make):
    reads = noisy({n: 0.01 + 1e-6 * n**2 for n in (1, 100, 300)})
    reads += [host_read(500, 0, outcome="crashed", signal=11, metrics={}), host_read(200, 0.05)]
    table = next(t for t in result_tables([make(*reads)]) if t.title.startswith("Growth"))
    row = table.as_data()["rows"][0]
    assert row["exponent"] is None
    assert row["untold"] == "it takes 4 lengths with two repeats or more, there are 3"
    assert row["left_out"] == "200 (one sample), 500 (crashed)"
    # A sentence says so once; people do not see it of every measure once more.
    assert not table.shown


def test_a_growth_that_is_told_is_shown(make):
    reads = noisy({n: 0.01 + 1e-6 * n**2 for n in (1, 50, 100, 200, 300)})
    table = next(t for t in result_tables([make(*reads)]) if t.title.startswith("Growth"))
    assert table.shown
