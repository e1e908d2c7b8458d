import csv

import pytest

from chainlift.errors import GuestError
from chainlift.lift.live.steps import Timings
from chainlift.report import write_report
from chainlift.results.metrics import METRICS
from chainlift.results.store import ResultDirectory
from chainlift.study.live_pivot import Switch, figures, read_intervals
from chainlift.study.plan_file import load_plan, parse_plan
from chainlift.study.progress import Silent
from chainlift.study.runner import cells_of, run_study

PLAN = """
name = "live"
lengths = [1, 12]
tests = ["live"]
repeats = 1
accelerator = "tcg"
chains = "{chains}"
lift = ["none", "index"]
[guest]
memory = "512M"
vcpus = 1
[chain]
build = "offline"
length = 12
size = "256M"
[chain.workload]
size = "32M"
[random]
duration_s = 1.5
"""


def test_the_last_line_was_written_now_and_gaps_are_intervals_without_a_byte():
    found = read_intervals("0 4096 1000000\n1 8192 2000000\n4 4096 300000000\n5 10 10\n", now_s=10.0)
    assert [(i.time_s, i.bytes, i.longest_s) for i in found] == [
        (9.5, 4096, 0.001), (9.6, 8192, 0.002), (9.7, 0, 0.0), (9.8, 0, 0.0), (9.9, 4096, 0.3),
    ]  # fmt: skip
    with pytest.raises(GuestError, match="noted nothing: no space left"):
        read_intervals("\n", now_s=1.0, said="no space left")


def test_each_part_has_its_rate_and_its_longest_request():
    text = "".join(f"{n} {1000 if n < 50 else 5000} {900_000_000 if n == 52 else 1_000_000}\n" for n in range(201))
    switches = [
        Switch("pivot", 5.0, 6.0, Timings([("blockdev-add", 0.05)]), 9),
        Switch("restore", 15.0, 15.5, Timings()),
    ]
    found = figures(read_intervals(text, now_s=20.0), switches)
    assert (found["quiet_stall_s"], found["stall_s"], found["restore_stall_s"]) == (0.001, 0.9, 0.001)
    assert found["bytes_per_s_before"] == pytest.approx(10_000)
    assert found["bytes_per_s_after"] == pytest.approx(50_000)
    assert (found["pivot_s"], found["longest_command_s"], found["extents"]) == (1.0, 0.05, 9.0)


def test_a_part_in_which_nothing_was_recorded_has_no_figure():
    text = "".join(f"{n} 1000 1000000\n" for n in range(100, 201))
    switches = [Switch("pivot", 0.2, 11.0, Timings(), 9), Switch("restore", 15.0, 15.5, Timings())]
    found = figures(read_intervals(text, now_s=20.0), switches)
    assert not {"quiet_stall_s", "bytes_per_s_before"} & found.keys()
    assert found["stall_s"] == 0.001


def test_a_plan_asks_for_it_by_a_key_and_only_the_longest_unlifted_chain_is_switched():
    plan = load_plan("quick").model_copy(update={"live": True})
    cells = [cell for cell in cells_of(plan) if cell.probe.title == "live pivot"]
    assert [(cell.length, cell.lift) for cell in cells] == [(300, "none")]
    assert "live" not in plan.tests


@pytest.mark.integration
def test_a_guest_reads_while_its_disk_is_switched_and_the_report_draws_it(tmp_path):
    plan = parse_plan(PLAN.format(chains=tmp_path / "chains"))
    run_study(plan, tmp_path / "out", Silent())
    (sample,) = ResultDirectory(tmp_path / "out").samples()
    assert (sample.test, sample.length, sample.lift, sample.outcome) == ("live", 12, "none", "ok")
    metrics = sample.metrics
    # How much was read before, meanwhile and afterwards is the machine's business; that it was read is certain.
    # 1.5 s before the switch may hold no whole interval.
    assert METRICS["live"].keys() - {"quiet_stall_s", "bytes_per_s_before"} <= metrics.keys() <= METRICS["live"].keys()
    assert min(metrics[name] for name in ("pivot_s", "restore_s", "longest_command_s", "extents")) > 0
    with (tmp_path / "out/live/read-12-host-1.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["event"] for row in rows if row["event"]] == [
        "pivot begins", "pivot", "restore begins", "restore",
    ]  # fmt: skip
    assert sum(float(row["bytes_per_s"]) for row in rows if row["bytes_per_s"]) > 0
    page = write_report([tmp_path / "out"]).read_text()
    assert "Throughput while the chain is lifted" in page
