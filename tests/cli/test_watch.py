"""``chainlift watch`` as a process: its files, its signals, what it keeps, and what a person has to say to it."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.daemon import starting_daemons
from tests.support.json_schemas import valid
from tests.support.owned_chain import make_owned_chain
from tests.support.watching import wait_for

from chainlift.qemu.monitor import Monitor

pytestmark = pytest.mark.integration


def chainlift(*arguments, **more):
    return subprocess.run([sys.executable, "-m", "chainlift", *arguments], capture_output=True, text=True, **more)


@pytest.fixture
def start_daemon(tmp_path):
    with starting_daemons(tmp_path) as start:
        yield start


@pytest.fixture
def place(tmp_path):
    """Sockets, state, and where a watch writes."""
    for name in ("sockets", "state"):
        (tmp_path / name).mkdir()
    return tmp_path


@contextmanager
def watch(place, *arguments, **environment):
    command = [
        *(sys.executable, "-m", "chainlift", "watch", "--dir", place / "sockets", "--state", place / "state"),
        *("--status", place / "status", "--metrics", place / "metrics", "--interval", "1", *arguments),
    ]
    environment = {**os.environ, **environment}
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def status(place):
    return json.loads((place / "status").read_text()) if (place / "status").exists() else {"disks": [], "vms": []}


def disks(place, key):
    return [disk[key] for disk in status(place)["disks"]]


def ended(process):
    """End it as systemd does; return what it said."""
    process.terminate()
    said = process.stderr.read().splitlines()
    assert process.wait(60) == 0
    return said


def vm(place, start_daemon, length=3, name="vm7"):
    daemon = start_daemon(make_owned_chain(place / f"chain-{name}", length).active)
    daemon.qmp.rename(place / "sockets" / name)
    return daemon


def test_it_finds_the_sockets_of_a_directory_and_keeps_their_chains_short(place, start_daemon):
    with watch(place, "--max-length", "2") as process:
        wait_for(lambda: status(place).get("rounds", 0) > 0)
        assert status(place)["disks"] == []
        vm(place, start_daemon)  # started later
        wait_for(lambda: disks(place, "indexed") == [1])
        wait_for(lambda: 'chainlift_indexed_total{socket="' in (place / "metrics").read_text())
        said = ended(process)
    assert [line.split(",")[0].rpartition(" length")[0] or line.split(",")[0] for line in said[1:]] == [
        "chainlift: vm7: answers: exp0",
        "chainlift: vm7 exp0: index: indexed",
        "chainlift: watch ends: SIGTERM",
    ]
    (disk,) = status(place)["disks"]
    image = str(place / "chain-vm7" / "active.qcow2")
    assert (disk["image"], disk["vm"], disk["length"], disk["state"]) == (image, "vm7", 1, "short")
    labels = f'{{socket="{place}/sockets/vm7",vm="vm7",disk="exp0"}}'
    lines = (place / "metrics").read_text().splitlines()
    assert {f"chainlift_indexed_total{labels} 1", f"chainlift_chain_length{labels} 1"} <= set(lines)


def test_the_status_is_there_before_anybody_has_answered_and_says_who_is_asked(place):
    with socket.socket(socket.AF_UNIX) as hung, watch(place) as process:
        hung.bind(str(place / "sockets/hung"))
        hung.listen(1)
        wait_for(lambda: [vm["vm"] for vm in status(place)["vms"]] == ["hung"])
        found = status(place)
        assert (found["vms"][0]["up"], found["vms"][0]["last_look_at"]) == (None, None)
        assert found["vms"][0]["looking_since"] >= found["started_at"]
        assert found["pid"] == process.pid
        # Whoever only looks is not waited for.
        assert ended(process)[-1] == "chainlift: watch ends: SIGTERM"


def test_counters_and_pauses_survive_a_watch_that_is_killed(place, start_daemon):
    daemon = vm(place, start_daemon)
    with watch(place, "--max-length", "2") as process:
        wait_for(lambda: disks(place, "indexed") == [1])
        wait_for(lambda: '"indexed": 1' in (place / "state/watch.json").read_text())
        process.kill()
        process.wait()
    assert chainlift("watch", "pause", "vm7", "--state", place / "state").stdout == "vm7: paused\n"
    for number in range(3):
        snapshot(daemon, place / f"s{number}.qcow2", "disk0" if number == 0 else f"s{number - 1}")
    with watch(place, "--max-length", "2") as process:
        wait_for(lambda: disks(place, "length") == [4])
        assert (disks(place, "indexed"), disks(place, "state")) == ([1], ["paused"])
        done = chainlift("watch", "list", "--state", place / "state")
        assert "paused: vm7, since 2" in done.stdout
        assert "no watch runs" not in done.stdout
        assert chainlift("watch", "resume", "vm7", "--state", place / "state").stdout == "vm7: goes on\n"
        wait_for(lambda: disks(place, "indexed") == [2])
        said = ended(process)
    assert "vm7 exp0: paused: paused by command since 2" in "\n".join(said)
    assert "vm7 exp0: goes on" in "\n".join(said)
    assert "no watch runs" in chainlift("watch", "list", "--state", place / "state").stdout


def test_sigterm_waits_for_what_is_under_way(place, start_daemon):
    """QEMU stands still in the middle of it: the watch waits, and what it began is finished or undone."""
    daemon = vm(place, start_daemon, length=150)
    with watch(place) as process:
        wait_for(lambda: json.loads(kept(place) or "{}").get("under_way"))
        daemon.process.send_signal(signal.SIGSTOP)
        process.terminate()
        said = ""
        while "watch ends" not in said:
            line = process.stderr.readline()
            said += line
        if "under way" in line:  # else QEMU had answered everything by then
            assert line == "chainlift: watch ends: SIGTERM, when 1 disk under way is finished or undone\n"
        daemon.process.send_signal(signal.SIGCONT)
        said += process.stderr.read()
        assert process.wait(60) == 0
    lifted = json.loads((place / "status").read_text())["disks"][0]["indexed"]
    assert ("index: indexed" in said, "index: given up" in said) == ((True, False) if lifted else (False, True))
    assert json.loads(kept(place))["under_way"] == []
    names = {node["node-name"] for node in daemon.monitor.execute("query-named-block-nodes", flat=True)}
    held = {name for name in names if name.endswith(("-hold", "-null"))}
    assert held == set()
    done = chainlift("plan", "--qmp", place / "sockets/vm7")
    assert done.returncode == 0, done.stderr


def kept(place):
    path = place / "state/watch.json"
    return path.read_text() if path.exists() else ""


def test_systemd_is_told_that_it_is_ready_alive_and_ending(place):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(place / "notify"))
        systemd.settimeout(60)
        with watch(place, NOTIFY_SOCKET=str(place / "notify"), WATCHDOG_USEC="300000") as process:
            assert systemd.recv(1000) == b"READY=1"
            assert (place / "status").exists()
            told = [systemd.recv(1000) for _ in range(8)]
            assert told.count(b"WATCHDOG=1") >= 5
            assert b"STATUS=0 VMs (0 silent), 0 disks (all well)" in told
            process.terminate()
            while systemd.recv(1000) != b"STOPPING=1":
                pass
            assert process.wait(60) == 0


def test_a_restore_by_hand_is_not_undone(place, start_daemon):
    vm(place, start_daemon)
    with watch(place, "--max-length", "2") as process:
        wait_for(lambda: disks(place, "indexed") == [1])
        done = chainlift("restore", "--qmp", place / "sockets/vm7")
        assert (done.returncode, done.stderr.count("warning")) == (0, 0), done.stderr
        rounds = status(place)["rounds"]
        wait_for(lambda: status(place)["rounds"] > rounds + 2)
        assert (disks(place, "indexed"), disks(place, "state")) == ([1], ["paused"])
        assert 'disk="exp0"} 1' in (place / "metrics").read_text().partition("TYPE chainlift_paused")[2]
        image = place / "chain-vm7/active.qcow2"
        assert chainlift("watch", "resume", image, "--state", place / "state").stdout == f"{image}: goes on\n"
        wait_for(lambda: disks(place, "indexed") == [2])
        ended(process)


def test_once_says_what_could_not_be_served(place, start_daemon):
    daemon = vm(place, start_daemon)
    options = ["--dir", place / "sockets", "--state", place / "state", "--once", "--max-length", "2", "--timeout", "1"]
    with Monitor.connect(place / "sockets/vm7"):
        done = chainlift("watch", *options)
    assert done.returncode == 1
    assert "vm7: is busy: another client is connected" in done.stderr
    assert done.stderr.endswith("chainlift: 1 of the disks, sockets and files could not be served\n")
    assert [row["error"] for row in valid("watch", done.stdout)["silent"]] != []
    done = chainlift("watch", *options)
    assert (done.returncode, [disk["indexed"] for disk in valid("watch", done.stdout)["disks"]]) == (0, [1]), (
        done.stderr
    )
    assert daemon.monitor.execute("query-version")


@pytest.mark.parametrize("option", ["--status", "--metrics"])
def test_a_place_that_cannot_be_written_is_one_line_at_the_start(place, option):
    (place / "taken").mkdir()
    for where in ("gone/file", "taken", "sockets/../status/file"):
        done = chainlift("watch", "--dir", place / "sockets", "--state", place / "state", option, place / where)
        assert (done.returncode, done.stdout) == (2, ""), where
        assert len(done.stderr.splitlines()) == 1


def test_a_state_directory_that_cannot_be_used_is_one_line_at_the_start(place):
    base = ["watch", "--dir", place / "sockets", "--once"]
    (place / "file").write_text("")
    for arguments, environment in (
        (["--state", place / "gone"], {}),
        (["--state", place / "file"], {}),
        (["--state", "/proc/self"], {}),
        ([], {"STATE_DIRECTORY": "/proc/nothing"}),
    ):
        done = chainlift(*base, *arguments, env={**os.environ, **environment})
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), (arguments, done.stderr)


def test_what_is_paused_is_a_socket_an_image_or_a_name(place, start_daemon):
    vm(place, start_daemon)
    options = ["--state", place / "state"]
    done = chainlift("watch", "pause", "vm8", *options)
    assert (done.returncode, done.stdout) == (0, "vm8: paused\n")
    assert "watch has seen no VM vm8 yet" in done.stderr
    assert chainlift("watch", *options, "pause", "vm8").stdout == "vm8: is paused already\n"
    for word in (place / "gone", place / "sockets"):
        done = chainlift("watch", "pause", word, *options)
        assert (done.returncode, "is no socket and no image" in done.stderr) == (2, True)
    done = chainlift("watch", "pause", place / "sockets/../sockets/vm7", *options)
    assert done.stdout == f"{place}/sockets/vm7: paused\n"
    listed = valid("watch list", chainlift("watch", "list", "--json", *options).stdout)
    assert [entry["what"] for entry in listed["paused"]] == [f"{place}/sockets/vm7", "vm8"]
    assert not listed["is_watched"]
    done = chainlift("watch", "resume", "nobody", *options)
    assert done.stdout == "nobody: was not paused itself; disks of it that were go on\n"


def test_options_of_the_watch_do_not_go_with_what_a_person_says(place):
    done = chainlift("watch", "--dir", place / "sockets", "pause", "vm7", "--state", place / "state")
    assert (done.returncode, "--dir does not go with pause" in done.stderr) == (2, True)
    assert list((place / "state").iterdir()) == []
    done = chainlift("watch", "--help")
    assert all(word in done.stdout for word in ("pause", "resume", "list", "--max-length"))


def snapshot(daemon, overlay: Path, over: str):
    daemon.monitor.execute(
        "blockdev-snapshot-sync",
        {"node-name": over, "snapshot-file": str(overlay), "snapshot-node-name": overlay.stem, "format": "qcow2"},
    )
