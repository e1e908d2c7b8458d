"""What layers carry beside data; bitmaps merged by every QEMU, their bits read by our reader and by a client of NBD."""

import contextlib
import json
import os
import socket
import struct

import numpy as np
import pytest

from chainlift import open_chain
from chainlift.errors import ImageError
from chainlift.lift.neighbours.carried import carry_bitmaps, read_carried
from chainlift.qcow2.bitmaps import list_bitmaps, read_bits
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header
from chainlift.qcow2.writer import write_image
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

pytestmark = pytest.mark.integration
K64 = 65536
MIB = 1 << 20
DISK = 64 * MIB


@pytest.fixture
def img(tool, any_qemu):
    """Runs a tool of a QEMU, which must succeed."""

    def run(name, *arguments):
        status, said = tool(any_qemu, name, *arguments)
        assert status == 0, said
        return said

    return run


def dirty(path, name):
    """Bytes of the disk that a bitmap marks, by our own reader: for each 64 KiB whether it has a set bit."""
    file = ImageFile(str(path))
    try:
        image = Image(file, read_header(file))
        (bitmap,) = (bitmap for bitmap in list_bitmaps(image) if bitmap.name == name)
        marked = np.zeros(-(-image.header.virtual_size // bitmap.granularity), bool)
        per_cluster = image.header.cluster_size * 8
        for first, bits in read_bits(image, bitmap):
            marked[first : first + per_cluster] = bits
        return marked, bitmap.granularity
    finally:
        file.close()


def spans(marked, granularity):
    edges = np.flatnonzero(np.diff(np.concatenate(([0], marked.astype(np.int8), [0])))) * granularity
    return list(zip(edges[::2].tolist(), (edges[1::2] - edges[::2]).tolist(), strict=True))


def write_layer(img, path, *, below=None, bitmaps=(), writes=()):
    """A layer whose bitmaps have recorded what was written."""
    write_image(path, virtual_size=DISK, backing_file=below and below.name, backing_format=below and "qcow2")
    for name, *options in bitmaps:
        img("img", "bitmap", "--add", *options, "--", path, name)
    for offset in writes:
        img("io", "-f", "qcow2", "-c", f"write -P 1 {offset} 4k", path)
    return path


def nbd_dirty(qemu, path, name, place):
    """The spans that QEMU's NBD server calls dirty (the metadata context qemu:dirty-bitmap:NAME)."""
    nbd, qmp = place / "nbd", place / "qmp"
    node = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}, "backing": None}
    export = {"type": "nbd", "id": "e", "node-name": "n", "name": "e", "bitmaps": [name]}
    argv = qemu.command(
        "storage-daemon",
        *("--chardev", f"socket,id=qmp,path={qmp},server=on,wait=off", "--monitor", "chardev=qmp"),
        *("--blockdev", json.dumps({**node, "read-only": True}), "--nbd-server", f"addr.type=unix,addr.path={nbd}"),
    )
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(QemuProcess(argv, environment=qemu.environment))
        monitor = stack.enter_context(Monitor.connect(qmp, process))
        monitor.execute("block-export-add", export)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.settimeout(60)
        client.connect(str(nbd))
        stream = stack.enter_context(client.makefile("rwb"))
        return list(_block_status(stream, f"qemu:dirty-bitmap:{name}"))


