"""QEMU's graph out of what three releases answered (tests/support/recorded_qmp.py)."""

import copy

import pytest
from tests.support.recorded_qmp import RELEASES, RecordedQmp, recorded

from chainlift.errors import QemuError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.live.graph import Edge, User, is_named, local_filename, query_edges, query_graph


@pytest.fixture(params=RELEASES)
def answers(request):
    return recorded(request.param, "disks")


@pytest.fixture
def graph(answers):
    return query_graph(RecordedQmp(answers))


def test_a_disk_is_a_chain_of_nodes_under_filters(graph):
    chain = graph.backing_chain("disk0")
    assert chain[:3] == ["disk0", "layer2", "layer1"]
    assert [is_named(node) for node in chain] == [True, True, True, False]
    assert graph.child("limited", "file") == "disk0"
    assert graph.through_filters("limited") == "disk0"
    assert graph.root("disk0") == "limited"
    assert graph.root("layer1") == "layer1"
    assert graph.children("disk0") == {"file": "disk0-file", "backing": "layer2"}
    assert [graph.protocol_file(node) for node in chain] == [f"/images/a{n}.qcow2" for n in (3, 2, 1, 0)]


def test_a_layers_nodes_are_those_that_go_with_it(graph):
    assert graph.layer_nodes("layer2") == ["layer2", "layer2-file"]
    below = graph.subtree("limited")
    assert below[0] == "limited"
    assert len(below) == len(set(below)) == 1 + 2 * 4
    assert set(graph.backing_chain("disk0")) < set(below)


def test_nodes_are_what_the_command_line_made_them(graph):
    disk0, layer2 = graph.nodes["disk0"], graph.nodes["layer2"]
    assert (disk0.driver, disk0.read_only, disk0.encrypted, disk0.is_filter) == ("qcow2", False, False, False)
    assert (layer2.read_only, graph.nodes["limited"].is_filter) == (True, True)
    (drive,) = [child for user, child in graph.users() if user.name == "drive1"]
    assert (graph.nodes[drive].direct, graph.nodes[drive].no_flush) == (True, False)
    assert graph.nodes[drive].detect_zeroes == "on"


def test_users_are_devices_exports_and_jobs(graph):
    users = list(graph.users())
    assert (User("block-backend", "/machine/peripheral/vb0/virtio-backend"), "limited") in users
    assert (User("block-job", "job0"), "disk2") in users
    # The stream has put a filter over its disk: it is the filter that is exported.
    above = graph.root("disk2")
    assert graph.nodes[above].driver == "copy-on-read"
    assert (User("block-backend", ""), above) in users


def test_who_may_write_is_told_by_the_edges(graph):
    assert graph.is_written("disk0-file")
    assert not graph.is_written("layer2")
    assert Edge("disk0", "backing", "layer2") in graph.parents("layer2")


def test_edges_alone_tell_names_and_no_more(answers):
    graph = query_edges(RecordedQmp(answers))
    assert {"disk0", "layer1", "limited"} <= graph.names
    assert graph.nodes == {}


def test_a_graph_that_changes_while_it_is_read_is_read_again(answers):
    before = copy.deepcopy(next(item for item in answers if item["command"] == "query-named-block-nodes"))
    before["return"] = [node for node in before["return"] if node["node-name"] != "layer1"]
    assert "layer1" in query_graph(RecordedQmp([before, *answers])).nodes
    with pytest.raises(QemuError, match="its block nodes change all the time; wait until"):
        query_graph(RecordedQmp([before] * 5 + answers))


def test_names_of_files_as_qemu_writes_them():
    assert local_filename("/images/a.qcow2") == "/images/a.qcow2"
    assert local_filename("file:/images/a:b.qcow2") == "/images/a:b.qcow2"
    assert local_filename('json:{"driver":"file","filename":"/images/a b"}') == "/images/a b"


def test_one_file_under_two_names(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").touch()
    assert is_same_file(tmp_path / "a", tmp_path / "b")
    assert not is_same_file(tmp_path / "a", tmp_path / "c")
    assert not is_same_file(tmp_path / "a", tmp_path / "gone")
