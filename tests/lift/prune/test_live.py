"""Snapshots go under a running disk: its clients read what they wrote, and no file is held that has no name."""

import os
import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support import stock
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import make_owned_chain
from tests.support.running import Running
from tests.support.thinned import held, hourly_chain, names, read_each
from tests.support.verified import BLOCK, Client

from chainlift.errors import ImageError, InputError, OperationError, QemuError
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.prune.retention import Retention
from chainlift.lift.prune.verb import drop, prune
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration


def live_prune(qmp, qemu, *keep, after=None, last=0, node=None):
    with open_session(qmp, node=node) as session:
        disk = RunningDisk(session, qemu, after=after)
        done = prune(disk, Retention(last=last), keep=keep)
        assert disk.left == []
        return done


@pytest.mark.parametrize("emulator", [False, True], ids=["daemon", "emulator"])
def test_a_running_disk_is_thinned_out_down_to_the_layer_right_below_it(tmp_path, host_qemu, emulator):
    layers = hourly_chain(tmp_path / "c")
    before = read_each(layers)
    with Running(layers[-1], emulator=emulator) as running:
        running.write(9, 1 << 20, 70000)
        wanted = running.read()
        done = live_prune(running.qmp_path, host_qemu, layers[3], layers[6])
        assert [fate.why for fate in done.fates if fate.is_kept_back] == [
            f"{layers[8]} stands on it and cannot be written anew: the running QEMU writes to it"
        ]
        left = [f"layer{n}.qcow2" for n in (0, 3, 6, 7, 8)]
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == left
        assert held(running.pid, tmp_path / "c") == set(left)
        assert names(Path(name) for name in running.backing_files()) == left[::-1]
        assert running.read() == wanted
        # Snapshots that are taken from now on have plain names.
        running.snapshot(tmp_path / "c" / "later.qcow2")
        assert stock.backing_name(tmp_path / "c" / "later.qcow2") == str(layers[8])
        running.write(10, 2 << 20, 70000)
        wanted = running.read()
        running.stop()
    assert stock.read(tmp_path / "c" / "later.qcow2") == wanted
    for path, content in read_each(layers[:-1]).items():
        assert content == before[path]


def test_what_only_the_running_disk_could_take_over_cannot_be_dropped(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 3)
    with (
        Running(layers[-1]) as running,
        open_session(running.qmp_path) as session,
        pytest.raises(ImageError, match=r"layer2.qcow2: cannot go: .* the running QEMU writes to it"),
    ):
        drop(RunningDisk(session, host_qemu), [layers[2]])


def test_a_layer_that_another_process_has_open_stays(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 5)
    with Running(layers[-1]) as running, subprocess.Popen(["sleep", "60"], stdin=layers[2].open("rb")) as holder:
        done = live_prune(running.qmp_path, host_qemu, layers[4])
        holder.kill()
        assert names(done.deleted) == ["layer3.qcow2"]
        assert held(running.pid, tmp_path / "c") == {f"layer{n}.qcow2" for n in (0, 1, 2, 4, 5)}


@pytest.mark.parametrize("state", [State.HELD, State.ADDED, State.PIVOTED], ids=lambda state: state.name)
def test_a_pivot_that_fails_leaves_every_name_and_every_open_file_as_it_was(tmp_path, host_qemu, state):
    layers = hourly_chain(tmp_path / "c", 6)

    def fail(reached):
        if reached is state:
            raise QemuError("the test says no")

    with Running(layers[-1]) as running:
        before, wanted = stock.everything(tmp_path), running.read()
        inodes = {path: path.stat().st_ino for path in layers}
        with pytest.raises(OperationError, match="the test says no"):
            live_prune(running.qmp_path, host_qemu, layers[4], after=fail)
        assert stock.everything(tmp_path) == before
        assert {path: path.stat().st_ino for path in layers} == inodes
        assert running.read() == wanted
        assert held(running.pid, tmp_path / "c") == {path.name for path in layers}
        done = live_prune(running.qmp_path, host_qemu, layers[4])
        assert names(done.deleted) == ["layer3.qcow2", "layer2.qcow2", "layer1.qcow2"]
        assert running.read() == wanted


