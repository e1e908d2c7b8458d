"""The helper that stops a verb at each of its calls sees the calls that it says it sees, and no others."""

import os
import time

import pytest
from tests.support import faults

pytestmark = pytest.mark.needs("x86-64")


def touch_everything(directory):
    """Open, read and change files; one of the calls is on a file elsewhere."""
    file = os.open(directory / "old", os.O_RDONLY)
    os.read(file, 1)
    os.pread(file, 1, 0)
    os.close(file)
    file = os.open(directory / "new", os.O_CREAT | os.O_RDWR)
    os.write(file, b"x")
    os.pwrite(file, b"y", 1)
    os.fsync(file)
    os.ftruncate(file, 1)
    os.close(file)
    os.close(os.open(directory / "old", os.O_TRUNC | os.O_WRONLY))
    os.close(os.open(directory.parent / "elsewhere", os.O_CREAT | os.O_RDWR))
    (directory / "new").rename(directory / "newer")
    (directory / "newer").unlink()
    return 0


CHANGES = ["openat", "write", "pwrite64", "fsync", "ftruncate", "openat", "rename", "unlink"]


@pytest.fixture
def directory(tmp_path):
    found = tmp_path / "d"
    found.mkdir()
    (found / "old").write_text("something")
    return found


def test_every_change_counts_and_reading_only_where_it_is_asked_for(directory):
    assert faults.run(lambda: touch_everything(directory), directory).calls == CHANGES
    (directory / "old").write_text("something")
    trace = faults.run(lambda: touch_everything(directory), directory, reads=True)
    assert (trace.calls, trace.status) == (["openat", "read", "pread64", *CHANGES], 0)


@pytest.mark.parametrize(("fault", "is_there"), [("kill before", False), ("kill after", True), ("EIO", False)])
def test_a_fault_is_where_it_was_asked_for(directory, fault, is_there):
    trace = faults.run(lambda: touch_everything(directory), directory, point=0, fault=fault)
    assert trace.hit
    assert (directory / "new").exists() == is_there
    assert trace.status == (70 if fault == "EIO" else None)
    assert ("OSError" in trace.stderr) == (fault == "EIO")


def test_a_write_is_cut_short(directory):
    def write():
        file = os.open(directory / "new", os.O_CREAT | os.O_RDWR)
        return os.write(file, b"0123456789")

    assert faults.run(write, directory, point=1, fault="short").status == 5


def test_who_is_born_while_all_are_killed_is_killed_too(tmp_path):
    def verb():
        for _ in range(3):
            if os.fork() == 0:
                while True:
                    if os.fork() == 0:
                        os._exit(0)
                    os.wait()
        time.sleep(0.02)
        (tmp_path / "file").write_bytes(b"x")
        return 0

    for _ in range(40):  # or the end of what it says is never read
        found = faults.run(verb, tmp_path, point=0, fault="kill before")
        assert (found.hit, found.status) == (True, None)
    assert not (tmp_path / "file").exists()
