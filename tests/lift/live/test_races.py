"""Somebody at QEMU's other monitor: a snapshot, a job, an unplugged disk before any command of ours; another size."""

import subprocess
import sys
import time
from contextlib import suppress

import pytest
from tests.support.daemon import read_all
from tests.support.lifts import live_index, live_restore, live_squash
from tests.support.owned_chain import everything
from tests.support.running import Running

from chainlift.errors import ChainliftError, ImageError, QemuError
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.record.pointer import named_in
from chainlift.qemu.monitor import Monitor

pytestmark = [pytest.mark.integration, pytest.mark.no_cover]

#: Of the disk: what somebody else may do to it.
DEEDS = ("snapshot-sync", "snapshot", "transaction", "unplug", "stream", "backup")
VERBS = {"index": live_index, "squash": live_squash, "restore": live_restore}


class Other:
    """Whoever sits at the other monitor, and does one thing before our command number so and so."""

    def __init__(self, chain, daemon, deed, which):
        self.chain, self.daemon, self.deed, self.which = chain, daemon, deed, which
        self.count, self.has_done = 0, False
        self.plain = Monitor.execute
        self.overlay = chain.directory / "overlay.qcow2"

    def __enter__(self):
        def execute(monitor, command, arguments=None, **more):
            if monitor is not self.daemon.monitor:
                self.count += 1
                if self.count == self.which:
                    self.has_done = True
                    self.do()
            return self.plain(monitor, command, arguments, **more)

        Monitor.execute = execute
        return self

    def __exit__(self, *_):
        Monitor.execute = self.plain

    def tell(self, command, **arguments):
        return self.plain(self.daemon.monitor, command, None, **arguments)

    def do(self):
        sync = {
            "node-name": "disk0", "snapshot-file": str(self.overlay), "snapshot-node-name": "over", "format": "qcow2",
        }  # fmt: skip
        match self.deed:
            case "snapshot-sync":
                self.plain(self.daemon.monitor, "blockdev-snapshot-sync", sync)
            case "transaction":
                actions = [{"type": "blockdev-snapshot-sync", "data": sync}]
                self.tell("transaction", actions=actions)
            case "snapshot":
                make = ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", self.chain.active]
                subprocess.run([*make, self.overlay, str(self.chain.virtual_size)], check=True)
                file = {"driver": "file", "filename": str(self.overlay)}
                self.tell("blockdev-add", driver="qcow2", node_name="over", file=file, backing=None)
                self.tell("blockdev-snapshot", node="disk0", overlay="over")
            case "unplug":
                self.unplug("disk0")
            case "stream":
                # So slow that it is there until it is cancelled.
                self.tell("block-stream", device="disk0", job_id="theirs", speed=65536)
            case "backup":
                size = self.chain.virtual_size
                self.tell("blockdev-add", driver="null-co", node_name="away", size=size)
                self.tell("blockdev-backup", device="disk0", target="away", job_id="theirs", sync="full", speed=65536)

    def unplug(self, *nodes):
        self.tell("block-export-del", id="exp0", mode="hard")
        while self.tell("query-block-exports"):
            time.sleep(0.005)
        for node in (*nodes, "disk0-file"):
            self.tell("blockdev-del", node_name=node)

    def end_job(self):
        with suppress(QemuError):
            self.tell("block-job-cancel", device="theirs", force=True)
        while self.tell("query-jobs"):
            time.sleep(0.005)

    @property
    def image(self):
        """The disk's active layer by now."""
        return self.overlay if self.overlay.exists() else self.chain.active


def run(verb, daemon):
    with open_session(daemon.qmp) as session:
        return VERBS[verb](session)


