"""The authors' later tests beside the same ones here."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from tests.support.results import NOW

from chainlift.report import document, write_report
from chainlift.report.data import Results
from chainlift.report.figures.times import draw_boot
from chainlift.report.later import later, later_table
from chainlift.report.sections import sections_of
from chainlift.results.model import Sample


def boot(length, wall_s, repeat, lift="none"):
    metrics = {"wall_s": wall_s, "open_s": 0.1, "cpu_user_s": wall_s, "cpu_sys_s": 0}
    return Sample(test="boot", length=length, repeat=repeat, lift=lift, started_at=NOW, metrics=metrics)


def rocksdb(length, ops_per_s, repeat, **more):
    metrics = {"ops_per_s": ops_per_s, "operations": 1000, "latency_p50_s": 1 / ops_per_s, "latency_p99_s": 0.1}
    return Sample(test="rocksdb", length=length, repeat=repeat, started_at=NOW, metrics=metrics, **more)


def test_the_published_values_are_those_of_their_source():
    data = json.loads(files("chainlift.report").joinpath("followup.json").read_text(encoding="utf-8"))
    assert "arXiv 2205.06842" in data["source"]
    found = later()
    assert (found.boot_s[1], found.boot_s[1000], len(found.boot_s)) == (10.242, 42.958, 11)
    # The stock run that was called 1,000 used snapshot 970.
    assert found.values["read"]["stock"] == {1: [330], 50: [305], 500: [106], 970: [48.6]}
    assert found.disk_bytes == 50_000_000_000
    # Theirs are bytes a second of a dd, and milliseconds of a boot.
    assert found.rates == {"read", "rocksdb"}


def read(length, wall_s, repeat):
    metrics = {"wall_s": wall_s, "bytes": 1 << 30}
    return Sample(test="read", length=length, repeat=repeat, started_at=NOW, metrics=metrics)


@pytest.fixture
def run(make):
    samples = [
        boot(n, s * (1 + repeat / 100), repeat) for repeat in range(3) for n, s in ((1, 4.0), (50, 5.0), (500, 12.0))
    ]
    samples += [boot(500, 4.2 + repeat / 100, repeat, "index") for repeat in range(3)]
    samples += [
        rocksdb(n, ops + repeat, repeat) for repeat in range(3) for n, ops in ((1, 3000), (50, 2000), (500, 500))
    ]
    return make(*samples)


def test_ratios_stand_beside_the_published_ones(run):
    found = later_table(Results.load([run])).as_data()["rows"]
    rows = {(row["what"], row["length"]): row for row in found}
    assert set(rows) == {("Booting the guest", 50), ("Booting the guest", 500), ("RocksDB reads in the guest", 500)}
    booted = rows["Booting the guest", 500]
    assert booted["chain"] == pytest.approx(3.0)
    assert booted["chain_low"] < 3.0 < booted["chain_high"]
    assert booted["index"] == pytest.approx(1.04, abs=0.01)
    assert booted["published_stock"] == pytest.approx(26937 / 10242)
    assert booted["published_stock_low"] is None  # one value has no interval
    assert (booted["squash"], booted["published_svd"]) == (None, None)
    # Of a rate the inverse, and over 50 layers, which is the shortest chain that both have.
    read = rows["RocksDB reads in the guest", 500]
    assert read["chain"] == pytest.approx(4.0, rel=0.01)
    assert read["published_stock"] == pytest.approx(3458 / 1095)
    assert read["published_svd"] == pytest.approx(4691 / 1408)
    assert read["published_svd_low"] < 3458 / 1095 < read["published_svd_high"]


def test_a_published_rate_stands_beside_seconds(make):
    seconds = {1: 10.0, 50: 11.0, 500: 30.0, 1000: 150.0}
    samples = [read(n, s, 0) for n, s in seconds.items()]
    rows = later_table(Results.load([make(boot(1, 4.0, 0), boot(50, 5.0, 0), *samples)])).as_data()["rows"]
    found = {row["length"]: row for row in rows if row["what"] == "Reading the disk in the guest"}
    assert found[500]["chain"] == pytest.approx(3.0)
    assert found[500]["published_stock"] == pytest.approx(330 / 106)
    assert found[500]["published_svd"] == pytest.approx(351 / 310.5)
    # Their run of "1,000" used snapshot 970: a row of its own, between ours.
    assert list(found) == [50, 500, 970, 1000]
    assert (found[970]["chain"], found[970]["published_stock"]) == (None, pytest.approx(330 / 48.6))
    assert (found[1000]["published_stock"], found[1000]["published_svd"]) == (None, pytest.approx(351 / 302))


def test_the_page_has_them_with_what_differs(run):
    page = write_report([run]).read_text()
    assert "The authors&#39; later tests" in page
    assert "Here: a disk of 1.00 GiB, a database in the base, under all of the layers" in page
    assert "Ubuntu 18.04, KVM, QEMU 4.2) and a disk of 46.6 GiB" in page
    assert (run / "figures/boot.svg").exists()
    assert "The authors' later tests" in [table.title for table in document([run]).tables]


@pytest.mark.parametrize(("name", "title"), [("followup", "By length and setting"), ("quick", "Reads without a guest")])
def test_a_growth_without_host_reads_is_not_called_one_of_them(name, title):
    found = sections_of(Results.load([Path(__file__).parents[2] / "results" / name]), [])
    assert [section.title for section in found if section.name == "host"] == [title]


def test_the_figure_has_the_published_boots_of_the_lengths_here_and_the_ends(run):
    picture = draw_boot(Results.load([run]))
    said = picture.alt.partition("Published: ")[2]
    assert said == "1 layer 10.2 s, 50 layers 12.5 s, 500 layers 26.9 s, 1,000 layers 43.0 s (4.19x)."


def test_a_run_of_the_experiments_own_tests_has_no_such_table(make):
    assert not later_table(Results.load([make(*(read(n, 1.0, 0) for n in (1, 500)))])).rows


def test_a_length_at_which_qemu_crashed_says_so(make):
    crash = Sample(test="boot", length=1000, repeat=0, started_at=NOW, outcome="crashed", signal=11)
    (row,) = later_table(Results.load([make(boot(1, 4.0, 0), crash)])).rows
    assert row[2].text == "crashed"
