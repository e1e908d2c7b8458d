"""An index must be impossible to write through: each wall alone, and all of them, against everything that writes."""

import shutil
import socket as socket_module
import subprocess
import time
from contextlib import ExitStack, closing

import numpy as np
import pytest
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index

from chainlift.errors import QemuError
from chainlift.lift.build.indexfile import PREAMBLE_BYTES
from chainlift.lift.record.lifts import lift_directory
from chainlift.qcow2.header import parse_header
from chainlift.qcow2.layout import L1E_OFFSET_MASK, L2E_OFFSET_MASK, OFLAG_COMPRESSED, OFLAG_COPIED
from chainlift.qemu.monitor import Monitor

pytestmark = pytest.mark.integration

#: Offset of the incompatible feature bits in a qcow2 header.
_FEATURES = 72
#: Of the number of its snapshots and where they are.
_SNAPSHOTS = 60

#: Name -> (tool, arguments): ``{index}`` is the index's name as an overlay has it, ``{over}`` an overlay with changes.
ATTACKS = {
    "commit": ("img", "commit", "{over}"),
    "commit and drop": ("img", "commit", "-d", "{over}"),
    "write": ("io", "-c", "write -P 1 0 4M", "-c", "write -P 9 1M 64k", "-c", "write -z 0 4M", "{index}"),
    "discard": ("io", "-d", "unmap", "-c", "discard 0 4M", "-c", "write -z -u 0 4M", "-c", "write -c 0 64k", "{index}"),
    "grow": ("img", "resize", "{index}", "8M"),
    "shrink": ("img", "resize", "--shrink", "{index}", "1M"),
    "lazy refcounts": ("img", "amend", "-f", "qcow2", "-o", "lazy_refcounts=on", "{index}"),
    "wide refcounts": ("img", "amend", "-f", "qcow2", "-o", "refcount_bits=32", "{index}"),
    "old version": ("img", "amend", "-f", "qcow2", "-o", "compat=0.10", "{index}"),
    "snapshot": ("img", "snapshot", "-c", "another", "{index}"),
    "revert": ("img", "snapshot", "-a", "1", "{index}"),
    "bitmap": ("img", "bitmap", "--add", "{index}", "b"),
    "rebase": ("img", "rebase", "-u", "-b", "", "{index}"),
    "repair leaks": ("img", "check", "-r", "leaks", "{index}"),
    "repair all": ("img", "check", "-r", "all", "{index}"),
    "commit again": ("img", "commit", "{over}"),
}
#: Walls that stand -> the attacks that QEMU then carries out, on the index's own files; it refuses or fails all others.
CARRIED_OUT = {
    "all": set(),
    "read-only nodes": set(),
    "corrupt bit": set(),
    "corrupt bit, refcounts": {"repair leaks", "repair all"},
    "refcounts": {"grow", "lazy refcounts", "rebase", "repair leaks", "repair all"},
}
#: QEMU looks at the corrupt bit when it opens an image for writing, not when it reopens one, as a commit does; and a
#: repair takes the bit away. So this wall needs one of the others.
GETS_BY = {"corrupt bit": {"commit", "commit and drop", "repair leaks", "repair all", "commit again", "live commit"}}
#: Releases up to 7.2 end with 0 although they say that the bitmap is lost.
UNCERTAIN = {"refcounts": {"bitmap"}}
#: What reaches the layers where no wall stands, and how it ends.
REACHES = {"commit": 0, "commit and drop": 0, "write": 1, "discard": 0}


def clear_corrupt_bit(table):
    with table.open("r+b") as stream:
        stream.seek(PREAMBLE_BYTES + _FEATURES)
        stream.write(bytes(8))


