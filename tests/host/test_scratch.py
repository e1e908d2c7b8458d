import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chainlift.host.scratch import ScratchDirectory, remove_left

_CODE = """
import sys, time
from chainlift.host.scratch import ScratchDirectory
with ScratchDirectory() as place:
    (place / "qmp").touch()
    print(place, flush=True)
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_goes_with_what_is_in_it(own_place):
    with ScratchDirectory() as place:
        assert place.parent == own_place
        (place / "file").touch()
    assert list(own_place.iterdir()) == []


def test_what_a_killed_process_has_left_is_removed_by_the_next_and_only_that(own_place):
    """One process still runs; another user's program has a name that begins alike."""
    environment = {**os.environ, "TMPDIR": str(own_place)}
    processes = [
        subprocess.Popen([sys.executable, "-c", _CODE], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    there = [process.stdout.readline().strip() for process in processes]
    other = own_place / "chainlift-somebody"
    other.mkdir()
    (own_place / "chainlift_link").symlink_to(other)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait()
    with ScratchDirectory() as mine:
        assert {path.name for path in own_place.iterdir()} == {
            Path(there[1]).name, mine.name, other.name, "chainlift_link"
        }  # fmt: skip
    processes[1].kill()
    processes[1].wait()
    remove_left(again=True)
    assert {path.name for path in own_place.iterdir()} == {other.name, "chainlift_link"}
    for process in processes:
        process.stdout.close()


def test_many_at_once_take_nothing_away_from_each_other(own_place):
    code = """
import sys, tempfile
from chainlift.host.scratch import ScratchDirectory, remove_left
for _ in range(300):
    with ScratchDirectory() as place:
        (place / "file").touch()
        remove_left(again=True)
        (place / "file").unlink()
"""
    environment = {**os.environ, "TMPDIR": str(own_place)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert list(own_place.iterdir()) == []