def opens(image, chain):
    """Every header leads to a chain that stock QEMU opens and that reads the same."""
    done = subprocess.run(
        ["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "qcow2", image, chain.files[-2]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def expect_order(chain, daemon, other, where, *, said_no):
    """The disk is what the other has made of it, and nothing of ours stands around."""
    graph = query_graph(daemon.monitor)
    ours = [name for name in graph.names if name.startswith("chainlift-")]
    exports = daemon.monitor.execute("query-block-exports")
    top = exports[0]["node-name"] if exports else None
    used = graph.subtree(top) if top else []
    assert set(ours) <= set(used), where
    assert not [name for name in ours if not graph.parents(name)], where
    if other.deed == "unplug":
        assert not graph.names, where
        opens(chain.active, chain)
        return
    for layer in graph.backing_chain(top)[1:]:
        written = [node for node in graph.layer_nodes(layer) if graph.is_written(node)]
        assert not written and graph.nodes[layer].read_only, (where, layer)
    for image in {other.image, chain.active}:
        opens(image, chain)
    pointer = named_in(other.image)
    assert pointer is not None
    if other.image == other.overlay:
        assert not pointer.startswith("json:") or not said_no, where


def race(make_chain, start_daemon, *, qemu, verb, deed, which):
    """Return whether there was a command number so and so, and what our verb said."""
    chain = make_chain(5, virtual_size=4 << 20, per_layer=3)
    daemon = start_daemon(chain.active, qemu=qemu)
    try:
        if verb == "restore":
            run("index", daemon)
        said = None
        with Other(chain, daemon, deed, which) as other:
            try:
                run(verb, daemon)
            except ChainliftError as error:
                said = error
        if not other.has_done:
            return False, None
        where = (qemu, verb, deed, which, str(said))
        if said is not None:
            assert said.exit_status in ((2, 3) if deed not in ("stream", "backup") else (2, 3, 4)), where
        if deed in ("stream", "backup"):
            other.end_job()
        if deed in ("stream", "backup") and said is not None and said.exit_status == 4:
            with open_session(daemon.qmp):
                pass
        expect_order(chain, daemon, other, where, said_no=said is not None)
        if deed != "unplug":
            with daemon.client() as client:
                assert read_all(client)[: chain.virtual_size] == everything(chain), where
            # The next verb works on the disk as it is by now.
            for again in ("index", "restore"):
                try:
                    run(again, daemon)
                except ImageError as error:
                    assert again == "restore" and "is not lifted" in str(error), where
            expect_order(chain, daemon, other, where, said_no=True)
            with daemon.client() as client:
                assert read_all(client)[: chain.virtual_size] == everything(chain), where
        return True, said
    finally:
        daemon.process.kill()
        subprocess.run(["rm", "-rf", str(chain.directory)], check=True)


def count_commands(make_chain, start_daemon, qemu, verb) -> int:
    chain = make_chain(5, virtual_size=4 << 20, per_layer=3)
    daemon = start_daemon(chain.active, qemu=qemu)
    if verb == "restore":
        run("index", daemon)
    with Other(chain, daemon, "", 0) as other:
        run(verb, daemon)
    daemon.process.kill()
    subprocess.run(["rm", "-rf", str(chain.directory)], check=True)
    return other.count


def races(make_chain, start_daemon, *, qemu, verb, deed, step=1, first=1) -> None:
    said: dict[str, int] = {}
    tries = 0
    for which in range(first, count_commands(make_chain, start_daemon, qemu, verb) + 1, step):
        happened, error = race(make_chain, start_daemon, qemu=qemu, verb=verb, deed=deed, which=which)
        tries += happened
        what = "done" if error is None else f"{error.exit_status} {error.what[:70]}"
        said[what] = said.get(what, 0) + 1
    sys.stdout.write(f"{qemu}, {verb}, {deed}: {tries} tries: {said}\n")
    assert tries > 4


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("deed", ["snapshot-sync", "unplug", "stream"])
def test_somebody_else_before_some_commands(make_chain, start_daemon, qemu, deed):
    races(make_chain, start_daemon, qemu=qemu, verb="index", deed=deed, first=22, step=4)


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_somebody_else_before_every_command(make_chain, start_daemon, qemu, verb, deed):
    races(make_chain, start_daemon, qemu=qemu, verb=verb, deed=deed)


@pytest.mark.parametrize("verb", VERBS)
def test_another_size_at_every_step(make_chain, verb):
    chain = make_chain(5, virtual_size=4 << 20, per_layer=3)
    grown: list[State] = []
    # A device lets its disk be resized; an export does not.
    with Running(chain.active, emulator=True) as vm:

        def grow(state):
            grown.append(state)
            vm.execute("block_resize", node_name="disk0", size=chain.virtual_size + (len(grown) << 20))

        if verb == "restore":
            with open_session(vm.qmp_path) as session:
                live_index(session)
        with open_session(vm.qmp_path) as session:
            assert VERBS[verb](session, after=grow).left == []
        assert grown == [State.ADDED, State.HELD, State.PIVOTED, State.PERSISTED, State.DONE]
        whole = everything(chain) + bytes(len(grown) << 20)
        assert vm.read() == whole
        with open_session(vm.qmp_path) as session:
            live_index(session) if verb == "restore" else live_restore(session)
        assert vm.read() == whole