def _block_status(stream, context):
    stream.read(18)
    stream.write(struct.pack(">I", 3))

    def option(number, data):
        stream.write(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        stream.flush()
        while True:
            _, _, kind, length = struct.unpack(">QIII", stream.read(20))
            content = stream.read(length)
            if kind == 1:
                return
            assert kind < 1 << 31, content

    option(8, b"")  # NBD_OPT_STRUCTURED_REPLY
    names = struct.pack(">I1sII", 1, b"e", 1, len(context)) + context.encode()
    option(10, names)  # NBD_OPT_SET_META_CONTEXT
    option(7, struct.pack(">I1sH", 1, b"e", 0))  # NBD_OPT_GO
    offset = 0
    while offset < DISK:
        stream.write(struct.pack(">IHHQQI", 0x25609513, 0, 7, 1, offset, DISK - offset))
        stream.flush()
        done = False
        while not done:
            _, flags, kind, _, length = struct.unpack(">IHHQI", stream.read(20))
            content = stream.read(length)
            done = bool(flags & 1)
            if kind == 5:
                for at in range(4, length, 8):
                    size, state = struct.unpack_from(">II", content, at)
                    if state & 1:
                        yield offset, size
                    offset += size


def test_bitmaps_of_one_name_become_one_with_all_bits(img, any_qemu, tmp_path):
    base = write_layer(img, tmp_path / "base", bitmaps=[("cp", "-g", "131072"), ("-old",)], writes=[0, 9 * MIB])
    middle = write_layer(img, tmp_path / "middle", below=base, bitmaps=[("cp",)], writes=[MIB, 32 * MIB])
    top = write_layer(img, tmp_path / "top", below=middle, bitmaps=[("cp", "-g", "262144")], writes=[63 * MIB])
    img("img", "bitmap", "--disable", top, "cp")
    target = tmp_path / "squash"
    write_image(target, virtual_size=DISK, backing_file="nowhere", backing_format="qcow2")
    with open_chain(top) as chain:
        assert sorted(carry_bitmaps(any_qemu, chain.layers, target)) == ["-old", "cp"]
    carried = read_carried(target)
    state = {bitmap.name: (bitmap.granularity, bitmap.auto, bitmap.in_use) for bitmap in carried.bitmaps}
    assert state == {"cp": (K64, False, False), "-old": (K64, True, False)}
    # Each bit covers what a bit of its own layer covered.
    expected = [(0, 2 * K64), (MIB, K64), (9 * MIB, 2 * K64), (32 * MIB, K64), (63 * MIB, 4 * K64)]
    assert spans(*dirty(target, "cp")) == expected
    assert spans(*dirty(target, "-old")) == [(0, K64), (9 * MIB, K64)]
    assert carried.set_bits == {"cp": 10, "-old": 2}
    assert nbd_dirty(any_qemu, target, "cp", tmp_path) == expected
    # The chain below need not be there, and the name of it stays.
    img("img", "rebase", "-u", "-b", "base", "-F", "qcow2", target)
    img("img", "check", "-f", "qcow2", target)


def test_a_bitmap_that_was_not_saved_is_refused_before_anything_is_changed(img, any_qemu, tmp_path):
    below = write_layer(img, tmp_path / "below", bitmaps=[("good",)], writes=[0])
    layer = write_layer(img, tmp_path / "layer", below=below, bitmaps=[("broken",)], writes=[0])
    # QEMU marks a bitmap while it may change it, and one that is killed leaves the mark (abort: of qemu-io's own).
    io = any_qemu.command("io", "-f", "qcow2", "-c", "write 64k 64k", "-c", "flush", "-c", "sigraise 9", str(layer))
    assert os.spawnvpe(os.P_WAIT, io[0], io, {**os.environ, **any_qemu.environment}) == -9
    (bitmap,) = read_carried(layer).bitmaps
    assert (bitmap.name, bitmap.in_use) == ("broken", True)
    target = tmp_path / "squash"
    write_image(target, virtual_size=DISK)
    before = target.read_bytes()
    with (
        open_chain(layer) as chain,
        pytest.raises(ImageError, match=r"layer: the bitmap 'broken' was not saved properly.*--drop-bitmaps"),
    ):
        carry_bitmaps(any_qemu, chain.layers[::-1], target)
    assert target.read_bytes() == before


def test_a_bitmap_of_a_disk_of_another_size_is_refused(img, any_qemu, tmp_path):
    layer = write_layer(img, tmp_path / "layer", bitmaps=[("cp",)], writes=[0])
    target = tmp_path / "squash"
    write_image(target, virtual_size=2 * DISK)
    with open_chain(layer) as chain, pytest.raises(ImageError, match=f"is of a disk of {DISK} bytes, not {2 * DISK}"):
        carry_bitmaps(any_qemu, chain.layers, target)
    assert read_carried(target).bitmaps == ()


def test_all_that_a_layer_carries_is_told(img, tmp_path):
    path = write_layer(img, tmp_path / "image", bitmaps=[("cp",)], writes=[0])
    assert read_carried(path).irreplaceable is None
    img("img", "snapshot", "-c", "before-upgrade", path)
    img("img", "snapshot", "-c", "later", path)
    carried = read_carried(path)
    assert [snapshot.name for snapshot in carried.snapshots] == ["before-upgrade", "later"]
    assert carried.irreplaceable == "it holds the internal snapshot before-upgrade and 1 more"
    (tmp_path / "raw").write_bytes(bytes(MIB))
    assert read_carried(tmp_path / "raw").irreplaceable is None
