"""Clients read and write while the disk is pivoted to and fro; not one byte may be wrong, not one request fail."""

import contextlib
import itertools
import shutil
import sys
import threading
import time

import pytest
from tests.support.lifts import live_index, live_restore, live_squash
from tests.support.verified import BLOCK, Client

from chainlift.errors import ChainliftError, QemuError
from chainlift.lift.disk import Change
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.live.stream import stream_live
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import named_in
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]


class Torture:
    def __init__(self, daemon, chain, qemu, clients: int = 3):
        self.daemon, self.chain, self.qemu = daemon, chain, qemu
        self.stop = threading.Event()
        blocks = chain.virtual_size // BLOCK
        edges = [blocks * i // clients for i in range(clients + 1)]
        self.clients = [
            Client(daemon, chain, first, last, seed, self.stop)
            for seed, (first, last) in enumerate(itertools.pairwise(edges))
        ]
        self.active, self.node, self.snapshots, self.pivots = chain.active, "disk0", 0, 0

    def __enter__(self):
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, kind, error, trace):
        self.stop.set()
        if isinstance(error, ChainliftError):
            error.add_note(self.daemon.last_words())
        for client in self.clients:
            client.join(60)

    def alive(self) -> None:
        for client in self.clients:
            if client.error is not None:
                raise client.error

    def index(self, **options) -> None:
        with open_session(self.daemon.qmp) as session:
            result = live_index(session, qemu=None, **options)
        assert result.left == []
        self.pivots += 1
        self.alive()

    def squash(self) -> None:
        with open_session(self.daemon.qmp) as session:
            result = live_squash(session, qemu=None)
        assert result.left == []
        self.pivots += 1
        self.alive()

    def restore(self) -> None:
        with open_session(self.daemon.qmp) as session:
            result = live_restore(session, clean=True)
        assert result.left == []
        self.pivots += 1
        self.alive()

    def take_out_of_the_middle(self) -> None:
        """A snapshot is taken over an indexed disk; the switch back fails once at each step before it is done."""
        lifted, original = self.active, Pointer(named_in(self.active), "qcow2")
        self.index()
        self.snapshot()
        states = iter([State.HELD, State.RENAMED, State.ADDED, State.PIVOTED, None])

        def fail(state):
            if state is failing:
                raise QemuError("the test says no")

        for failing in states:
            with open_session(self.daemon.qmp, node=self.node) as session:
                disk = RunningDisk(session, self.qemu, after=fail)
                changes = [Change(lifted, disk.standing()[1].pointer, original)]
                with contextlib.suppress(QemuError) if failing else contextlib.nullcontext():
                    disk.switch(changes)
                assert disk.has_switched(changes) == (failing is None)
                assert disk.left == []
            assert (named_in(lifted) == original.name) == (failing is None)
            self.pivots += 1
            self.alive()
        shutil.rmtree(lifted.with_name(lifted.name + ".lift"))

    def snapshot(self) -> None:
        """As a backup tool takes an external snapshot."""
        self.snapshots += 1
        path, node = self.chain.directory / f"snapshot{self.snapshots}.qcow2", f"snap{self.snapshots}"
        write_image(path, virtual_size=self.chain.virtual_size, backing_file=self.active.name, backing_format="qcow2")
        monitor = self.daemon.monitor
        file = {"driver": "file", "filename": str(path)}
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file, "backing": None})
        monitor.execute("blockdev-snapshot", node=self.node, overlay=node)
        self.active, self.node = path, node
        self.alive()


