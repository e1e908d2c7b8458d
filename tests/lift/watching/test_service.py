"""A watch over real storage daemons: what it does, what it leaves alone, and what it says."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest
from tests.support.json_schemas import valid
from tests.support.watching import machine, rules, wait_for, watching

from chainlift.errors import InputError
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.record.mark import read_mark
from chainlift.lift.record.pointer import named_in
from chainlift.lift.verbs import index, restore
from chainlift.lift.watching.service import Settings, Watch
from chainlift.lift.watching.state import State, write_state

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The state directory of the watch and of the verbs."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def once(settings):
    watch = Watch(settings)
    watch.run(once=True)
    return watch.status


def the_disk(status):
    (disk,) = status.disks.values()
    return disk


def test_a_chain_is_indexed_when_it_is_too_long_and_not_before(make_chain, start_daemon, state, capsys):
    chain = make_chain(10)
    daemon = start_daemon(chain.active)
    status = once(Settings(rules(state, max_length=10), (daemon.qmp,)))
    assert (the_disk(status).length, the_disk(status).state, status.troubles()) == (10, "short", [])
    assert "index: " not in capsys.readouterr().err
    settings = Settings(rules(state, max_length=9), (daemon.qmp,))
    disk = the_disk(once(settings))
    assert (disk.length, disk.state, disk.counts.indexed, disk.error) == (1, "short", 1, None)
    assert named_in(chain.active).startswith("json:")
    said = [line for line in capsys.readouterr().err.splitlines() if "index: " in line]
    assert len(said) == 1
    for part in (
        "qmp exp0: index: indexed, length 10, 11 extents, 0 bytes copied, ", " s, longest command ",
        f"image {chain.active}, lift {chain.active}.lift/index-1.vmdk, socket {daemon.qmp}",
    ):  # fmt: skip
        assert part in said[0]
    disk = the_disk(once(settings))
    # Another watch, with the same state: it goes on counting.
    assert (disk.length, disk.counts.indexed, disk.last_extents) == (1, 1, 11)
    assert "index: " not in capsys.readouterr().err


@pytest.mark.qemu(since=(6, 1))
def test_what_a_job_works_on_stays_known_and_is_busy(any_qemu, make_chain, start_daemon, state, tmp_path):
    chain = make_chain(6)
    daemon = start_daemon(chain.active, qemu=any_qemu.label)
    target = tmp_path / "target.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", target, str(chain.virtual_size)], check=True)
    node = {"driver": "qcow2", "node-name": "target", "file": {"driver": "file", "filename": str(target)}}
    daemon.monitor.execute("blockdev-add", node)
    below = [str(path) for path in chain.files]
    jobs = {
        "blockdev-backup": {"device": "disk0", "target": "target", "sync": "none"},
        "blockdev-mirror": {"device": "disk0", "target": "target", "sync": "full", "speed": 1},
        "block-stream": {"device": "disk0", "speed": 1},
        "block-commit": {"device": "disk0", "top": below[-2], "base": below[-3], "speed": 1},
    }
    for job, arguments in jobs.items():
        daemon.monitor.execute(job, {"job-id": "job0", **arguments})
        status = once(Settings(rules(state), (daemon.qmp,)))
        disk = the_disk(status)
        assert (disk.disk, disk.state, disk.image, disk.is_long) == ("exp0", "busy", str(chain.active), True), job
        assert "job" in disk.busy
        assert status.troubles() == ["qmp exp0"]
        daemon.monitor.execute("block-job-cancel", device="job0", force=True)
        daemon.monitor.wait_event(("BLOCK_JOB_CANCELLED", "BLOCK_JOB_COMPLETED"), timeout_s=60)
        wait_for(lambda: daemon.monitor.execute("query-jobs") == [])
    disk = the_disk(once(Settings(rules(state), (daemon.qmp,))))
    assert (disk.state, disk.length, disk.counts.indexed, disk.counts.failed) == ("short", 1, 1, 0)


def test_a_trouble_is_told_once_and_when_it_is_over(make_chain, start_daemon, state, capsys):
    daemon = start_daemon(make_chain(6).active)
    daemon.monitor.execute("block-stream", device="disk0", job_id="job0", speed=1)
    with watching(Settings(rules(state), (daemon.qmp,), interval_s=0.05)) as watch:
        wait_for(lambda: watch.status.rounds > 5)
        assert the_disk(watch.status).state == "busy"
        daemon.monitor.execute("block-job-cancel", device="job0")
        wait_for(lambda: the_disk(watch.status).counts.indexed == 1)
        rounds = watch.status.rounds
        wait_for(lambda: watch.status.rounds > rounds + 3)
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2].partition(",")[0] for line in said[1:-1]] == [
        "qmp: answers: exp0 length 6",
        "warning: qmp exp0: is too long",
        "qmp exp0: index: indexed",
    ]


def test_a_hung_socket_and_one_that_vanishes_hold_nobody_up(make_chain, start_daemon, state, tmp_path, capsys):
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    daemon = start_daemon(make_chain(6).active)
    with ExitStack() as stack:
        hung = stack.enter_context(socket.socket(socket.AF_UNIX))
        hung.bind(str(sockets / "hung"))
        hung.listen(1)
        settings = Settings(rules(state), directory=sockets, interval_s=0.1, status_file=tmp_path / "status")
        watch = stack.enter_context(watching(settings))
        # The visit of the hung one is not over, and it is known already.
        wait_for(lambda: "hung" in [vm.vm for vm in list(watch.status.vms.values()) if vm.looking_since_s is not None])
        daemon.qmp.rename(sockets / "vm7")
        wait_for(lambda: watch.status.disks and the_disk(watch.status).counts.indexed == 1)
        wait_for(lambda: written(tmp_path / "status").get("vm7") is True)
        assert written(tmp_path / "status")["hung"] is None
        (sockets / "vm7").rename(tmp_path / "away")
        wait_for(lambda: not watch.status.disks)
        assert [vm.vm for vm in list(watch.status.vms.values())] == ["hung"]
        (tmp_path / "away").rename(sockets / "vm7")
        wait_for(lambda: watch.status.disks and the_disk(watch.status).counts.indexed == 1)
    said = capsys.readouterr().err
    assert said.count("vm7: answers: exp0 length") == 2
    assert said.count("vm7: its socket is gone") == 1


def test_a_hung_socket_is_silent_after_its_time_and_answers_again(make_chain, start_daemon, state, tmp_path, capsys):
    daemon = start_daemon(make_chain(2).active)
    path = tmp_path / "vm7"
    settings = Settings(rules(state, timeout_s=0.2), (path,), interval_s=0.1)
    with socket.socket(socket.AF_UNIX) as hung, watching(settings) as watch:
        hung.bind(str(path))
        hung.listen(1)
        wait_for(lambda: [vm.is_up for vm in list(watch.status.vms.values())] == [False] and watch.status.rounds > 3)
        assert watch.status.troubles() == [str(path)]
        path.unlink()
        wait_for(lambda: "is no socket" in str(watch.status.vms[str(path)].error))
        daemon.qmp.rename(path)
        wait_for(lambda: watch.status.vms[str(path)].is_up)
    said = [line for line in capsys.readouterr().err.splitlines() if "vm7" in line and "watch" not in line]
    assert ["is busy" in said[-3], "is no socket" in said[-2], "answers: exp0" in said[-1]] == [True] * 3


@pytest.mark.qemu(since=(6, 1))
def test_a_restored_disk_is_left_alone_until_told_otherwise(
    any_qemu, make_chain, start_daemon, state, tmp_path, capsys
):
    chain = make_chain(6)
    daemon = start_daemon(chain.active, qemu=any_qemu.label)
    with watching(Settings(rules(state), (daemon.qmp,), interval_s=0.1)) as watch:
        wait_for(lambda: watch.status.disks and the_disk(watch.status).counts.indexed == 1)
        with open_session(daemon.qmp) as session:
            restore(RunningDisk(session, None))
        assert read_mark(chain.active, state).why == "restored"
        wait_for(lambda: the_disk(watch.status).state == "paused")
        rounds = watch.status.rounds
        wait_for(lambda: watch.status.rounds > rounds + 3)
        assert (the_disk(watch.status).length, the_disk(watch.status).counts.indexed) == (6, 1)
        # The image is another one now; the disk is the same.
        snapshot(daemon, tmp_path / "snapshot.qcow2")
        # For a moment there may be neither.
        wait_for(lambda: [disk.image for disk in watch.status.disks.values()] == [str(tmp_path / "snapshot.qcow2")])
        assert (the_disk(watch.status).state, the_disk(watch.status).length) == ("paused", 7)
        wait_for(lambda: read_mark(tmp_path / "snapshot.qcow2", state) is not None)
    assert the_disk(once(Settings(rules(state), (daemon.qmp,)))).state == "paused"
    said = [line for line in capsys.readouterr().err.splitlines() if "paused" in line]
    assert len(said) == 2  # by each watch
    assert "qmp exp0: paused: restored by hand on 2" in said[0]
    assert "until chainlift watch resume, length 6" in said[0]
    subprocess.run([sys.executable, "-m", "chainlift", "watch", "resume", daemon.qmp, "--state", state], check=True)
    assert the_disk(once(Settings(rules(state), (daemon.qmp,)))).counts.indexed == 2
    assert not read_mark(tmp_path / "snapshot.qcow2", state).is_paused


def test_an_index_by_hand_ends_the_pause(make_chain, start_daemon, state, tmp_path):
    daemon = start_daemon(make_chain(6).active)
    with open_session(daemon.qmp) as session:
        disk = RunningDisk(session, None)
        index(disk)
        restore(disk)
    snapshot(daemon, tmp_path / "snapshot.qcow2")  # the mark is on a layer now
    settings = Settings(rules(state), (daemon.qmp,))
    assert the_disk(once(settings)).state == "paused"
    with open_session(daemon.qmp) as session:
        index(RunningDisk(session, None))
    for number in range(6):
        snapshot(daemon, tmp_path / f"later{number}.qcow2", over="snapshot" if number == 0 else f"later{number - 1}")
    assert the_disk(once(settings)).counts.indexed == 1


def test_a_restore_that_fails_leaves_no_mark(make_chain, start_daemon, state):
    chain = make_chain(6)
    daemon = start_daemon(chain.active)

    def fail(_state):
        raise InputError("stopped by the test")

    with open_session(daemon.qmp) as session:
        disk = RunningDisk(session, None)
        index(disk)
        disk.after = fail
        with pytest.raises(InputError, match="stopped by the test"):
            restore(disk)
    assert read_mark(chain.active, state) is None


def test_a_clone_of_a_restored_disk_and_another_disk_of_its_name_are_not_paused(
    make_chain, start_daemon, state, tmp_path
):
    chain = make_chain(6)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        disk = RunningDisk(session, None)
        index(disk)
        restore(disk)
    daemon.monitor.execute("quit")
    daemon.process.wait(60)
    clone = tmp_path / "clone.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", chain.active, clone]
    subprocess.run(command, check=True)
    disk = the_disk(once(Settings(rules(state), (start_daemon(clone).qmp,))))
    assert (disk.state, disk.counts.indexed) == ("short", 1)
    chain.active.rename(tmp_path / "renamed.qcow2")
    shutil.copy(tmp_path / "renamed.qcow2", chain.active)
    other = start_daemon(chain.active)
    assert the_disk(once(Settings(rules(state), (other.qmp,)))).counts.indexed == 1


def test_a_vm_is_paused_by_its_name_its_socket_or_its_image(make_chain, state, tmp_path):
    chain = make_chain(6)
    with machine(tmp_path / "vm", chain.active, name="guest 7,process=x") as monitor:
        name = monitor.execute("query-name")["name"]
        settings = Settings(rules(state), (tmp_path / "vm" / "qmp",))
        for word in (name, "qmp", str(tmp_path / "vm/qmp"), str(chain.active)):
            assert said("pause", word, state).returncode == 0
            status = once(settings)
            assert (the_disk(status).vm, the_disk(status).disk, the_disk(status).state) == (name, "disk0", "paused")
            assert status.troubles() == []
            listed = valid("watch list", said("list", "--json", state).stdout)
            assert [row["state"] for row in listed["disks"]] == ["paused"]
            assert said("resume", word, state).returncode == 0
            listed = valid("watch list", said("list", "--json", state).stdout)
            assert ([row["state"] for row in listed["disks"]], listed["paused"]) == (["short"], [])
        assert the_disk(once(settings)).counts.indexed == 1
        assert named_in(chain.active).startswith("json:")


def test_one_vm_restarted_under_the_same_name_is_still_paused(make_chain, state, tmp_path):
    chain, place = make_chain(6), tmp_path / "vm"
    overlay = tmp_path / "overlay.qcow2"
    with machine(place, chain.active, name="vm7"), open_session(place / "qmp") as session:
        disk = RunningDisk(session, None)
        index(disk)
        restore(disk)
    with machine(place, chain.active, name="vm7") as monitor:
        monitor.execute(
            "blockdev-snapshot-sync", {"node-name": "vda", "snapshot-file": str(overlay), "snapshot-node-name": "over"}
        )
        assert the_disk(once(Settings(rules(state), (place / "qmp",)))).state == "paused"


def test_a_pause_while_others_are_indexed_counts_for_the_next(make_chain, start_daemon, state, tmp_path):
    """One disk at a time: the second is asked about again when it is its turn."""
    daemons = [start_daemon(make_chain(6, directory=tmp_path / name).active) for name in ("one", "two")]
    settings = Settings(rules(state), tuple(daemon.qmp for daemon in daemons))
    watch = Watch(settings)
    watch._slots.acquire()  # somebody else is being indexed
    thread = threading.Thread(target=watch.run, kwargs={"once": True})
    thread.start()
    wait_for(lambda: len(watch.status.disks) == 2)
    assert said("pause", daemons[1].qmp, state).returncode == 0
    watch._slots.release()
    thread.join()
    assert [watch.status.disks[str(daemon.qmp), "exp0"].counts.indexed for daemon in daemons] == [1, 0]


def test_several_disks_are_indexed_at_a_time_where_that_is_asked(make_chain, start_daemon, state, tmp_path):
    daemons = [start_daemon(make_chain(6, directory=tmp_path / str(number)).active) for number in range(4)]
    status = once(Settings(rules(state), tuple(daemon.qmp for daemon in daemons), jobs=4))
    assert [disk.counts.indexed for disk in status.disks.values()] == [1] * 4


def test_a_watch_that_is_killed_while_it_indexes_says_so_when_it_is_back(start_daemon, make_chain, state, capsys):
    daemon = start_daemon(make_chain(6).active)
    settings = Settings(rules(state), (daemon.qmp,))
    once(settings)
    kept = State(under_way={(str(daemon.qmp), "exp0"): "2026-11-25T02:13:00+00:00"}, rounds=7)
    write_state(state, kept, time.time())
    capsys.readouterr()
    status = once(settings)
    assert (
        "exp0: cut off, an earlier watch was killed while it worked on it (begun 2026-11-25T02:13"
        in capsys.readouterr().err
    )
    assert (status.rounds_before, status.rounds) == (7, 1)
    once(settings)
    assert "cut off" not in capsys.readouterr().err


def test_what_is_not_ours_in_the_state_directory_ends_it_at_the_start(state):
    settings = Settings(rules(state))
    for name, text in (("watch.json", "{}"), ("paused.json", '{"schema": 9}'), ("paused.json", "x")):
        (state / name).write_text(text)
        with pytest.raises(InputError, match=rf"{name}: is no (record of pauses|state)"):
            Watch(settings).run(once=True)
        (state / name).unlink()


def test_pauses_that_cannot_be_read_any_more_pause_everything(make_chain, start_daemon, state, capsys):
    daemon = start_daemon(make_chain(6).active)
    assert said("pause", daemon.qmp, state).returncode == 0
    with watching(Settings(rules(state), (daemon.qmp,), interval_s=0.1)) as watch:
        wait_for(lambda: watch.status.disks and the_disk(watch.status).state == "paused")
        (state / "paused.json").write_text("somebody's editor")
        wait_for(lambda: watch.status.problems)
        rounds = watch.status.rounds
        wait_for(lambda: watch.status.rounds > rounds + 2)
        assert the_disk(watch.status).counts.indexed == 0
        (state / "paused.json").unlink()
        wait_for(lambda: the_disk(watch.status).counts.indexed == 1)
        assert not watch.status.problems
    assert capsys.readouterr().err.count("is no record of pauses") == 1


def test_two_watches_do_not_share_their_state(state):
    settings = Settings(rules(state))
    with watching(settings) as watch:
        wait_for(lambda: watch.status.rounds)
        with pytest.raises(InputError, match="another chainlift watch has this state directory"):
            Watch(settings).run(once=True)


def written(path):
    return {vm["vm"]: vm["up"] for vm in json.loads(path.read_text())["vms"]}


def snapshot(daemon, overlay, over=None):
    over = over or "disk0"
    daemon.monitor.execute(
        "blockdev-snapshot-sync",
        {"node-name": over, "snapshot-file": str(overlay), "snapshot-node-name": overlay.stem, "format": "qcow2"},
    )


def said(verb, word, state):
    return subprocess.run(
        [sys.executable, "-m", "chainlift", "watch", verb, word, "--state", state], capture_output=True, text=True
    )  # fmt: skip
