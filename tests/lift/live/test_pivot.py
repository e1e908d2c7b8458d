import json
import subprocess
from pathlib import Path

import pytest
from tests.support.daemon import read_all
from tests.support.owned_chain import everything

from chainlift.errors import InputError, QemuError, UnknownStateError
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.record.pointer import named_in
from chainlift.lift.target import Target, backing_target
from chainlift.qcow2.writer import write_image
from chainlift.qemu.nbd import NbdClient

pytestmark = pytest.mark.integration


def squash(chain) -> Path:
    """One image that reads as everything under the active layer does."""
    path = chain.directory / "squash.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", chain.files[-2], path], check=True)
    return path


def test_the_disk_reads_the_same_through_the_new_node_and_the_old_chain_is_closed(make_chain, start_daemon):
    chain = make_chain(20)
    target = backing_target(chain.active, squash(chain).name, "qcow2")
    daemon = start_daemon(chain.active)
    with daemon.client() as client, open_session(daemon.qmp) as session:
        assert read_all(client) == everything(chain)
        pivot = session.pivot()
        pivot.run(target)
        assert pivot.state is State.DONE
        assert read_all(client) == everything(chain)
    assert named_in(chain.active) == "squash.qcow2"
    assert len(daemon.nodes()) == 4  # two of the disk, two of the squash: no layer, no hold


def test_the_way_back_gives_every_node_and_file_descriptor_back(make_chain, start_daemon):
    chain = make_chain(20)
    target = backing_target(chain.active, squash(chain).name, "qcow2")
    original = named_in(chain.active)
    daemon = start_daemon(chain.active)
    counts = set()
    for _ in range(3):
        with open_session(daemon.qmp) as session:
            session.pivot().run(target)
        with open_session(daemon.qmp) as session:
            session.pivot().run(backing_target(chain.active, original, "qcow2"))
        counts.add((len(daemon.nodes()), daemon.open_files()))
    assert len(counts) == 1
    assert len(daemon.nodes()) == 42
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_layers_added_a_few_at_a_time_go_with_the_next_pivot(make_chain, start_daemon):
    chain = make_chain(12)
    squashed = backing_target(chain.active, squash(chain).name, "qcow2")
    layers = list(reversed(chain.files[:-1]))
    single = [
        {"driver": "qcow2", "read-only": True, "file": {"driver": "file", "filename": str(path)}} for path in layers
    ]
    back = Target(layers[0].name, single[0], tuple(single[1:]))
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        session.pivot().run(squashed)
        session.refresh()
        session.pivot().run(back, name_layers=True)
        session.refresh()
        names = [name for name in session.graph.nodes if name.startswith("chainlift-")]
        assert 0 < len(names) < 12  # one for each command
        with daemon.client() as client:
            assert read_all(client) == everything(chain)
        session.pivot().run(squashed)
    assert len(daemon.nodes()) == 4


@pytest.mark.parametrize("reached", [State.HELD, State.ADDED, State.PIVOTED, State.PERSISTED])
def test_a_failure_at_any_step_leaves_everything_as_before(make_chain, start_daemon, reached):
    chain = make_chain(10)
    target = backing_target(chain.active, squash(chain).name, "qcow2")
    daemon = start_daemon(chain.active)
    pointer, nodes = named_in(chain.active), daemon.nodes()

    def fail(state):
        if state is reached:
            raise QemuError("the test says no")

    with open_session(daemon.qmp) as session:
        pivot = session.pivot(after=fail)
        with pytest.raises(QemuError, match="the test says no"):
            pivot.run(target)
        assert pivot.state is State.START
    assert daemon.nodes() == nodes
    assert named_in(chain.active) == pointer
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


@pytest.mark.parametrize("reached", [State.HELD, State.ADDED, State.PIVOTED, State.PERSISTED])
def test_the_next_session_finishes_or_undoes_what_a_killed_one_left(make_chain, start_daemon, same_bytes, reached):
    chain = make_chain(10)
    squashed = squash(chain)
    daemon = start_daemon(chain.active)
    before = daemon.nodes()

    class Killed(BaseException):
        pass

    with open_session(daemon.qmp) as session:
        pivot = session.pivot(after=lambda state: (_ for _ in ()).throw(Killed) if state is reached else None)
        pivot._undo = lambda *_: None  # a killed process undoes nothing
        with pytest.raises(Killed):
            pivot.run(backing_target(chain.active, squashed.name, "qcow2"))
    same_bytes(chain.active, chain.files[-2])
    with open_session(daemon.qmp) as session:
        assert "killed run" in session.warnings[-1]
    switched = reached is State.PERSISTED
    assert named_in(chain.active) == ("squash.qcow2" if switched else chain.files[-2].name)
    assert len(daemon.nodes()) == (4 if switched else 22)
    assert switched or daemon.nodes() == before
    with daemon.client() as client:
        assert read_all(client) == everything(chain)
    same_bytes(chain.active, chain.files[-2])