def torture(make_chain, start_daemon, same_bytes, *, qemu: str, length: int, pivots: int, export: str = "", extra=()):
    found = find_qemu(qemu, need=("storage-daemon", "img"))
    chain = make_chain(length)
    daemon = start_daemon(chain.active, qemu=qemu, export=export, extra=extra)
    sizes = []
    with Torture(daemon, chain, found) as run:
        while run.pivots < pivots:
            run.index()
            if run.pivots % 7 == 1:
                run.snapshot()
                run.index(copy_budget_bytes=1 << 20)
            if run.pivots % 5 == 2:
                run.index(copy_budget_bytes=4 << 20)
            if run.pivots % 2:
                run.squash()
            run.restore()
            if run.pivots % 3 == 0:
                run.take_out_of_the_middle()
            sizes.append((daemon.open_files(), len(daemon.nodes()), daemon.resident_bytes(), run.snapshots))
        run.alive()
    run.alive()
    requests = sum(client.requests for client in run.clients)
    stall_s = max(client.longest_s for client in run.clients)
    sys.stdout.write(
        f"{qemu}: {run.pivots} pivots, {run.snapshots} snapshots, {requests} verified requests, "
        f"the longest took {stall_s * 1e3:.0f} ms; (files, nodes, bytes, snapshots) {sizes[0]} -> {sizes[-1]}\n"
    )
    # One more layer a snapshot is all that may stay: its two nodes and its file.
    (files, nodes, _, snapshots), (last_files, last_nodes, _, last_snapshots) = sizes[0], sizes[-1]
    assert last_files - files <= last_snapshots - snapshots
    assert last_nodes - nodes <= 2 * (last_snapshots - snapshots)
    assert requests > pivots
    return run, sizes


@pytest.mark.qemu(since=(6, 1))
def test_requests_survive_pivots_and_snapshots(make_chain, start_daemon, same_bytes, qemu):
    torture(make_chain, start_daemon, same_bytes, qemu=qemu, length=20, pivots=12)


@pytest.mark.long
@pytest.mark.qemu(since=(9, 0))
def test_requests_survive_pivots_of_an_export_in_an_iothread(make_chain, start_daemon, same_bytes, qemu):
    torture(
        make_chain, start_daemon, same_bytes, qemu=qemu, length=20, pivots=40,
        export=",iothread=io0", extra=("--object", "iothread,id=io0"),
    )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.qemu(since=(6, 1))
def test_requests_survive_two_hundred_pivots(make_chain, start_daemon, same_bytes, qemu):
    _, sizes = torture(make_chain, start_daemon, same_bytes, qemu=qemu, length=60, pivots=200)
    early = sizes[len(sizes) // 4][2]
    assert sizes[-1][2] < early * 1.25 + (sizes[-1][3] << 20)


def stream_under_requests(make_chain, start_daemon, tmp_path, *, qemu: str, export: str = "", extra=()):
    for number in range(5):
        chain = make_chain(60, virtual_size=256 << 20, directory=tmp_path / f"chain{number}")
        daemon = start_daemon(chain.active, qemu=qemu, export=export, extra=extra)
        with Torture(daemon, chain, find_qemu(qemu)) as run:
            with open_session(daemon.qmp) as session:
                stream_live(session, qemu=None)
            run.alive()
            time.sleep(0.2)
        run.alive()
        assert len(daemon.nodes()) == 2
        stall_s = max(client.longest_s for client in run.clients)
        requests = sum(client.requests for client in run.clients)
        sys.stdout.write(f"{qemu}: {requests} verified requests, the longest took {stall_s * 1e3:.0f} ms\n")
        daemon.process.kill()
        shutil.rmtree(chain.directory)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.qemu(since=(6, 1))
def test_requests_survive_streams_beside_which_the_layers_are_closed(make_chain, start_daemon, tmp_path, qemu):
    stream_under_requests(make_chain, start_daemon, tmp_path, qemu=qemu)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.qemu(since=(9, 0))
def test_requests_in_an_iothread_survive_streams(make_chain, start_daemon, tmp_path, qemu):
    stream_under_requests(
        make_chain, start_daemon, tmp_path, qemu=qemu,
        export=",iothread=io0,fixed-iothread=on", extra=("--object", "iothread,id=io0"),
    )  # fmt: skip
