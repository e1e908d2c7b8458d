"""Pointers in the middle of a running disk's chain: a snapshot was taken over a lifted disk."""

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.support.lifts import live_index, live_restore, live_squash
from tests.support.need import missing

from chainlift.errors import AnswerIsNo, InputError, QemuError, UnknownStateError
from chainlift.lift.disk import Change
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.prepare import prepare_index
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import index_descriptor, named_in

pytestmark = pytest.mark.integration

STATES = [State.HELD, State.RENAMED, State.ADDED, State.PIVOTED]


def everything(chain) -> bytes:
    return b"".join(chain.block(number) for number in range(chain.virtual_size // 4096))


def read_all(client) -> bytes:
    return b"".join(client.read(offset, 1 << 20) for offset in range(0, client.size_bytes, 1 << 20))


class Lifted:
    """A running disk that was lifted and had two snapshots taken since: second -> first -> lifted -> the lift."""

    def __init__(self, chain, daemon, prepare):
        self.chain, self.daemon = chain, daemon
        self.original = Pointer(named_in(chain.active), "qcow2")
        with open_session(daemon.qmp) as session:
            prepare(session)
        self.overlays = [chain.directory / "first.qcow2", chain.directory / "second.qcow2"]
        for node, overlay in zip(("disk0", "first"), self.overlays, strict=True):
            daemon.monitor.execute(
                "blockdev-snapshot-sync",
                {"node-name": node, "snapshot-file": str(overlay), "snapshot-node-name": overlay.stem,
                 "format": "qcow2"},
            )  # fmt: skip

    @property
    def images(self):
        return [*self.overlays, self.chain.active]

    def headers(self):
        return {image.name: named_in(image) for image in self.images}

    def changes(self, disk):
        old = disk.standing()[2].pointer
        return [Change(self.chain.active, old, self.original)]

    def depth(self):
        return len(query_graph(self.daemon.monitor).backing_chain("second"))

    def check(self):
        with self.daemon.client() as client:
            assert read_all(client) == everything(self.chain)

    def snapshot(self):
        """Take one more and return what it names."""
        overlay = self.chain.directory / "third.qcow2"
        self.daemon.monitor.execute(
            "blockdev-snapshot-sync",
            {"node-name": "second", "snapshot-file": str(overlay), "snapshot-node-name": "third", "format": "qcow2"},
        )
        return named_in(overlay)


@pytest.fixture
def lifted(make_chain, start_daemon):
    def make(qemu="host", prepare=live_index, length=6):
        chain = make_chain(length, virtual_size=8 << 20, per_layer=3)
        return Lifted(chain, start_daemon(chain.active, qemu=qemu), prepare)

    return make


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("prepare", [live_index, live_squash])
def test_a_lift_in_the_middle_is_taken_out(lifted, host_qemu, same_bytes, qemu, prepare):
    disk = lifted(qemu, prepare)
    before = disk.headers()
    with open_session(disk.daemon.qmp) as session:
        running = RunningDisk(session, host_qemu)
        running.check()
        standing = running.standing()
        assert [stands.image for stands in standing[:3]] == [*disk.overlays[::-1], disk.chain.active]
        assert [stands.pointer.name for stands in standing[:3]] == [before["second.qcow2"], before["first.qcow2"],
                                                                   before["active.qcow2"]]  # fmt: skip
        changes = disk.changes(running)
        assert not running.has_switched(changes)
        running.compare(changes, content=True)
        running.switch(changes)
        assert running.has_switched(changes)
        assert not running.has_switched([Change(c.owner, c.new, c.old) for c in changes])
        assert running.left == []
        running.check()
    disk.check()
    assert disk.headers() == {**before, "active.qcow2": disk.original.name}
    assert disk.depth() == 3 + 6
    assert len(disk.daemon.nodes()) == 2 * (3 + 6)
    same_bytes(disk.overlays[1], disk.chain.files[-2])
    assert disk.snapshot() == str(disk.overlays[1])


@pytest.mark.qemu(since=(6, 1))
def test_a_nested_name_of_an_earlier_version_gets_plain(make_chain, start_daemon, host_qemu, same_bytes, qemu):
    chain = make_chain(5, virtual_size=8 << 20, per_layer=3)
    original = Pointer(named_in(chain.active), "qcow2")
    with prepare_index(chain.active) as prepared:
        index = prepared.manifest.lifted
    rebase = ["qemu-img", "rebase", "-u", "-F", "qcow2", "-b"]
    subprocess.run([*rebase, index.name, chain.active], check=True)
    # What QEMU has written into the header of a snapshot over a disk that was lifted while it ran.
    nested = {"driver": "qcow2", "file": {"driver": "file", "filename": str(chain.active)},
              "backing": json.loads(index.name[5:])}  # fmt: skip
    middle, top = chain.directory / "middle.qcow2", chain.directory / "top.qcow2"
    img = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2"]
    subprocess.run([*img, "-b", "json:" + json.dumps(nested), middle, str(chain.virtual_size)], check=True)
    subprocess.run([*img, "-b", middle.name, top, str(chain.virtual_size)], check=True)
    for image in (middle, top):
        daemon = start_daemon(image, qemu=qemu)
        with open_session(daemon.qmp) as session:
            running = RunningDisk(session, host_qemu)
            running.check()
            found = {stands.image: stands.pointer for stands in running.standing()}
            assert found[middle].name.startswith("json:")
            changes = [Change(middle, found[middle], Pointer(chain.active.name, "qcow2")),
                       Change(chain.active, found[chain.active], original)]  # fmt: skip
            if image == top:
                with pytest.raises(InputError, match=r"middle\.qcow2: names what is below its backing file as well"):
                    running.switch(changes[1:])
            running.compare(changes, content=True)
            running.switch(changes)
            running.check()
        with daemon.client() as client:
            assert read_all(client) == everything(chain)
        graph = query_graph(daemon.monitor)
        assert not [name for name, node in graph.nodes.items() if node.filename.startswith("json:")]
        named = chain.active.name if image == top else str(chain.active)
        assert named_in(middle) == named
        assert named_in(chain.active) == original.name
        assert len(graph.backing_chain("disk0")) == len(chain.files) + (1 if image == middle else 2)
        same_bytes(image, chain.files[-2])
        daemon.process.kill()
        # Once more, from the top.
        subprocess.run([*rebase, "json:" + json.dumps(nested), middle], check=True)
        subprocess.run([*rebase, index.name, chain.active], check=True)


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("prepare", [live_index, live_squash])
def test_a_failure_at_any_step_leaves_every_header_and_the_graph_as_before(lifted, host_qemu, qemu, prepare):
    disk = lifted(qemu, prepare)
    headers, nodes = disk.headers(), disk.daemon.nodes()
    for reached in STATES:
        with open_session(disk.daemon.qmp) as session:
            assert not any("killed run" in warning for warning in session.warnings)

            def fail(state, reached=reached):
                if state is reached:
                    raise QemuError("the test says no")

            running = RunningDisk(session, host_qemu, after=fail)
            changes = disk.changes(running)
            with pytest.raises(QemuError, match="the test says no"):
                running.switch(changes)
            assert not running.has_switched(changes)
        assert disk.headers() == headers, reached
        assert disk.daemon.nodes() == nodes, reached
        disk.check()


class Killed(BaseException):
    pass


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("prepare", [live_index, live_squash])
@pytest.mark.parametrize("reached", STATES)
def test_the_next_session_puts_in_order_what_a_killed_one_left(lifted, host_qemu, same_bytes, qemu, prepare, reached):
    disk = lifted(qemu, prepare)
    with open_session(disk.daemon.qmp) as session:
        running = RunningDisk(session, host_qemu)
        changes = disk.changes(running)
        pivot = session.pivot(after=lambda state: (_ for _ in ()).throw(Killed) if state is reached else None)
        pivot._undo = lambda *_: None  # a killed process undoes nothing
        session.pivot = lambda **_: pivot
        with pytest.raises(Killed):
            running.switch(changes)
        assert running.has_switched(changes) == (reached is not State.HELD)
    same_bytes(disk.overlays[1], disk.chain.files[-2])
    disk.check()
    with open_session(disk.daemon.qmp) as session:
        assert "killed run" in session.warnings[-1]
        running = RunningDisk(session, host_qemu)
        running.check()
        stands = running.standing()
        if stands[2].pointer.name != disk.original.name:
            assert reached is not State.PIVOTED
            running.compare(changes)
            running.switch(changes)
            running.check()
    disk.check()
    assert len(disk.daemon.nodes()) == 2 * (3 + 6)
    assert named_in(disk.chain.active) == disk.original.name
    same_bytes(disk.overlays[1], disk.chain.files[-2])


@pytest.mark.qemu(since=(6, 1))
def test_layers_can_be_written_to_again_by_block_jobs(lifted, host_qemu, qemu):
    disk = lifted(qemu)
    with open_session(disk.daemon.qmp) as session:
        running = RunningDisk(session, host_qemu)
        index = running.standing()[2].pointer
        running.switch(disk.changes(running))
        # The node under the active layer is one that we have opened: its header is changed next.
        first = running.standing()[1].pointer
        running.switch([Change(disk.overlays[0], first, Pointer("./active.qcow2", "qcow2"))])
        running.switch([Change(disk.chain.active, disk.original, index)])
        running.switch(disk.changes(running))
    assert named_in(disk.overlays[0]) == "./active.qcow2"
    monitor = disk.daemon.monitor
    commit = {"device": "second", "job-id": "job0", "top": str(disk.chain.active), "base": str(disk.chain.files[-3])}
    monitor.execute("block-commit", commit)
    done = monitor.wait_event("BLOCK_JOB_COMPLETED", timeout_s=60).data
    assert "error" not in done
    assert disk.depth() == 2 + 5
    disk.check()


@pytest.mark.qemu(since=(9, 0))
def test_an_undo_under_an_iothread_that_reads_does_not_hang(make_chain, start_daemon, host_qemu, qemu):
    chain = make_chain(6, virtual_size=8 << 20, per_layer=3)
    iothread = ("--object", "iothread,id=io0")
    daemon = start_daemon(chain.active, qemu=qemu, export=",iothread=io0", extra=iothread)
    disk = Lifted(chain, daemon, live_index)

    def fail(state):
        if state is State.RENAMED:
            raise QemuError("the test says no")

    stop = threading.Event()

    def read():
        with daemon.client() as client:
            while not stop.is_set():
                client.read(0, 1 << 20)

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(read) for _ in range(2)]
        try:
            for _ in range(30):  # 10.0 hung in one of ten or so
                with open_session(daemon.qmp, node="second") as session:
                    running = RunningDisk(session, host_qemu, after=fail)
                    with pytest.raises(QemuError, match="the test says no"):
                        running.switch(disk.changes(running))
        finally:
            stop.set()
        for done in reading:
            done.result()


@pytest.mark.qemu(since=(6, 1))
def test_a_header_that_names_the_chain_already_stays_as_it_is(make_chain, start_daemon, host_qemu, qemu):
    chain = make_chain(5, virtual_size=8 << 20, per_layer=3)
    original = Pointer(named_in(chain.active), "qcow2")
    daemon = start_daemon(chain.active, qemu=qemu)
    before = chain.active.read_bytes()
    with open_session(daemon.qmp) as session:
        session.is_libvirts = True  # no domain starts on an index: only QEMU knows of it
        running = RunningDisk(session, host_qemu)
        with prepare_index(chain.active) as prepared:
            running.switch([Change(chain.active, original, prepared.manifest.lifted)])
        assert named_in(chain.active) == original.name
        running.check()
        index = running.standing()[0].pointer
        assert index_descriptor(index.name) == index_descriptor(prepared.manifest.lifted.name)
        running.switch([Change(chain.active, index, original)])
        running.check()
    assert chain.active.read_bytes() == before
    with daemon.client() as client:
        assert read_all(client) == everything(chain)
    assert query_graph(daemon.monitor).nodes["disk0"].filename == str(chain.active)  # what a snapshot would name


@pytest.fixture
def devices(tmp_path):
    """Makes so many loop devices, as large as the layers of a test chain and a lift's metadata need."""
    found: list[Path] = []

    def make(count):
        for number in range(count):
            file = tmp_path / f"volume{number}"
            with file.open("wb") as made:
                made.truncate(32 << 20)
            done = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True)
            if done.returncode != 0:
                missing("loop", done.stderr.strip())
            found.append(Path(done.stdout.strip()))
        return found

    yield make
    for device in found:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("verb", [live_index, live_squash])
