"""Through stock QEMU: what a pointer leads to opens and reads like what it replaces, or nothing is switched."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.chains import make_chain
from tests.support.lifts import lift_index, lift_squash
from tests.support.need import missing

from chainlift.chain import open_chain
from chainlift.errors import AnswerIsNo, ImageError, PolicyError, QemuCrashed, QemuError
from chainlift.lift.compare import stock
from chainlift.lift.compare.sample import SAMPLE, choose_sample
from chainlift.lift.compare.spans import Pair
from chainlift.lift.compare.stock import compare_stock, why_not_open
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.target import backing_target
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

pytestmark = pytest.mark.integration

CLUSTER = 65536
SIZE = 64 << 20


def content(layer, cluster):
    return bytes([layer + 1]) * 4096 + cluster.to_bytes(8, "big") * (CLUSTER // 8 - 512)


def build(directory, layers, *, size=SIZE, left_out=(), base_format="qcow2"):
    """Write a chain in which each layer has one cluster of its own that all others leave alone; return its top."""
    directory.mkdir(parents=True, exist_ok=True)
    name = None
    for layer in range(layers):
        path = directory / f"{layer}.{base_format if layer == 0 else 'qcow2'}"
        if layer == 0 and base_format == "raw":
            path.write_bytes(content(0, 0) + bytes((5 << 20) + 100))
        else:
            write_image(
                path, virtual_size=size, clusters=[] if layer in left_out else [layer * 3 % (size // CLUSTER)],
                data=lambda cluster, layer=layer: content(layer, cluster),
                backing_file=name, backing_format=None if name is None else base_format if layer == 1 else "qcow2",
            )  # fmt: skip
        name = path.name
    return directory / name


def pointer(name, fmt="qcow2"):
    return Pointer(name=str(name), format=fmt)


@pytest.fixture
def daemon_of(any_qemu):
    return find_qemu(any_qemu.label, need=["storage-daemon"])


@pytest.fixture
def host_daemon():
    return find_qemu("host", need=["storage-daemon"])


@pytest.mark.parametrize("seed", range(4))
def test_lifts_of_random_chains_read_the_same(tmp_path, any_qemu, host_qemu, seed):
    top = make_chain(tmp_path / "chain", seed, size=3 << 20)
    image = tmp_path / "active.qcow2"
    write_image(image, virtual_size=3 << 20, backing_file=f"chain/{top.name}", backing_format="qcow2")
    old = pointer(f"chain/{top.name}")
    manifest = lift_index(image, host_qemu, copy_budget_bytes=1 << 17)
    with open_chain(top) as chain:
        is_zstd = any(layer.image is not None and layer.image.header.compression_type for layer in chain.layers)
    if is_zstd and any_qemu.version < (6, 0, 0):  # Debian builds 5.2 without it
        with pytest.raises(ImageError, match="as it is: qcow2: unknown compression type: 1"):
            compare_stock(any_qemu, image, old, manifest.lifted, content=True)
        return
    done = compare_stock(any_qemu, image, old, manifest.lifted, content=True)
    assert (done.old_by_stock, done.new_by_stock) == (True, True)
    assert 0 < done.pieces <= SAMPLE
    assert done.sample_bytes <= 3 << 20
    try:
        manifest, _ = lift_squash(image, host_qemu)
    except ImageError as error:
        assert "nothing between" in str(error)
    else:
        assert compare_stock(any_qemu, image, old, manifest.lifted, content=True).content_bytes > 0


@pytest.mark.parametrize("missing", [1, 17, 58])
def test_a_whole_layer_that_is_missing_is_found_by_the_sample(tmp_path, any_qemu, missing):
    # 60 clusters of data in a disk of 65,536.
    top = build(tmp_path / "a", 60, size=4 << 30)
    wrong = build(tmp_path / "b", 60, size=4 << 30, left_out=[missing])
    image = tmp_path / "a" / "active.qcow2"
    with pytest.raises(AnswerIsNo, match=f"byte {missing * 3 * CLUSTER} of the disk; nothing was switched"):
        compare_stock(any_qemu, image, pointer(top.name), pointer(wrong), content=False)
    with pytest.raises(AnswerIsNo, match=f"byte {missing * 3 * CLUSTER} of the disk; nothing was switched"):
        compare_stock(any_qemu, image, pointer(wrong), pointer(top.name), content=False)
    done = compare_stock(any_qemu, image, pointer(top.name), pointer(tmp_path / "a" / top.name), content=True)
    assert done.content_bytes == 0
    assert done.pieces >= 60


def test_a_byte_that_no_sample_sees_is_found_with_content(tmp_path, any_qemu):
    for name in ("one", "two"):
        write_image(
            tmp_path / name, virtual_size=SIZE, clusters=range(SIZE // CLUSTER),
            data=lambda cluster, name=name: bytes(CLUSTER - 1) + (b"x" if (name, cluster) == ("two", 700) else b"y"),
        )  # fmt: skip
    image = tmp_path / "active.qcow2"
    done = compare_stock(any_qemu, image, pointer("one"), pointer("one"), content=True)
    assert done.sample_bytes == SAMPLE * CLUSTER
    with open_chain(tmp_path / "one") as one, open_chain(tmp_path / "two") as two:
        pieces = choose_sample(Pair(one, two))
    assert all(not start <= 701 * CLUSTER - 1 < start + length for start, length in pieces)
    assert compare_stock(any_qemu, image, pointer("one"), pointer("two"), content=False).pieces == len(pieces)
    seen = []
    with pytest.raises(AnswerIsNo, match=f"byte {701 * CLUSTER - 1} of the disk"):
        compare_stock(any_qemu, image, pointer("one"), pointer("two"), content=True, progress=seen.append)
    assert seen
    assert seen[-1] <= 701 * CLUSTER


def test_a_raw_base_under_every_way_to_name_it(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 3, base_format="raw")
    base = tmp_path / "chain" / "0.raw"
    image = tmp_path / "chain" / "active.qcow2"
    described = {"driver": "raw", "file": {"driver": "file", "filename": str(base)}}
    for name, fmt in (
        *(("0.raw", "raw"), ("0.raw", None), (str(base), "raw"), (f"file:{base}", "raw")),
        *(("json:" + json.dumps(described), "raw"), ("json:" + json.dumps(described), None)),
        ('json:{"file.filename":' + json.dumps(str(base)) + ',"file.driver":"file"}', "raw"),
    ):
        compare_stock(any_qemu, image, pointer("0.raw", "raw"), pointer(name, fmt), content=True)
    with pytest.raises(AnswerIsNo, match="byte 196608 "):  # layer 1's own cluster
        compare_stock(any_qemu, image, pointer(top.name), pointer("0.raw", "raw"), content=False)
    with pytest.raises(AnswerIsNo, match="byte 0 "):  # a qcow2 image read as raw
        compare_stock(any_qemu, image, pointer(top.name), pointer(top.name, "raw"), content=False)


def test_a_pointer_whose_format_nobody_says(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 3)
    image = tmp_path / "chain" / "active.qcow2"
    compare_stock(any_qemu, image, pointer(top.name, None), pointer(top, None), content=True)


@pytest.mark.parametrize("odd", ["a b", "a,b=c", "it's", 'say "so"', "a:b", "ü#%20", "{x}", "-x"])
def test_names_with_every_kind_of_character(tmp_path, any_qemu, odd):
    top = build(tmp_path / odd, 3)
    odd_file = top.with_name(f"{odd}.qcow2")
    top.rename(odd_file)
    image = top.with_name("active.qcow2")
    described = {"driver": "qcow2", "file": {"driver": "file", "filename": str(odd_file)}}
    old = pointer("json:" + json.dumps(described))
    for name in (str(odd_file), f"./{odd_file.name}", f"file:{odd_file}"):
        assert compare_stock(any_qemu, image, old, pointer(name), content=True).pieces
    if ":" in odd:
        # QEMU takes it for a protocol, and so do we, before QEMU is asked.
        with pytest.raises(PolicyError, match="protocol"):
            compare_stock(any_qemu, image, old, pointer(odd_file.name), content=False)
    else:
        compare_stock(any_qemu, image, old, pointer(odd_file.name), content=True)


def test_a_json_name_that_overrides_the_backing_file_is_taken_at_its_word(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 4)
    image = tmp_path / "chain" / "active.qcow2"

    def named(number, **more):
        file = {"driver": "file", "filename": str(tmp_path / "chain" / f"{number}.qcow2")}
        return {"driver": "qcow2", "file": file, **more}

    alone = pointer("json:" + json.dumps(named(3, backing=None)))
    compare_stock(any_qemu, image, alone, alone, content=True)
    with pytest.raises(AnswerIsNo, match="byte 0 "):
        compare_stock(any_qemu, image, pointer(top.name), alone, content=False)
    # Layer 2 left out by a nested name; then nothing left out, but said.
    short = pointer("json:" + json.dumps(named(3, backing=named(1))))
    with pytest.raises(AnswerIsNo, match=f"byte {6 * CLUSTER} "):
        compare_stock(any_qemu, image, pointer(top.name), short, content=False)
    whole = pointer("json:" + json.dumps(named(3, backing=named(2))))
    compare_stock(any_qemu, image, pointer(top.name), whole, content=True)


def test_a_relative_name_is_relative_to_the_images_own_directory(tmp_path, any_qemu, monkeypatch):
    top = build(tmp_path / "real" / "deep", 3)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    shutil.copy(top, tmp_path / "real" / "top")
    subprocess.run(
        ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "deep/1.qcow2", "-F", "qcow2", tmp_path / "real" / "top"],
        check=True,
    )
    # ".." is the parent of what the link leads to.
    compare_stock(any_qemu, tmp_path / "link" / "active", pointer(top.name), pointer("../top"), content=True)
    monkeypatch.chdir(tmp_path / "link")
    compare_stock(any_qemu, Path("active"), pointer(top.name), pointer("../top"), content=True)


def test_a_relative_name_too_long_for_a_header_once_it_is_absolute(tmp_path, any_qemu):
    deep = tmp_path
    for _ in range(4):
        deep = deep / ("d" * 240)
    top = build(deep, 3)
    name = "./" * 100 + top.name
    assert len(str(deep)) + len(name) > 1023
    compare_stock(any_qemu, deep / "active", pointer(top), pointer(name), content=True)


def loop_devices(path):
    done = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True)
    if done.returncode != 0:
        missing("loop", done.stderr.strip())
    return done.stdout.strip()


@pytest.mark.needs("root")
def test_layers_on_block_devices(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 3)
    image = tmp_path / "chain" / "active.qcow2"
    copy = tmp_path / "chain" / "copy"
    shutil.copy(top, copy)
    os.truncate(copy, 1 << 20)
    device = loop_devices(copy)
    try:
        subprocess.run(
            ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", tmp_path / "chain" / "1.qcow2", "-F", "qcow2", device],
            check=True,
        )
        done = compare_stock(any_qemu, image, pointer(top.name), pointer(device), content=True)
        assert done.content_bytes == CLUSTER
        assert backing_target(image, device, "qcow2").options["file"]["driver"] == "host_device"
        compare_stock(any_qemu, image, pointer(device, "raw"), pointer("copy", "raw"), content=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_what_cannot_be_opened_is_the_old_sides_fault_or_the_new_ones(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 3)
    image = tmp_path / "chain" / "active.qcow2"
    broken = tmp_path / "chain" / "broken"
    write_image(broken, virtual_size=SIZE, clusters=[0], data=b"x" * CLUSTER)
    with broken.open("r+b") as file:
        # No refcount table: of no interest to a reader, and QEMU refuses it.
        file.seek(56)
        file.write(bytes(4))
    with pytest.raises(ImageError, match="what it stands on cannot be read by QEMU as it is: ") as old:
        compare_stock(any_qemu, image, pointer("broken"), pointer(top.name), content=False)
    assert old.value.path == str(image)
    assert old.value.exit_status == 2
    with pytest.raises(QemuError, match="what it would stand on cannot be opened by QEMU: ") as new:
        compare_stock(any_qemu, image, pointer(top.name), pointer("broken"), content=False)
    assert new.value.exit_status == 3
    said = why_not_open(any_qemu, image, pointer("broken"))
    assert said is not None
    assert said.count("Could not open backing file") == 0
    assert old.value.what.endswith(said)
    assert new.value.what.endswith(said)
    assert why_not_open(any_qemu, image, pointer(top.name)) is None


def test_layers_that_a_running_qemu_reads_and_that_it_writes(tmp_path, any_qemu):
    top = build(tmp_path / "chain", 3)
    image = tmp_path / "chain" / "active.qcow2"
    write_image(image, virtual_size=SIZE, backing_file=top.name, backing_format="qcow2")
    for opened, allowed in ((image, True), (top, False)):
        argv = any_qemu.command("io", "-f", "qcow2", str(opened))
        environment = {**os.environ, **any_qemu.environment}
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as running:
            running.stdin.write(b"read 0 512\n")
            running.stdin.flush()
            running.stdout.readline()  # it has opened the image
            try:
                if allowed:
                    compare_stock(any_qemu, image, pointer(top.name), pointer(top), content=True)
                else:
                    with pytest.raises(ImageError, match="lock"):
                        compare_stock(any_qemu, image, pointer(top.name), pointer(top), content=True)
            finally:
                running.stdin.close()
                running.wait()


def test_a_chain_that_would_overflow_qemus_stack_is_read_by_ourselves(tmp_path, host_daemon, monkeypatch):
    top = build(tmp_path / "a", 12)
    wrong = build(tmp_path / "b", 12, left_out=[7])
    image = tmp_path / "a" / "active.qcow2"
    monkeypatch.setattr(stock, "MOST_LAYERS", 11)
    same = compare_stock(host_daemon, image, pointer(top.name), pointer(top), content=True)
    assert (same.old_by_stock, same.new_by_stock) == (False, False)
    for content_too in (False, True):
        with pytest.raises(AnswerIsNo, match=f"byte {21 * CLUSTER} "):
            compare_stock(host_daemon, image, pointer(top.name), pointer(wrong), content=content_too)


def test_disks_of_other_sizes_and_one_without_content(tmp_path, any_qemu):
    write_image(tmp_path / "short", virtual_size=CLUSTER + 512)
    write_image(tmp_path / "long", virtual_size=SIZE)
    write_image(tmp_path / "tail", virtual_size=SIZE, clusters=[SIZE // CLUSTER - 1], data=bytes(CLUSTER - 1) + b"x")
    image = tmp_path / "active"
    compare_stock(any_qemu, image, pointer("short"), pointer("long"), content=True)
    compare_stock(any_qemu, image, pointer("long"), pointer("short"), content=True)
    with pytest.raises(AnswerIsNo, match=f"byte {SIZE - 1} "):
        compare_stock(any_qemu, image, pointer("short"), pointer("tail"), content=False)


def test_a_daemon_that_dies_says_so(tmp_path, host_daemon, monkeypatch):
    directory = tmp_path / "deep"
    directory.mkdir()
    name = None
    for number in range(1300):
        write_image(
            directory / str(number), virtual_size=1 << 20, clusters=[] if name else [0], data=None,
            backing_file=name, backing_format=name and "qcow2",
        )  # fmt: skip
        name = str(number)
    image = directory / "active"
    monkeypatch.setattr(stock, "MOST_LAYERS", 10_000)
    with pytest.raises(QemuCrashed, match="SIGSEGV"):
        compare_stock(host_daemon, image, pointer("0"), pointer(name), content=False)
    with pytest.raises(ImageError, match=r"as it is: QEMU ended during a read: .*SIGSEGV"):
        compare_stock(host_daemon, image, pointer(name), pointer("0"), content=False)
    monkeypatch.undo()
    done = compare_stock(host_daemon, image, pointer(name), pointer("0"), content=True)
    assert (done.old_by_stock, done.new_by_stock) == (False, True)
