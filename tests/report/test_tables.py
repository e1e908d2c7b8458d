import json

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
    assert [[e.text for e in row][:5] for row in table.rows] == [
        ["1", "1.1 ms", "1.0 ms", "1.2 ms", "1.00x"],
        ["30", "33.0 ms", "30.0 ms", "36.0 ms", "30x"],
    ]
    assert table.as_data()["rows"][1]["request_s"] == 0.033


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
    assert [row[5].text for row in result_tables([path])[0].rows] == ["1.00x", "40x", "1.50x"]


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


def test_growth_of_several_series_stands_side_by_side(make):
    reads = [host_read(n, 0.01 + 1e-6 * n**k, qemu=q) for n in (1, 10, 100, 300) for q, k in (("a", 1), ("b", 2))]
    table = next(t for t in result_tables([make(*reads)]) if t.title.startswith("Growth"))
    assert [c.title for c in table.columns] == ["What the chain adds to", "QEMU a", "QEMU b"]
    assert [round(float(e.value), 1) for e in table.rows[0][1:]] == [1.0, 2.0]