def test_layers_on_block_devices_are_opened_as_devices(make_chain, start_daemon, host_qemu, qemu, devices, verb):
    chain = make_chain(4, virtual_size=8 << 20, per_layer=3, absolute_names=True)
    for device, layer in zip(devices(2), (1, 3), strict=True):
        device.write_bytes(chain.files[layer].read_bytes())
        above = chain.files[layer + 1]
        rebase = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", device, above]
        subprocess.run(rebase, check=True)
        chain.files[layer].unlink()
    daemon = start_daemon(chain.active, qemu=qemu)
    drivers = sorted(node.driver for node in query_graph(daemon.monitor).nodes.values())
    assert drivers.count("host_device") == 2
    before = sorted(Path("/dev").iterdir())
    with open_session(daemon.qmp) as session:
        verb(session, qemu=host_qemu)
    with daemon.client() as client:
        assert read_all(client) == everything(chain)
    with open_session(daemon.qmp) as session:
        live_restore(session, qemu=host_qemu, clean=True)
    assert sorted(Path("/dev").iterdir()) == before
    assert sorted(node.driver for node in query_graph(daemon.monitor).nodes.values()) == drivers
    assert query_graph(daemon.monitor).nodes["disk0"].filename == str(chain.active)
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_other_bytes_are_found_before_anything_is_switched(lifted, host_qemu, make_chain, tmp_path):
    disk = lifted()
    other = make_chain(7, virtual_size=8 << 20, per_layer=3, directory=tmp_path / "other")
    headers = disk.headers()
    with open_session(disk.daemon.qmp) as session:
        running = RunningDisk(session, host_qemu)
        old = running.standing()[2].pointer
        with pytest.raises(AnswerIsNo, match="nothing was switched"):
            running.compare([Change(disk.chain.active, old, Pointer(str(other.files[-2]), "qcow2"))], content=True)
    assert disk.headers() == headers


