"""Snapshots that others take after a pivot have the names that they would have without us."""

import json
import subprocess
from pathlib import Path

import pytest
from tests.support.lifts import live_index, live_restore, live_squash

from chainlift.chain.names import Reference
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.naming import qemu_name
from chainlift.lift.live.session import open_session
from chainlift.lift.record.pointer import index_descriptor, named_in
from chainlift.lift.target import open_options

pytestmark = pytest.mark.integration


def reads(image: Path) -> bytes:
    """What stock qemu-img reads, of an image that another QEMU has open."""
    said = subprocess.run(
        ["qemu-img", "info", "-U", "--backing-chain", "--output=json", image], capture_output=True, check=True
    )
    assert json.loads(said.stdout)
    raw = image.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    data = raw.read_bytes()
    raw.unlink()
    return data


def everything(chain) -> bytes:
    return b"".join(chain.block(number) for number in range(chain.virtual_size // 4096))


def snapshot(daemon, chain, command: str, number: int) -> str:
    """Take a snapshot as others do; return the name that is in the new overlay's header."""
    node, overlay = f"snapshot{number}", chain.directory / f"snapshot{number}.qcow2"
    top = "disk0" if number == 1 else f"snapshot{number - 1}"
    sync = {"node-name": top, "snapshot-file": str(overlay), "snapshot-node-name": node, "format": "qcow2"}
    if command == "blockdev-snapshot-sync":
        daemon.monitor.execute(command, sync)
    elif command == "transaction":
        daemon.monitor.execute(command, {"actions": [{"type": "blockdev-snapshot-sync", "data": sync}]})
    else:
        below = query_graph(daemon.monitor).nodes[top].filename
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-F", "qcow2", "-b", below, overlay, "8M"], check=True
        )
        file = {"driver": "file", "filename": str(overlay)}
        daemon.monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": node, "file": file, "backing": None})
        daemon.monitor.execute(command, {"node": top, "overlay": node})
    return named_in(overlay)


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("command", ["blockdev-snapshot-sync", "blockdev-snapshot", "transaction"])
@pytest.mark.parametrize("verb", ["index", "squash", "restore", "restore of a squash"])
def test_a_snapshot_after_a_pivot_has_a_plain_name(make_chain, start_daemon, qemu, command, verb):
    chain = make_chain(5, virtual_size=8 << 20, per_layer=3)
    daemon = start_daemon(chain.active, qemu=qemu)
    prepare = live_squash if "squash" in verb else live_index
    with open_session(daemon.qmp) as session:
        prepare(session)
    if "restore" in verb:
        with open_session(daemon.qmp) as session:
            live_restore(session)
    assert snapshot(daemon, chain, command, 1) == str(chain.active)
    assert snapshot(daemon, chain, command, 2) == str(chain.directory / "snapshot1.qcow2")
    names = {name: node.filename for name, node in query_graph(daemon.monitor).nodes.items()}
    nested = [name for name, filename in names.items() if filename.startswith("json:")]
    assert len(nested) == (verb == "index")
    assert reads(chain.directory / "snapshot2.qcow2") == everything(chain)


@pytest.mark.qemu(since=(6, 1))
@pytest.mark.parametrize("directory", ["plain", 'ü "x" \\ %20', "\U0001f600\x7f\t,=:", "json:{}"])
def test_the_name_of_every_node_is_the_one_that_qemu_gives_it(make_chain, start_daemon, tmp_path, qemu, directory):
    place = tmp_path / directory
    chain = make_chain(3, virtual_size=8 << 20, per_layer=3, directory=place)
    daemon = start_daemon(chain.active, qemu=qemu)
    below = chain.files[-2]
    # A VMDK descriptor cannot carry every name.
    if '"' not in directory:
        with open_session(daemon.qmp) as session:
            result = live_index(session, qemu=None)
        descriptor = index_descriptor(result.manifest.lifted.name)
        graph = query_graph(daemon.monitor)
        name = graph.nodes[graph.child("disk0", "backing")].filename
        assert name == qemu_name(open_options(Reference(str(descriptor), "qcow2", is_descriptor=True)))
        assert name == named_in(chain.active)
        assert index_descriptor(name) == descriptor
    options = open_options(Reference(str(below), "qcow2"))
    daemon.monitor.execute("blockdev-add", {**options, "node-name": "by-itself"})
    assert query_graph(daemon.monitor).nodes["by-itself"].filename == qemu_name(options) == str(below)


def test_a_name_that_is_not_certain_is_none():
    below = Reference("/b", "qcow2")
    assert qemu_name(open_options(Reference("/a", "qcow2", follows_header=False, backing=below))) is None
    assert qemu_name(open_options(Reference("/a", "qcow2", data_file=Reference("/d", "raw")))) is None
    assert qemu_name(open_options(Reference("/" + "a" * 1023, "qcow2"))) is None