@pytest.mark.parametrize("when", ["before the pivot", "after the pivot"])
def test_a_run_that_is_killed_beside_the_pivot_is_taken_up_by_the_next(tmp_path, host_qemu, when):
    layers = hourly_chain(tmp_path / "c", 6)
    code = f"""
import os
from pathlib import Path
from chainlift.lift.live.disk import RunningDisk
from chainlift import Retention, open_disk, prune
reopen = RunningDisk.reopen
def killed(disk):
    if {when == "after the pivot"}:
        reopen(disk)
    os._exit(9)
RunningDisk.reopen = killed
with open_disk(qmp=os.environ["QMP"]) as disk:
    prune(disk, Retention(), keep=[{str(layers[4])!r}])
"""
    with Running(layers[-1]) as running:
        wanted, before = running.read(), read_each(layers)
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "QMP": str(running.qmp_path)})
        assert done.returncode == 9
        assert (tmp_path / "c" / "layer6.qcow2.prune.json").exists()
        for path, content in read_each(layers[:-1]).items():
            assert content == before[path]
        live_prune(running.qmp_path, host_qemu, layers[4])
        left = {f"layer{n}.qcow2" for n in (0, 4, 5, 6)}
        assert {path.name for path in (tmp_path / "c").iterdir()} == left
        assert held(running.pid, tmp_path / "c") == left
        assert running.read() == wanted


def test_a_snapshot_that_comes_meanwhile_wins(tmp_path, host_qemu, monkeypatch):
    layers = hourly_chain(tmp_path / "c", 5)
    with Running(layers[-1]) as running:
        reopen = RunningDisk.reopen

        def late(disk):
            running.snapshot(tmp_path / "c" / "late.qcow2")
            reopen(disk)

        before = stock.everything(tmp_path / "c")
        monkeypatch.setattr(RunningDisk, "reopen", late)
        with pytest.raises((OperationError, InputError)):
            live_prune(running.qmp_path, host_qemu, layers[3])
        monkeypatch.undo()
        after = stock.everything(tmp_path / "c")
        assert after.pop("late.qcow2")
        assert after == before
        live_prune(running.qmp_path, host_qemu, layers[3])
        assert sorted(held(running.pid, tmp_path / "c")) == [
            "late.qcow2", "layer0.qcow2", "layer3.qcow2", "layer5.qcow2",
        ]  # fmt: skip


def thin_out_again_and_again(tmp_path, qemu_name, prunes):
    """Snapshots are taken all the while, and thinned out; every request of the clients is checked."""
    found = find_qemu(qemu_name, need=("storage-daemon", "img"))
    chain = make_owned_chain(tmp_path / "chain", 12)
    with starting_daemons(tmp_path) as start:
        daemon = start(chain.active, qemu=qemu_name)
        stop = threading.Event()
        edges = [chain.virtual_size // BLOCK * part // 3 for part in range(4)]
        clients = [Client(daemon, chain, first, last, seed, stop) for seed, (first, last) in enumerate(pairwise(edges))]
        for client in clients:
            client.start()
        active, node, gone = chain.active, "disk0", 0
        try:
            for number in range(prunes):
                for part in range(3):
                    path, name = chain.directory / f"snapshot{number}-{part}", f"snap{number}-{part}"
                    write_image(path, virtual_size=chain.virtual_size, backing_file=active.name,
                                backing_format="qcow2")  # fmt: skip
                    file = {"driver": "file", "filename": str(path)}
                    daemon.monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": name, "file": file,
                                                            "backing": None})  # fmt: skip
                    daemon.monitor.execute("blockdev-snapshot", node=node, overlay=name)
                    active, node = path, name
                done = live_prune(daemon.qmp, found, last=4, node=node)
                assert done.left == {}
                gone += len(done.deleted)
                assert not any(client.error for client in clients), [client.error for client in clients]
        finally:
            stop.set()
            for client in clients:
                client.join(60)
        assert not any(client.error for client in clients), [client.error for client in clients]
        there = sorted(path.name for path in chain.directory.iterdir())
        assert sorted(held(daemon.process.pid, chain.directory)) == there
        # The image, four snapshots and the base.
        assert len(there) == 6
        assert gone == 12 + 3 * prunes - 5
    requests, stall_s = sum(client.requests for client in clients), max(client.longest_s for client in clients)
    sys.stdout.write(
        f"{qemu_name}: {prunes} prunes, {gone} snapshots gone, {requests} verified requests, "
        f"the longest took {stall_s * 1e3:.0f} ms\n"
    )
    assert requests > prunes


@pytest.mark.qemu(since=(6, 1))
def test_requests_survive_while_snapshots_come_and_go(tmp_path, qemu):
    thin_out_again_and_again(tmp_path, qemu, 4)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.qemu(since=(6, 1))
def test_requests_survive_a_hundred_prunes(tmp_path, qemu):
    thin_out_again_and_again(tmp_path, qemu, 100)