def test_what_does_not_fit_the_chain_is_refused(lifted, host_qemu, tmp_path):
    disk = lifted()
    nodes = disk.daemon.nodes()
    somewhere = Pointer(str(disk.chain.files[2]), "qcow2")
    with open_session(disk.daemon.qmp) as session:
        running = RunningDisk(session, host_qemu)
        good = disk.changes(running)[0]
        for owner, old, new, said in (
            (disk.chain.files[3], good.old, good.new, "is not in the chain that QEMU has open"),
            (good.owner, somewhere, Pointer(str(disk.chain.files[3]), "qcow2"), "in QEMU, not on"),
            (good.owner, good.old, Pointer("base.raw", "raw"), "the backing file to switch to is raw"),
            (good.owner, good.old, Pointer("/not/there", None), "/not/there: cannot be opened"),
        ):
            with pytest.raises(InputError, match=said):
                running.switch([Change(owner, old, new)])
        with pytest.raises(InputError, match="switched twice"):
            running.switch([good, good])
        with pytest.raises(InputError, match="nothing to switch"):
            running.switch([])
    assert disk.daemon.nodes() == nodes


def test_a_lock_on_the_image_in_the_middle_makes_qemu_refuse_and_nothing_is_changed(lifted, host_qemu):
    disk = lifted()
    headers, nodes = disk.headers(), disk.daemon.nodes()
    reader = ["qemu-io", "-r", "-f", "qcow2", str(disk.chain.active)]
    with (
        subprocess.Popen(reader, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
        open_session(disk.daemon.qmp) as session,
    ):
        holder.stdin.write(b"info\n")
        holder.stdin.flush()
        holder.stdout.readline()
        running = RunningDisk(session, host_qemu)
        with pytest.raises(QemuError, match='Failed to get "write" lock'):
            running.switch(disk.changes(running))
        holder.stdin.close()
    assert (disk.headers(), disk.daemon.nodes()) == (headers, nodes)


def test_a_connection_that_is_lost_in_the_middle_leaves_what_is_not_known(lifted, host_qemu):
    disk = lifted()
    with open_session(disk.daemon.qmp) as session:

        def die(state):
            if state is State.RENAMED:
                disk.daemon.process.kill()

        running = RunningDisk(session, host_qemu, after=die)
        changes = disk.changes(running)
        with pytest.raises(UnknownStateError, match=r"the header of active.qcow2 names the new backing file") as caught:
            running.switch(changes)
        assert caught.value.exit_status == 4
        assert running.has_switched(changes)
    assert named_in(disk.chain.active) == disk.original.name
    raw = Path(disk.chain.directory / "raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk.overlays[1], raw], check=True)
    assert raw.read_bytes() == everything(disk.chain)
