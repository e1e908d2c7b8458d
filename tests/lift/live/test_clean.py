"""After an unplug nothing of a lift stays in QEMU; what killed runs have left goes with the next session or `clean`."""

import json
import subprocess
import sys
import time

import pytest
from tests.support.json_schemas import valid
from tests.support.lifts import live_index, live_restore, live_squash

from chainlift.errors import QemuError
from chainlift.lift.live.clean import clean
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.record.pointer import named_in

pytestmark = [pytest.mark.integration, pytest.mark.qemu(since=(6, 1))]


class Killed(BaseException):
    pass


def unplug(daemon, *nodes):
    """As an operator does: first the export, then what he has added by name."""
    daemon.monitor.execute("block-export-del", id="exp0", mode="hard")
    while daemon.monitor.execute("query-block-exports"):
        time.sleep(0.005)
    for node in nodes or ("disk0", "disk0-file"):
        daemon.monitor.execute("blockdev-del", node_name=node)


def plug(daemon, image):
    file = {"driver": "file", "node-name": "disk0-file", "filename": str(image)}
    daemon.monitor.execute("blockdev-add", file)
    daemon.monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file"})
    daemon.monitor.execute("block-export-add", type="nbd", id="exp0", node_name="disk0", name="disk", writable=True)


def die_at(session, reached):
    """Let the session's pivot end there as if it were killed."""
    pivot = session.pivot(after=lambda state: (_ for _ in ()).throw(Killed) if state is reached else None)
    pivot._undo = lambda *_: None  # a killed process undoes nothing
    session.pivot = lambda **_: pivot


def what_is_left(daemon, files):
    """Nodes, open files, and which of the chain's files are locked."""
    inodes = {path.stat().st_ino: path.name for path in files}
    locked = set()
    for line in open("/proc/locks").read().splitlines():  # noqa: SIM115, PTH123
        inode = int(line.split()[5 if "->" not in line else 6].rpartition(":")[2])
        locked |= {inodes[inode]} if inode in inodes else set()
    return daemon.nodes(), daemon.open_files(), locked


@pytest.mark.parametrize("verbs", [(live_index,), (live_squash,), (live_index, live_restore)])
def test_an_unplugged_disk_takes_its_chain_along(make_chain, start_daemon, qemu, verbs):
    chain = make_chain(40, virtual_size=8 << 20, per_layer=2, absolute_names=True)
    daemon = start_daemon(chain.active, qemu=qemu)
    unplug(daemon)
    without = what_is_left(daemon, chain.files)
    plug(daemon, chain.active)
    for verb in verbs:
        with open_session(daemon.qmp) as session:
            assert verb(session).left == []
    unplug(daemon)
    assert what_is_left(daemon, chain.files) == without
    assert without[0] == set()


