"""What else the machine does while a study measures."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.study import OFFLINE

from chainlift.errors import InputError
from chainlift.results.model import Conditions
from chainlift.study import quiet as module
from chainlift.study.pin import pinned, require_cpus
from chainlift.study.plan_file import parse_plan
from chainlift.study.plan_tables import QuietPlan
from chainlift.study.progress import Silent
from chainlift.study.quiet import Watch, least_disturbed
from chainlift.study.runner import run_study


def spin(seconds):
    ended = time.process_time() + seconds
    while time.process_time() < ended:
        pass


def test_what_others_take_is_told_from_what_the_study_takes():
    code = "import time\nwhile time.process_time() < 60: pass"
    watch = Watch(QuietPlan())
    watch.begin()
    spin(0.3)
    before = watch.end()
    # One that is not waited for is no part of the study: its CPU time is others'.
    other = subprocess.Popen([sys.executable, "-c", code])
    try:
        watch.begin()
        began = time.monotonic()
        while (used := _cpu_s(other.pid)) < 0.3:
            time.sleep(0.01)
        seen = watch.end()
        share = used / (time.monotonic() - began) / len(os.sched_getaffinity(0))
    finally:
        other.kill()
        other.wait()
    assert seen.others_share > 0.5 * share
    assert 0 <= before.others_share <= 1
    assert seen.slowdown >= 1


def _cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves, and a machine on which others take ``busy`` of the CPUs."""
    now, busy = [0.0], [0.9]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    monkeypatch.setattr(Watch, "_others", lambda self, before, after: busy[0])
    monkeypatch.setattr(Watch, "_measure_slowdown", lambda self: 1.0)
    return now, busy


def test_a_study_waits_for_a_quiet_machine_up_to_a_limit_and_then_measures_anyhow(clock):
    now, _ = clock
    watch = Watch(QuietPlan(limit_s=10))
    watch.wait(Silent())
    assert now[0] == pytest.approx(10)
    watch.begin()
    seen = watch.end()
    assert seen.is_disturbed
    assert seen.waited_s == pytest.approx(10)
    watch.wait(Silent())
    assert now[0] == pytest.approx(10), "the limit is the study's, not the cell's"
    assert not watch.again(seen, took_s=0.1, runs=1)


def test_what_was_disturbed_is_measured_again_as_long_as_there_is_time(clock):
    now, busy = clock
    busy[0] = 0.0
    watch = Watch(QuietPlan(limit_s=10))
    watch.wait(Silent())
    looked = now[0]
    assert looked < 1, "a quiet machine is not waited for"
    watch.begin()
    assert not watch.again(watch.end(), took_s=1, runs=1), "nothing was disturbed"
    watch.wait(Silent())
    assert now[0] == looked, "a cell that was not disturbed has shown that it is quiet"
    busy[0] = 0.5
    watch.begin()
    disturbed = watch.end()
    assert watch.again(disturbed, took_s=4, runs=1)
    assert watch.again(disturbed, took_s=4, runs=2)
    assert not watch.again(disturbed, took_s=1, runs=3), "three times at most"
    assert not watch.again(disturbed, took_s=4, runs=1), "two seconds are left"


def test_of_several_runs_the_quiet_one_counts_else_the_one_that_was_disturbed_least():
    def seen(others, *, disturbed):
        return Conditions(others_share=others, steal_share=0, slowdown=1, is_disturbed=disturbed)

    busy = [seen(0.9, disturbed=True), seen(0.3, disturbed=True), seen(0.5, disturbed=True)]
    assert least_disturbed(busy) == 1
    assert least_disturbed([*busy, seen(0.1, disturbed=False)]) == 3


def test_a_cpu_that_is_not_there_is_refused_and_pinning_ends_with_the_study():
    before = os.sched_getaffinity(0)
    with pytest.raises(InputError, match="pin: there is no CPU 8191 to use here; there are"):
        require_cpus([min(before), 8191])
    with pinned([min(before)]):
        assert os.sched_getaffinity(0) == {min(before)}
        program = "import os; print(os.sched_getaffinity(0))"
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        assert said.strip() == str({min(before)})
    assert os.sched_getaffinity(0) == before


@pytest.mark.integration
def test_a_disturbed_cell_is_measured_again_and_every_sample_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Watch, "_others", lambda self, before, after: 0.9)
    monkeypatch.setattr(Watch, "wait", lambda self, progress: None)
    text = OFFLINE.format(chains=tmp_path / "chains").replace("[1, 3]", "[1]").replace("repeats = 2", "repeats = 1")
    results = run_study(parse_plan(text + "[quiet]\nlimit_s = 1000\n"), tmp_path / "out", Silent())
    samples = results.samples()
    assert len(samples) == 3
    assert {(s.conditions.runs, s.conditions.is_disturbed, s.conditions.others_share) for s in samples} == {
        (3, True, 0.9)
    }
