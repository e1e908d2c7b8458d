"""QEMU held between opening a chain and its first request, and again before it closes it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.need import as_root, missing

from chainlift.errors import QemuError
from chainlift.qcow2.writer import write_image
from chainlift.qemu.bench import _is_on_stdout, reading
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration
SIZE = 64 << 20


@pytest.fixture
def image(tmp_path):
    write_image(tmp_path / "x.qcow2", virtual_size=SIZE, clusters=range(SIZE >> 16))
    return tmp_path / "x.qcow2"


def bytes_read(pid):
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(lines[0].removeprefix("rchar: "))


def test_nothing_is_read_before_it_is_let_go(image):
    # On a busy machine what is soon done may be done before anybody is there to hold it again.
    for requests in (64, 1024, 16384):
        with reading(find_qemu("host"), image, (1 << 20, 1 << 20), requests=requests) as work:
            opened = bytes_read(work.process.pid)
            time.sleep(0.2)
            assert bytes_read(work.process.pid) == opened < 1 << 20
            assert work.said() == ""
            work.go()
            if not work.until_done():
                continue
            assert bytes_read(work.process.pid) - opened >= requests << 20
            assert work.said().startswith(f"Sending {requests} read requests, 1048576 bytes each, 1 in parallel")
            assert "completed" not in work.said()
            assert work.process.running
            work.go()
            assert work.process.wait(60).returncode == 0
            assert "Run completed in" in work.said()
            return
    pytest.fail("it was never held again")


def test_a_process_that_has_ended_stands_in_no_call():
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not _is_on_stdout(process.pid)


def test_leaving_ends_what_is_held(image):
    with reading(find_qemu("host"), image, (4096, 4096)) as work:
        assert work.process.running
    assert not work.process.running


def test_what_does_not_open_is_an_error_with_qemus_own_words(tmp_path):
    (tmp_path / "x.qcow2").write_bytes(b"no image" * 1000)
    with (
        pytest.raises(QemuError, match=r"qemu-img bench failed: .*not in qcow2 format"),
        reading(find_qemu("host"), tmp_path / "x.qcow2", (4096, 4096)),
    ):
        pass


def test_a_host_without_terminals_says_what_to_mount():
    if as_root() is None:
        missing("mount")
    code = "from chainlift.qemu.bench import require_terminal; require_terminal()"
    shell = 'mount -t tmpfs none /dev/pts && "$@"'
    environment = ["env", f"PYTHONPATH={':'.join(sys.path)}"]
    done = subprocess.run(
        [*as_root(), "unshare", "--mount", *environment, "sh", "-c", shell, "sh", sys.executable, "-c", code],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "MissingToolError: no pseudo-terminal can be had here (" in done.stderr
    assert done.stderr.rstrip().endswith("mount -t devpts devpts /dev/pts")
