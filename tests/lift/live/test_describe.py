"""What is told of QEMU's nodes from outside is what QEMU tells, or nothing."""

import json
from pathlib import Path

import pytest
from tests.support.lifts import live_index

from chainlift.lift.live.describe import describe
from chainlift.lift.live.graph import query_edges, query_graph
from chainlift.lift.live.seen_process import read_process
from chainlift.lift.live.session import open_session
from chainlift.qemu.monitor import Monitor

pytestmark = pytest.mark.integration


def outside(daemon):
    process = read_process(daemon.process.pid)
    graph = query_edges(daemon.monitor, process.directory)
    nodes = describe(graph, process)
    return None if nodes is None else graph.described(nodes)


def facts(graph):
    return {
        name: (
            node.driver,
            node.direct,
            node.no_flush,
            node.detect_zeroes,
            node.encrypted,
            file and Path(file).resolve(),
        )
        for name, node in graph.nodes.items()
        for file in [graph.protocol_file(name)]
    }


def agree(daemon, length: int) -> None:
    ours, theirs = outside(daemon), query_graph(daemon.monitor)
    assert ours is not None
    assert facts(ours) == facts(theirs)
    chain = theirs.backing_chain("disk0")
    assert len(chain) == length + 1
    assert [ours.nodes[name].read_only for name in chain] == [theirs.nodes[name].read_only for name in chain]


def test_a_chain_that_qemu_opened_by_itself(make_chain, start_daemon):
    chain = make_chain(12)
    agree(start_daemon(chain.active), 12)


def test_a_chain_of_which_every_node_was_named_as_libvirt_does(make_chain, start_daemon):
    chain = make_chain(4)
    disks = []
    for number, path in enumerate(chain.files):
        top = number == len(chain.files) - 1
        name, cache = ("disk0" if top else f"layer{number}"), {"direct": False, "no-flush": True}
        file = {"driver": "file", "node-name": f"{name}-file", "filename": str(path), "cache": cache}
        node = {"driver": "qcow2", "node-name": name, "file": f"{name}-file", "read-only": not top, "cache": cache}
        node["backing"] = f"layer{number - 1}" if number else None
        disks += ["--blockdev", json.dumps(file), "--blockdev", json.dumps(node)]
    agree(start_daemon(chain.active, disks=disks), 4)


def test_options_in_dots_and_a_filter_over_the_disk(make_chain, start_daemon):
    chain = make_chain(3)
    disk = (
        f"driver=qcow2,node-name=disk0,detect-zeroes=on,cache.no-flush=on,file.driver=file,file.filename={chain.active}"
    )
    throttle = {"driver": "throttle", "node-name": "slow", "throttle-group": "group0", "file": "disk0"}
    daemon = start_daemon(
        chain.active, disks=["--blockdev", disk, "--blockdev", json.dumps(throttle)],
        extra=("--object", "throttle-group,id=group0"),
    )  # fmt: skip
    agree(daemon, 3)
    with open_session(daemon.qmp) as session:
        active = session.active()
    assert (active.no_flush, active.options["detect-zeroes"]) == (True, "on")


def test_a_node_that_was_added_later_is_asked_for(make_chain, start_daemon):
    daemon = start_daemon(make_chain(3).active)
    daemon.monitor.execute("blockdev-add", {"driver": "null-co", "node-name": "later"})
    assert outside(daemon) is None
    with open_session(daemon.qmp) as session:
        assert session.graph.nodes["later"].driver == "null-co"


def test_a_layer_that_was_replaced_is_asked_for(make_chain, start_daemon):
    chain = make_chain(3)
    daemon = start_daemon(chain.active)
    assert outside(daemon) is not None
    text = chain.files[1].read_bytes()
    chain.files[1].unlink()
    chain.files[1].write_bytes(text)
    assert outside(daemon) is None


def test_a_long_chain_is_lifted_without_asking_for_descriptions(make_chain, start_daemon, monkeypatch):
    chain = make_chain(40, virtual_size=8 << 20, per_layer=2)
    daemon = start_daemon(chain.active)
    asked = []
    plain = Monitor.execute
    monkeypatch.setattr(
        Monitor,
        "execute",
        lambda self, command, *args, **more: (asked.append(command), plain(self, command, *args, **more))[1],
    )
    with open_session(daemon.qmp) as session:
        assert live_index(session, qemu=None).left == []
    assert "blockdev-reopen" in asked
    assert not {"query-named-block-nodes", "query-block"} & set(asked)
