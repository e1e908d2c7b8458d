import os
import subprocess
import time

import pytest

from chainlift.host import pace
from chainlift.host.pace import Pace, Watched


def test_what_is_started_is_kept_on_one_processor_and_that_is_looked_at():
    before = os.sched_getaffinity(0)
    with Pace().watching() as watched:
        process = subprocess.Popen(["sleep", "60"])
        while len(watched.looks) < 3:
            time.sleep(0.001)
    assert len(os.sched_getaffinity(process.pid)) == 1
    process.kill()
    process.wait()
    assert watched.slowdown >= 1
    assert os.sched_getaffinity(0) == before


def test_this_thread_goes_back_after_an_error():
    before = os.sched_getaffinity(0)
    with pytest.raises(FileNotFoundError), Pace().watching():
        subprocess.run(["/nowhere"])
    assert os.sched_getaffinity(0) == before


def test_a_slower_moment_is_seen_beside_the_fastest(monkeypatch):
    seen = []
    monkeypatch.setattr(pace, "_work_s", lambda _cpu: 1.0)
    found = Pace()
    for took_s in (1.0, 1.8, 0.5, 1.0):
        monkeypatch.setattr(pace, "_work_s", lambda _cpu, took_s=took_s: took_s)
        with found.watching() as watched:
            pass
        seen.append(watched.slowdown)
    assert seen == [1.0, 1.8, 1.0, 2.0]
    assert Watched().slowdown is None