@pytest.mark.parametrize("reached", [State.ADDED, State.HELD, State.PIVOTED, State.PERSISTED])
def test_what_a_killed_run_has_left_of_a_disk_that_is_gone_is_removed(make_chain, start_daemon, qemu, reached):
    chain = make_chain(12, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    unplug(daemon)
    without = what_is_left(daemon, chain.files)
    plug(daemon, chain.active)
    with open_session(daemon.qmp) as session:
        die_at(session, reached)
        with pytest.raises(Killed):
            live_index(session)
    unplug(daemon)
    assert daemon.nodes()
    done = clean(daemon.qmp)
    assert done.removed
    assert done.looked_at == []
    assert what_is_left(daemon, chain.files) == without
    assert clean(daemon.qmp).removed == []


def test_clean_puts_disks_in_order_and_leaves_lifts_that_are_in_use(make_chain, start_daemon, qemu, same_bytes):
    chain = make_chain(12, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    fresh = daemon.nodes()
    with open_session(daemon.qmp) as session:
        die_at(session, State.HELD)
        with pytest.raises(Killed):
            live_index(session)
    done = clean(daemon.qmp)
    assert done.looked_at == [chain.active]
    assert done.removed
    assert daemon.nodes() == fresh
    with open_session(daemon.qmp) as session:
        live_index(session)
    lifted = daemon.nodes()
    assert clean(daemon.qmp).removed == []
    assert daemon.nodes() == lifted
    same_bytes(chain.active, chain.files[-2])


@pytest.mark.parametrize("reached", [State.HELD, State.PIVOTED, State.PERSISTED])
@pytest.mark.parametrize("verb", [live_index, live_squash])
def test_a_killed_run_is_put_in_order_though_a_snapshot_was_taken_since(
    make_chain, start_daemon, qemu, same_bytes, reached, verb
):
    chain = make_chain(6, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    with open_session(daemon.qmp) as session:
        die_at(session, reached)
        with pytest.raises(Killed):
            verb(session)
    overlay = chain.directory / "over.qcow2"
    snapshot = {"node-name": "disk0", "snapshot-file": str(overlay), "snapshot-node-name": "over", "format": "qcow2"}
    daemon.monitor.execute("blockdev-snapshot-sync", snapshot)
    with open_session(daemon.qmp) as session:
        assert any("killed run" in warning for warning in session.warnings)
        graph = session.graph
        assert not [
            name for name in graph.backing_chain("over")[1:] if any(map(graph.is_written, graph.layer_nodes(name)))
        ]
        assert not [name for name in graph.names if not graph.parents(name)]
        live_index(session)
    same_bytes(overlay, chain.files[-2])
    with open_session(daemon.qmp) as session:
        live_restore(session)
    same_bytes(overlay, chain.files[-2])
    same_bytes(chain.active, chain.files[-2])


def test_a_layer_that_an_older_version_has_left_open_for_writing_is_closed(make_chain, start_daemon, qemu):
    chain = make_chain(6, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    overlay = chain.directory / "over.qcow2"
    snapshot = {"node-name": "disk0", "snapshot-file": str(overlay), "snapshot-node-name": "over", "format": "qcow2"}
    daemon.monitor.execute("blockdev-snapshot-sync", snapshot)
    below = query_graph(daemon.monitor).child("disk0", "backing")
    options = {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file", "backing": below}
    daemon.monitor.execute("blockdev-reopen", options=[options])
    assert not query_graph(daemon.monitor).nodes["disk0"].read_only
    with open_session(daemon.qmp) as session:
        assert any("disk0 under the active layer was open for writing" in warning for warning in session.warnings)
        live_index(session)
    with open_session(daemon.qmp) as session:
        assert session.warnings == [] or not any("open for writing" in warning for warning in session.warnings)
        live_restore(session)
    assert query_graph(daemon.monitor).nodes[query_graph(daemon.monitor).child("over", "backing")].read_only
    assert json.dumps(named_in(overlay)) == json.dumps(str(chain.active))


def test_a_node_that_somebody_stands_on_is_not_removed(make_chain, start_daemon, qemu):
    chain = make_chain(4, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    gone = "chainlift-00000000-3"
    daemon.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": gone, "size": 0, "read-only": True})
    daemon.monitor.execute("blockdev-add", {"driver": "raw", "node-name": "theirs", "read-only": True, "file": gone})
    clean(daemon.qmp)
    assert {gone, "theirs"} <= daemon.nodes()
    daemon.monitor.execute("blockdev-del", node_name="theirs")
    assert clean(daemon.qmp).removed == [gone]
    with pytest.raises(QemuError):
        daemon.monitor.execute("blockdev-del", node_name=gone)


def test_the_command_says_what_it_has_removed(make_chain, start_daemon, qemu):
    chain = make_chain(4, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active, qemu=qemu)
    gone = "chainlift-00000000-hold"
    daemon.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": gone, "size": 0, "read-only": True})
    chainlift = [sys.executable, "-m", "chainlift", "clean"]
    for words, said in (([], f"removed nodes: {gone}\n"), (["--json"], None)):
        done = subprocess.run([*chainlift, "--qmp", daemon.qmp, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert said is None or done.stdout == said
    assert valid("clean", done.stdout) == {
        "schema": 1,
        "removed": [],
        "undone": [],
        "disks": [str(chain.active)],
        "refused": {},
    }
    assert subprocess.run(chainlift, capture_output=True).returncode == 2
