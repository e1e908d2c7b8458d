from datetime import UTC, datetime

import pytest

from chainlift.profiling.stacks import Stacks, profile_name, save_stacks
from chainlift.report import write_report
from chainlift.report.data import Results
from chainlift.report.profiles import calls_sentence, draw_flame_graphs, hot_tables, profiled, share_by_function
from chainlift.results.model import Sample

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INSERTED = {1: 0, 30: 30, 300: 80}


def stacks(length, name="bdrv_is_inserted"):
    share = INSERTED[length]
    return Stacks({
        ("start", *("preadv", "qcow2") * length, *[name] * length): share,
        ("start", *("preadv", "qcow2") * length, "[qemu-img+0x10]"): 5,
        ("start", "entry_SYSCALL_64_[k]"): 95 - share,
    })  # fmt: skip


@pytest.fixture
def directory(make):
    samples = []
    for qemu in ("host", "debian:trixie"):
        for length, share in INSERTED.items():
            cpu = 10e-6 * length**2
            metrics = {"samples": 100.0, "share_is_inserted": share / 100, "unknown_share": 0.05}
            timed = {"wall_s": cpu, "cpu_user_s": cpu, "cpu_sys_s": 0.0, "requests": 1.0}
            common = {"length": length, "qemu": qemu, "repeat": 0, "started_at": NOW}
            samples.append(Sample(test="profile", variant="host-4k", metrics=metrics, **common))
            samples.append(Sample(test="host", variant="4k-strided-d1", metrics=timed, **common))
    path = make(*samples)
    for qemu, name in (("host", "bdrv_is_inserted"), ("debian:trixie", "bdrv_co_is_inserted")):
        for length in INSERTED:
            save_stacks(path / "profiles", profile_name("host-4k", qemu, length), stacks(length, name))
    return path


def test_flame_graphs_are_drawn_of_the_ends_and_of_what_differs(directory):
    draw_flame_graphs(Results.load([directory]))
    assert sorted(path.stem for path in (directory / "profiles").glob("*.svg")) == [
        "host-4k--debian-trixie--300-layers",
        "host-4k--debian-trixie--300-layers--against--host",
        "host-4k--host--1-layers",
        "host-4k--host--300-layers",
        "host-4k--host--300-layers--against--1-layers",
    ]


def test_shares_add_up_and_no_sample_without_a_name_counts_to_one(directory):
    shares = share_by_function(stacks(300), ["bdrv_is_inserted"])
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["bdrv_is_inserted"] == 0.8
    assert shares["functions without a name"] == 0.05


def test_hot_functions_are_a_table_by_length(directory):
    (table,) = hot_tables(Results.load([directory]))
    rows = table.as_data()["rows"]
    ours = next(row for row in rows if row["function"] == "bdrv_co_is_inserted")
    assert (ours["share_1"], ours["share_30"], ours["share_300"]) == (0, 0.3, 0.8)


def test_what_the_calls_cost_is_computed_from_share_and_time(directory):
    sentence = calls_sentence(Results.load([directory]))
    # 0.3 * 9 ms at 30 layers and 0.8 * 0.9 s at 300.
    assert (
        "a 4 KiB read spends 2.7 ms at 30 layers and 720 ms at 300 layers of CPU time in bdrv_is_inserted" in sentence
    )
    assert "length^" not in sentence, "a share of one profile has no interval"


def test_the_page_holds_the_graphs_the_chart_and_the_sentence(directory):
    page = write_report([directory]).read_text()
    assert "Hot functions by chain length" in page
    assert page.count("<iframe") == 5
    assert "of CPU time in bdrv_is_inserted" in page
    assert "host-4k: 80 % with QEMU" in page
    assert "(published: 54 %)" in page


def test_stacks_that_are_missing_leave_the_rest_of_the_report(directory):
    for path in (directory / "profiles").iterdir():
        path.unlink()
    assert profiled(Results.load([directory])) == []
    assert "In bdrv_is_inserted" in write_report([directory]).read_text()
