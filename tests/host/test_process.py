import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from chainlift.errors import MissingToolError, OperationError
from chainlift.host.process import Process, program_name, run_tool


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether the process ends (a zombie that nobody reaps has ended)."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_finished_program_says_what_it_wrote_and_took():
    finished = run_tool(["sh", "-c", "echo out; echo err >&2; cat"], input_bytes=b"given\n")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "out\ngiven\n", "err\n")
    assert finished.wall_s > 0
    assert finished.signal is None


def test_peak_memory_is_the_programs_own_not_ours():
    ours = bytearray(64 << 20)
    ours[::4096] = b"x" * len(ours[::4096])
    small = run_tool(["true"]).peak_rss_bytes
    big = run_tool([sys.executable, "-I", "-S", "-c", "b = bytearray(48 << 20); b[::4096] = b'x' * len(b[::4096])"])
    assert small < 16 << 20
    assert big.peak_rss_bytes > 48 << 20


def test_cpu_time_is_the_programs():
    finished = run_tool([sys.executable, "-I", "-S", "-c", "sum(range(6_000_000))"])
    assert finished.cpu_user_s > 0.02


def test_a_failure_is_one_line_with_the_last_words():
    with pytest.raises(OperationError, match=r"^sh failed \(exit status 3\): no good$"):
        run_tool(["sh", "-c", "echo no good >&2; exit 3"])
    assert run_tool(["sh", "-c", "kill -SEGV $$"], check=False).signal == signal.SIGSEGV


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(MissingToolError, match="no program chainlift-has-no-such"):
        run_tool(["chainlift-has-no-such"])


def test_a_program_that_takes_too_long_is_killed():
    with pytest.raises(OperationError, match=r"sleep was not done after 0.2 s"):
        run_tool(["sleep", "60"], timeout_s=0.2)


def test_the_environment_is_set_for_the_program():
    assert run_tool(["sh", "-c", "echo $CHAINLIFT_X"], environment={"CHAINLIFT_X": "a b"}).stdout == "a b\n"


def test_leaving_the_context_kills_the_program_and_removes_its_sockets(tmp_path):
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    (sockets / "qmp").touch()
    with Process(["sleep", "60"], remove=sockets) as process:
        assert process.running
        pid = process.pid
    assert gone(pid)
    assert not sockets.exists()


def test_a_program_outlives_the_thread_that_started_it():
    started = []
    thread = threading.Thread(target=lambda: started.append(Process(["sleep", "60"])))
    thread.start()
    thread.join()
    with started[0] as process:
        time.sleep(0.2)
        assert process.running


def test_waiting_has_a_limit_that_leaves_the_program_alone():
    with Process(["sleep", "60"]) as process:
        with pytest.raises(TimeoutError):
            process.wait(0.1)
        assert process.running
        assert process.kill().signal == signal.SIGKILL
        process.send_signal(signal.SIGTERM)  # harmless now


def parent_of_a_sleeper(tmp_path, remove):
    """Start a Python that starts a sleeper and says its pid and the supervisor's."""
    code = f"""
from chainlift.host.process import Process
from pathlib import Path
import threading, time
p = Process(["sleep", "300"], remove=Path({str(remove)!r}))
print(p.pid, p._supervisor.pid, flush=True)
time.sleep(300)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=tmp_path)
    pid, supervisor = map(int, parent.stdout.readline().split())
    return parent, pid, supervisor


def test_kill_9_of_us_ends_the_program_and_leaves_nothing(tmp_path):
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    (sockets / "qmp").touch()
    parent, pid, supervisor = parent_of_a_sleeper(tmp_path, sockets)
    parent.kill()
    parent.wait()
    assert gone(pid)
    assert gone(supervisor)
    assert not sockets.exists()


def test_kill_9_of_the_supervisor_ends_the_program(tmp_path):
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    parent, pid, supervisor = parent_of_a_sleeper(tmp_path, sockets)
    os.kill(supervisor, signal.SIGKILL)
    assert gone(pid)
    parent.kill()
    parent.wait()


def test_a_program_that_its_loader_starts_has_its_own_name(tmp_path):
    loader = next(path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1") if Path(path).exists())
    argv = [loader, "--library-path", "/lib", "--argv0", "other", "/bin/false"]
    assert program_name(argv) == "false"
    assert program_name(["/usr/bin/qemu-img", "--object", "x"]) == "qemu-img"
    assert program_name([loader]) == Path(loader).name
    with pytest.raises(OperationError, match=r"^false failed \(exit status 1\)$"):
        run_tool(argv)