def test_leftovers_that_cannot_be_put_in_order_are_not_known(make_chain, start_daemon):
    chain = make_chain(4)
    daemon = start_daemon(chain.active)
    with open_session(daemon.qmp) as session:
        prefix = session.active().prefix
    # A node under the name of a killed run's, which is none: QEMU does not make it a raw node.
    name, empty = f"{prefix}-cover1", {"driver": "null-co", "size": 0}
    daemon.monitor.execute("blockdev-add", {"driver": "copy-on-read", "node-name": name, "file": empty})
    with pytest.raises(UnknownStateError, match=r"could not be put in order .*copy-on-read") as caught:
        open_session(daemon.qmp).__enter__()
    assert caught.value.exit_status == 4
    daemon.monitor.execute("blockdev-del", {"node-name": name})
    with open_session(daemon.qmp):
        pass
    assert not [node for node in daemon.nodes() if node.startswith(prefix)]


def test_a_target_that_cannot_be_opened_is_an_error_and_nothing_is_left(make_chain, start_daemon):
    chain = make_chain(5)
    daemon = start_daemon(chain.active)
    nodes = daemon.nodes()
    with open_session(daemon.qmp) as session, pytest.raises(QemuError, match=r"not-there.*No such file"):
        session.pivot().run(backing_target(chain.active, "not-there.qcow2", "qcow2"))
    assert daemon.nodes() == nodes


def test_options_that_qemu_does_not_tell_are_taken_from_its_command_line(make_chain, start_daemon):
    chain = make_chain(3)
    disk = json.dumps({
        "driver": "qcow2", "node-name": "disk0", "l2-cache-size": 1 << 20, "discard": "unmap", "detect-zeroes": "unmap",
        "cache": {"direct": False, "no-flush": True}, "file": {"driver": "file", "filename": str(chain.active)},
    })  # fmt: skip
    daemon = start_daemon(chain.active, disks=["--blockdev", disk])
    with open_session(daemon.qmp) as session:
        options = session.active().options
        assert session.warnings == []
        session.pivot().run(backing_target(chain.active, squash(chain).name, "qcow2"))
        after = query_graph(session.monitor).nodes["disk0"]
    assert options["l2-cache-size"] == 1 << 20
    assert options["discard"] == "unmap"
    assert (after.detect_zeroes, after.no_flush, after.direct) == ("unmap", True, False)


def test_nodes_that_another_disk_uses_stay_open(make_chain, start_daemon):
    chain = make_chain(6)
    shared, other = chain.files[2], chain.directory / "other.qcow2"
    write_image(other, virtual_size=chain.virtual_size, backing_file=shared.name, backing_format="qcow2")
    daemon = start_daemon(chain.active)
    target = backing_target(chain.active, squash(chain).name, "qcow2")
    with open_session(daemon.qmp) as session:
        lower = session.graph.backing_chain("disk0")[4]
        file = {"driver": "file", "filename": str(other)}
        session.monitor.execute(
            "blockdev-add", {"driver": "qcow2", "node-name": "disk1", "file": file, "backing": lower}
        )
        session.monitor.execute("block-export-add", type="nbd", id="exp1", node_name="disk1", name="other")
        with NbdClient(daemon.nbd, "other") as client:
            before = read_all(client)
            session.refresh()
            session.pivot().run(target)
            assert read_all(client) == before
        graph = query_graph(session.monitor)
        assert graph.backing_chain("disk1")[1] == lower
        assert len(graph.backing_chain("disk1")) == 1 + 3
    assert len(daemon.nodes()) == 4 + 2 + 2 * 3
    with daemon.client() as client:
        assert read_all(client) == everything(chain)


def test_too_many_choices_name_every_disk(make_chain, start_daemon, tmp_path):
    chain = make_chain(2)
    other = make_chain(3, directory=tmp_path / "other")
    second = json.dumps({
        "driver": "qcow2", "node-name": "disk1", "file": {"driver": "file", "filename": str(other.active)},
    })  # fmt: skip
    daemon = start_daemon(
        chain.active,
        extra=["--blockdev", second],
    )
    daemon.monitor.execute("block-export-add", type="nbd", id="exp1", node_name="disk1", name="other")
    with pytest.raises(InputError, match=r"several qcow2 disks.*disk0 of exp0.*length 2.*disk1 of exp1.*length 3"):
        open_session(daemon.qmp).__enter__()
    with open_session(daemon.qmp, device="exp1") as session:
        assert session.disk.node == "disk1"
    with open_session(daemon.qmp, image=chain.active) as session:
        assert session.disk.node == "disk0"
