import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from tests.support.daemon import starting_daemons

from chainlift.errors import QemuCrashed, QemuError
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

pytestmark = pytest.mark.integration


@pytest.fixture
def qemu_without_guest():
    """A QEMU with no machine to speak of, and its monitor."""
    sockets = Path(tempfile.mkdtemp(prefix="chainlift-test-"))
    argv = find_qemu().command(
        "system",
        *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S"),
        *("-qmp", f"unix:{sockets}/qmp,server=on,wait=off"),
    )
    with QemuProcess(argv, remove=sockets) as process, Monitor.connect(sockets / "qmp", process) as monitor:
        yield process, monitor


def test_commands_answer_and_refusals_are_qemus_own_words(qemu_without_guest):
    _, monitor = qemu_without_guest
    assert monitor.execute("query-status")["running"] is False
    assert monitor.execute("qom-list", path="/") != []
    with pytest.raises(QemuError, match=r"no-such-command: .*has not been found"):
        monitor.execute("no-such-command")
    # Underscores stand for hyphens in keywords, and nothing is changed in a mapping.
    monitor.execute("blockdev-add", driver="null-co", node_name="n0")
    monitor.execute("blockdev-del", {"node-name": "n0"})


def test_events_wait_for_whoever_asks_for_them(qemu_without_guest):
    _, monitor = qemu_without_guest
    monitor.execute("blockdev-add", driver="null-co", node_name="a", size=1 << 20)
    monitor.execute("blockdev-add", driver="null-co", node_name="b", size=1 << 20)
    for job in ("one", "two"):
        monitor.execute("blockdev-mirror", job_id=job, device="a", target="b", sync="full", auto_dismiss=True)
        monitor.wait_event("BLOCK_JOB_READY", lambda data, job=job: data["device"] == job, timeout_s=30)
        monitor.execute("block-job-complete", device=job)
        monitor.wait_event("BLOCK_JOB_COMPLETED", lambda data, job=job: data["device"] == job, timeout_s=30)
    assert {event.data["id"] for event in monitor.events("JOB_STATUS_CHANGE")} == {"one", "two"}
    assert monitor.events("JOB_STATUS_CHANGE") == []


def test_an_event_that_does_not_come_has_a_limit(qemu_without_guest):
    _, monitor = qemu_without_guest
    with pytest.raises(TimeoutError, match=r"no event BLOCK_JOB_READY within 0.1 s"):
        monitor.wait_event("BLOCK_JOB_READY", timeout_s=0.1)


@pytest.mark.parametrize("ask", [lambda m: m.execute("query-status"), lambda m: m.wait_event("SHUTDOWN")])
def test_a_crash_is_told_with_its_signal(qemu_without_guest, ask):
    process, monitor = qemu_without_guest
    os.kill(process.pid, signal.SIGSEGV)
    process.wait(120)
    with pytest.raises(QemuCrashed, match=r"signal 11 \(SIGSEGV\)") as caught:
        ask(monitor)
    assert caught.value.signal == signal.SIGSEGV


def test_qemu_that_does_not_start_says_why():
    sockets = Path(tempfile.mkdtemp(prefix="chainlift-test-"))
    argv = find_qemu().command("system", "-machine", "no-such-machine")
    with (
        QemuProcess(argv, remove=sockets) as process,
        pytest.raises(QemuCrashed, match=r"its start: exit status 1: .*unsupported machine"),
    ):
        Monitor.connect(sockets / "qmp", process)


def test_a_socket_without_qemu_is_an_error_at_once(tmp_path):
    with pytest.raises(QemuError, match=r"cannot connect: No such file or directory"):
        Monitor.connect(tmp_path / "none")


def test_a_forked_process_has_a_loop_of_its_own(qemu_without_guest, tmp_path):
    """The thread of the loop is the parent's: a child that waited for it would wait for ever."""
    _, monitor = qemu_without_guest
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            Monitor.connect(tmp_path / "none")
        except QemuError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert monitor.execute("query-status")["running"] is False


def test_python_does_not_report_a_connection_that_an_interruption_has_left_open(tmp_path):
    write_image(tmp_path / "a.qcow2", virtual_size=1 << 20)
    program = (
        "import sys; from chainlift.qemu.monitor import Monitor; Monitor.connect(sys.argv[1]); raise SystemExit(130)"
    )
    with starting_daemons(tmp_path) as start:
        daemon = start(tmp_path / "a.qcow2")
        ended = subprocess.run([sys.executable, "-c", program, daemon.qmp], capture_output=True, text=True, timeout=60)
        assert (ended.returncode, ended.stderr) == (130, "")
        # The next one is let in.
        Monitor.connect(daemon.qmp).close()


def test_a_monitor_that_waits_for_one_client_more_gets_one(tmp_path):
    """What a QEMU does now and then that has just begun to listen: whoever connects is answered after the next one."""
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listening, QemuProcess(["sleep", "300"]) as process:
        listening.bind(str(path))
        listening.listen(1)

        def serve():
            first, _ = listening.accept()
            version = {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}
            first.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n")
            listening.accept()[0].close()
            for _ in range(2):
                request = json.loads(first.recv(4096))
                request.pop("execute")
                first.sendall(json.dumps({"return": {}, **request}).encode() + b"\r\n")
            first.recv(1)
            first.close()

        serving = threading.Thread(target=serve, daemon=True)
        serving.start()
        with Monitor.connect(path, process) as monitor:
            assert monitor.execute("cont") == {}
        serving.join(60)
        assert not serving.is_alive()
