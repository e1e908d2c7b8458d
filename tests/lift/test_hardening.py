"""An index must be impossible to write through: each wall alone, and all of them, against everything that writes."""

import shutil
import socket as socket_module
import subprocess
import time
from contextlib import ExitStack, closing

import pytest
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index

from chainlift.lift.build.indexfile import PREAMBLE_BYTES
from chainlift.lift.record.lifts import lift_directory
from chainlift.qemu.monitor import Monitor

pytestmark = pytest.mark.integration

#: Offset of the incompatible feature bits in a qcow2 header.
_FEATURES = 72

#: (tool, arguments): ``{index}`` is the index's name as an overlay has it, ``{over}`` an overlay with changes on it.
ATTACKS = [
    ("img", "commit", "{over}"),
    ("img", "commit", "-d", "{over}"),
    ("io", "-c", "write -P 1 0 4M", "-c", "write -P 9 1M 64k", "-c", "write -z 0 4M", "{index}"),
    ("io", "-d", "unmap", "-c", "discard 0 4M", "-c", "write -z -u 0 4M", "-c", "write -c 0 64k", "{index}"),
    ("img", "resize", "{index}", "8M"),
    ("img", "resize", "--shrink", "{index}", "1M"),
    ("img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "{index}"),
    ("img", "amend", "-f", "qcow2", "-o", "refcount_bits=32", "{index}"),
    ("img", "amend", "-f", "qcow2", "-o", "compat=0.10", "{index}"),
    ("img", "snapshot", "-c", "another", "{index}"),
    ("img", "snapshot", "-a", "1", "{index}"),
    ("img", "bitmap", "--add", "{index}", "b"),
    ("img", "rebase", "-u", "-b", "", "{index}"),
    ("img", "check", "-r", "leaks", "{index}"),
    ("img", "check", "-r", "all", "{index}"),
    ("img", "commit", "{over}"),
]


def clear_corrupt_bit(table):
    with table.open("r+b") as stream:
        stream.seek(PREAMBLE_BYTES + _FEATURES)
        stream.write(bytes(8))


def is_listening(path):
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def live_commit(qemu, overlay, directory):
    """Commit an active layer into the index under a storage daemon; returns how the job ended."""
    socket = directory / "qmp"
    chardev = f"socket,id=c,path={socket},server=on,wait=off"
    command = qemu.command("storage-daemon", "--chardev", chardev, "--monitor", "chardev=c")
    with ExitStack() as opened, subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            # A connection may be refused between the socket's bind() and its listen().
            deadline = time.monotonic() + 20
            while not is_listening(socket) and time.monotonic() < deadline:
                time.sleep(0.01)
            monitor = opened.enter_context(closing(Monitor.connect(socket)))
            file = {"driver": "file", "filename": str(overlay)}
            monitor.execute("blockdev-add", **{"node-name": "top", "driver": "qcow2", "file": file})
            try:
                monitor.execute("block-commit", **{"job-id": "job", "device": "top"})
            except Exception as error:  # noqa: BLE001 - any refusal will do
                return f"refused: {error}"
            while jobs := monitor.execute("query-jobs"):
                if jobs[0]["status"] == "ready":
                    monitor.execute("job-complete", id="job")
                if jobs[0]["status"] == "concluded":
                    return f"ended: {jobs[0].get('error')}"
                time.sleep(0.02)
            return "ended"
        finally:
            daemon.kill()
            socket.unlink(missing_ok=True)


@pytest.mark.parametrize("walls", ["all", "corrupt bit", "read-only nodes", "refcounts"])
def test_nothing_that_writes_reaches_a_layer(tmp_path, any_qemu, host_qemu, tool, same, reference, contents, walls):
    directory = tmp_path / "c"
    image = plain_chain(directory)
    raw = reference(image, tmp_path / "raw")
    name = lift_index(image, host_qemu).lifted.name
    if walls in ("read-only nodes", "refcounts"):
        clear_corrupt_bit(lift_directory(image) / "index-1.table")
    if walls in ("corrupt bit", "refcounts"):
        name = name.replace('"read-only":true,', "")
        command = ["rebase", "-u", "-F", "qcow2", "-b", name, image]
        assert tool(host_qemu, "img", *command)[0] == 0
    layers = {path: data for path, data in contents(directory).items() if path.endswith(".qcow2")}
    lift_files = contents(lift_directory(image))
    assert len(layers) == 5

    def overlay():
        path = tmp_path / "over.qcow2"
        path.unlink(missing_ok=True)
        tool(any_qemu, "img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, path)
        assert tool(any_qemu, "io", "-f", "qcow2", "-c", "write -q -P 153 0 3M", path)[0] == 0
        return path

    def check(after):
        found = contents(directory)
        changed = [path for path, data in layers.items() if found[path] != data]
        assert not changed, f"{changed} changed after {after}"
        assert same(image, raw), f"other bytes after {after}"
        if walls == "all":
            assert contents(lift_directory(image)) == lift_files, f"the lift changed after {after}"

    for attack in ATTACKS:
        program, *arguments = (word.format(index=name, over=overlay() if "{over}" in word else "") for word in attack)
        status, said = tool(any_qemu, program, *arguments)
        check((attack, status, said))
    check(("live block-commit", live_commit(any_qemu, overlay(), tmp_path)))
    assert not [path for path in directory.iterdir() if path.name.endswith(".new")]


def test_the_table_by_itself_is_no_image(tmp_path, host_qemu, tool):
    image = plain_chain(tmp_path / "c")
    lift_index(image, host_qemu)
    table = lift_directory(image) / "index-1.table"
    assert "file format: raw" in tool(host_qemu, "img", "info", table)[1]
    assert tool(host_qemu, "img", "check", "-f", "qcow2", "-r", "all", table)[0] != 0
    assert table.read_bytes().startswith(b"This is the table of a chainlift index.")


def test_a_layer_cannot_be_written_while_the_index_is_open(tmp_path, host_qemu, tool):
    image = plain_chain(tmp_path / "c")
    lift_index(image, host_qemu)
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        holder.stdin.write(b"read 0 512\n")
        holder.stdin.flush()
        holder.stdout.readline()
        for layer in ("layer0.qcow2", "layer2.qcow2"):
            status, said = tool(host_qemu, "io", "-f", "qcow2", "-c", "write 0 64k", tmp_path / "c" / layer)
            assert status != 0
            assert "lock" in said
        holder.communicate(b"q\n")


def test_an_overlay_can_be_committed_into_the_image_above_the_index(
    tmp_path, any_qemu, host_qemu, tool, same, reference
):
    image = plain_chain(tmp_path / "c")
    lift_index(image, host_qemu)
    layers = {path.name: path.read_bytes() for path in (tmp_path / "c").glob("layer[0-3].qcow2")}
    over = tmp_path / "c/over.qcow2"
    tool(any_qemu, "img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.name, over)
    assert tool(any_qemu, "io", "-f", "qcow2", "-c", "write -q -P 153 64k 1M", over)[0] == 0
    raw = reference(over, tmp_path / "raw")
    status, said = tool(any_qemu, "img", "commit", over)
    assert status == 0, said
    assert same(image, raw)
    assert {path.name: path.read_bytes() for path in (tmp_path / "c").glob("layer[0-3].qcow2")} == layers
    shutil.rmtree(lift_directory(image))