def clear_refcounts(table):
    """Make an index's counts what they are in an ordinary image: one for each cluster, COPIED, and no snapshot."""
    data = bytearray(table.read_bytes())
    header = parse_header(bytes(data[PREAMBLE_BYTES:]), str(table))

    def words(offset, count, kind=">u8"):
        return np.frombuffer(data, kind, count, PREAMBLE_BYTES + offset)

    l1 = words(header.l1_table_offset, header.l1_size)
    per_table = header.cluster_size // 8
    for offset in (l1[l1 != 0] & L1E_OFFSET_MASK).tolist():
        entries = words(offset, per_table)
        entries[(entries & L2E_OFFSET_MASK != 0) & (entries & OFLAG_COMPRESSED == 0)] |= OFLAG_COPIED
    l1[l1 != 0] |= OFLAG_COPIED
    blocks = words(header.refcount_table_offset, header.refcount_table_clusters * per_table)
    for offset in blocks[blocks != 0].tolist():
        np.minimum(counts := words(offset, header.cluster_size // 2, ">u2"), 1, out=counts)
    data[PREAMBLE_BYTES + _SNAPSHOTS : PREAMBLE_BYTES + _SNAPSHOTS + 12] = bytes(12)
    table.write_bytes(data)


def without_read_only(name):
    assert '"read-only":true,' in name
    return name.replace('"read-only":true,', "")


def is_listening(path):
    with socket_module.socket(socket_module.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def live_commit(qemu, overlay, directory):
    """Commit an active layer into the index under a storage daemon; returns how that ended."""
    socket = directory / "qmp"
    chardev = f"socket,id=c,path={socket},server=on,wait=off"
    command = qemu.command("storage-daemon", "--chardev", chardev, "--monitor", "chardev=c")
    with ExitStack() as opened, subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            # A connection may be refused between the socket's bind() and its listen().
            deadline = time.monotonic() + 120
            while not is_listening(socket) and time.monotonic() < deadline:
                time.sleep(0.01)
            monitor = opened.enter_context(closing(Monitor.connect(socket)))
            file = {"driver": "file", "filename": str(overlay)}
            monitor.execute("blockdev-add", **{"node-name": "top", "driver": "qcow2", "file": file})
            try:
                monitor.execute("block-commit", **{"job-id": "job", "device": "top", "auto-dismiss": False})
            except QemuError as error:
                return f"refused: {error}"
            while True:
                (job,) = monitor.execute("query-jobs")
                if job["status"] == "ready":
                    monitor.execute("job-complete", id="job")
                if job["status"] == "concluded":
                    return f"failed: {job['error']}" if "error" in job else "done"
                time.sleep(0.02)
        finally:
            daemon.kill()
            socket.unlink(missing_ok=True)


def make_overlay(tmp_path, tool, qemu, name, length):
    path = tmp_path / "over.qcow2"
    path.unlink(missing_ok=True)
    status, said = tool(qemu, "img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", name, path)
    assert status == 0, said
    status, said = tool(qemu, "io", "-f", "qcow2", "-c", f"write -q -P 153 0 {length}", path)
    assert status == 0, said
    return path


@pytest.mark.parametrize("walls", CARRIED_OUT)
def test_nothing_that_writes_reaches_a_layer(tmp_path, any_qemu, host_qemu, tool, same, reference, contents, walls):
    directory = tmp_path / "c"
    image = plain_chain(directory)
    raw = reference(image, tmp_path / "raw")
    name = lift_index(image, host_qemu).lifted.name
    stand = {"corrupt bit", "read-only nodes", "refcounts"} if walls == "all" else set(walls.split(", "))
    if "corrupt bit" not in stand:
        clear_corrupt_bit(lift_directory(image) / "index-1.table")
    if "refcounts" not in stand:
        clear_refcounts(lift_directory(image) / "index-1.table")
    if "read-only nodes" not in stand:
        name = without_read_only(name)
        command = ["rebase", "-u", "-F", "qcow2", "-b", name, image]
        assert tool(host_qemu, "img", *command)[0] == 0
    layers = {path: data for path, data in contents(directory).items() if path.endswith(".qcow2")}
    lift_files = contents(lift_directory(image))
    assert len(layers) == 5

    def overlay():
        return make_overlay(tmp_path, tool, any_qemu, name, "3M")

    def check(after):
        found = contents(directory)
        changed = [path for path, data in layers.items() if found[path] != data]
        assert not changed, f"{changed} changed after {after}"
        assert same(image, raw), f"other bytes after {after}"
        if "read-only nodes" in stand:
            assert contents(lift_directory(image)) == lift_files, f"the lift changed after {after}"

    for attack, (program, *arguments) in ATTACKS.items():
        if attack in GETS_BY.get(walls, ()):
            continue
        words = (word.format(index=name, over=overlay() if "{over}" in word else "") for word in arguments)
        status, said = tool(any_qemu, program, *words)
        check((attack, status, said))
        if attack not in UNCERTAIN.get(walls, ()):
            assert status == (0 if attack in CARRIED_OUT[walls] else 1), (attack, status, said)
    if "live commit" not in GETS_BY.get(walls, ()):
        how = live_commit(any_qemu, overlay(), tmp_path)
        check(("live block-commit", how))
        assert how.startswith("refused: " if "read-only nodes" in stand else "failed: "), how
    assert not [path for path in directory.iterdir() if path.name.endswith(".new")]


@pytest.mark.parametrize(
    ("walls", "attack"),
    [
        *(("none", attack) for attack in (*REACHES, "live commit")),
        ("corrupt bit", "commit"),
        ("corrupt bit", "live commit"),
    ],
)
def test_without_walls_the_same_attacks_reach_the_layers(tmp_path, any_qemu, host_qemu, tool, walls, attack):
    """The control: what the walls are there for does happen."""
    image = plain_chain(tmp_path / "c")
    name = without_read_only(lift_index(image, host_qemu).lifted.name)
    clear_refcounts(lift_directory(image) / "index-1.table")
    if walls == "none":
        clear_corrupt_bit(lift_directory(image) / "index-1.table")
    # Of the 4 MiB of the disk the base has two: so far, nothing need be allocated.
    over = make_overlay(tmp_path, tool, any_qemu, name, "2M")
    layers = {path: path.read_bytes() for path in image.parent.glob("layer[0-3].qcow2")}
    if attack == "live commit":
        assert live_commit(any_qemu, over, tmp_path) == "done"
    else:
        program, *arguments = ATTACKS[attack]
        status, said = tool(any_qemu, program, *(word.format(index=name, over=over) for word in arguments))
        assert status == REACHES[attack], said
    changed = [path.name for path, data in layers.items() if path.read_bytes() != data]
    assert "layer0.qcow2" in changed
    if attack != "discard":
        assert len(changed) == 4


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
