"""Where a flattened image goes: new files, files that are replaced, block devices."""

import os
import subprocess
from contextlib import contextmanager

import pytest
from tests.support.chains import make_chain, plain_chain
from tests.support.mounts import in_memory
from tests.support.need import missing

from chainlift.cli.main import main
from chainlift.errors import ImageError, UnknownStateError
from chainlift.lift.flatten import flatten
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

MIB = 1 << 20
HOW = {"qcow2": {}, "raw": {"file_format": "raw"}, "zlib": {"compress": "zlib"}, "zstd": {"compress": "zstd"}}


@pytest.fixture
def loop(tmp_path):
    """Makes loop devices over files full of rubbish, or over given ones."""
    made = []

    def make(size=None, file=None):
        if file is None:
            file = tmp_path / f"disk{len(made)}"
            file.write_bytes(os.urandom(MIB) * (size // MIB))
        done = subprocess.run(["losetup", "--show", "-f", file], capture_output=True, text=True)
        if done.returncode:
            missing("loop", done.stderr.strip())
        made.append(done.stdout.strip())
        return tmp_path.__class__(made[-1])

    yield make
    for device in made:
        subprocess.run(["losetup", "-d", device], check=True)


def refused(image, out, match, **how):
    with pytest.raises(ImageError, match=match):
        flatten(image, out, overwrite=True, **how)


@pytest.fixture
def umask():
    before = os.umask(0)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o400, 0o777])
@pytest.mark.parametrize("mask", [0, 0o077])
@pytest.mark.parametrize("how", ["qcow2", "raw"])
def test_the_result_has_the_owner_and_the_mode_of_the_image(tmp_path, umask, mode, mask, how):
    image, out = plain_chain(tmp_path / "c", length=2), tmp_path / "out"
    if os.geteuid() == 0:
        os.chown(image, 1234, 5678)
    image.chmod(mode)
    umask(mask)
    flatten(image, out, **HOW[how])
    found, wanted = out.stat(), image.stat()
    assert (found.st_uid, found.st_gid, oct(found.st_mode & 0o7777)) == (
        wanted.st_uid, wanted.st_gid, oct(mode & 0o666)
    )  # fmt: skip


def test_an_access_list_is_followed(tmp_path, umask):
    image, out = plain_chain(tmp_path / "c", length=2), tmp_path / "out"
    image.chmod(0o600)
    if subprocess.run(["setfacl", "-m", "u:1234:r", image], capture_output=True).returncode:
        missing("acl")
    flatten(image, out)
    lists = [subprocess.run(["getfacl", "-cpn", path], capture_output=True, text=True).stdout for path in (image, out)]
    assert lists[0] == lists[1] != ""


@pytest.mark.parametrize("how", HOW)
def test_a_file_is_replaced_when_asked(tmp_path, same, how):
    image, out = plain_chain(tmp_path / "c"), tmp_path / "out"
    out.write_text("something of value")
    with pytest.raises(ImageError, match="exists; choose another name, or give --overwrite"):
        flatten(image, out, **HOW[how])
    assert out.read_text() == "something of value"
    (tmp_path / "link").symlink_to("out")
    flatten(image, tmp_path / "link", overwrite=True, **HOW[how])
    assert (tmp_path / "link").is_symlink()
    assert same(image, out)
    flatten(image, tmp_path / "new", overwrite=True, **HOW[how])
    assert same(image, tmp_path / "new")
    assert not list(tmp_path.glob("*.new"))


def test_what_must_not_be_written_over_stays(tmp_path, host_qemu, contents):
    image = plain_chain(tmp_path / "c", length=4)
    layer = tmp_path / "c/layer2.qcow2"
    (tmp_path / "hard").hardlink_to(layer)
    (tmp_path / "soft").symlink_to(layer)
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "other").mkdir()
    used = tmp_path / "other/used"
    write_image(used, virtual_size=MIB)
    write_image(tmp_path / "other/user", virtual_size=MIB, backing_file="used", backing_format="qcow2")
    before = contents(tmp_path)
    for out in (image, layer, tmp_path / "hard", tmp_path / "soft"):
        refused(image, out, "the chain reads")
    refused(image, used, "other/user stands on it")
    refused(image, tmp_path / "nothing", "cannot be looked at")
    refused(image, tmp_path / "other", "neither a regular file nor")
    assert contents(tmp_path) == before


def test_a_file_that_a_qemu_has_open_is_not_replaced(tmp_path, host_qemu, contents):
    image, out = plain_chain(tmp_path / "c", length=3), tmp_path / "vm.qcow2"
    write_image(out, virtual_size=MIB)
    before = contents(tmp_path)
    with held(host_qemu, out):
        refused(image, out, "is open in qemu-io")
    assert contents(tmp_path) == before


@contextmanager
def held(qemu, image):
    """A QEMU that has an image open."""
    command = qemu.command("io", "-r", str(image))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write("length\n")
        process.stdin.flush()
        assert "1 MiB" in process.stdout.readline()
        yield
        process.communicate("quit\n", timeout=120)


def test_a_file_that_cannot_be_written_is_as_before(tmp_path, small_disk):
    image, out = plain_chain(tmp_path / "c"), small_disk / "out"
    out.write_text("something of value")
    with pytest.raises(ImageError, match="are free"):
        flatten(image, out, overwrite=True)
    assert out.read_text() == "something of value"
    assert [path.name for path in small_disk.iterdir()] == ["out"]


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    with in_memory(place, "1m"):
        yield place


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.needs("root")
def test_a_device_gets_the_image_and_keeps_what_is_behind_it(
    tmp_path, same, reference, loop, tool, host_qemu, seed, how
):
    image = make_chain(tmp_path / "c", seed)
    raw = reference(image, tmp_path / "raw").read_bytes()
    device = loop(16 * MIB)
    before = device.read_bytes()
    done = flatten(image, device, overwrite=True, **HOW[how])
    drop_cache(device)
    after = device.read_bytes()
    assert after[done.file_bytes :] == before[done.file_bytes :]
    if how == "raw":
        assert after[: len(raw)] == raw
        return
    copy = tmp_path / "copy"
    copy.write_bytes(after)
    assert same(copy, tmp_path / "raw")
    status, said = tool(host_qemu, "img", "check", "-f", "qcow2", device)
    assert status == 0, said


def drop_cache(device):
    subprocess.run(["blockdev", "--flushbufs", device], check=True)


@pytest.mark.needs("root")
def test_a_device_that_is_there_needs_to_be_asked_for(tmp_path, loop):
    image, device = plain_chain(tmp_path / "c", length=2), loop(8 * MIB)
    before = device.read_bytes()
    with pytest.raises(ImageError, match="exists"):
        flatten(image, device, file_format="raw")
    assert device.read_bytes() == before


@pytest.mark.parametrize("how", HOW)
@pytest.mark.needs("root")
def test_a_device_that_is_too_small_is_refused(tmp_path, loop, how):
    image, device = plain_chain(tmp_path / "c"), loop(2 * MIB)
    before = device.read_bytes()
    refused(image, device, "has 2.00 MiB, and up to .* are needed", **HOW[how])
    assert device.read_bytes() == before


@pytest.mark.needs("root")
def test_a_device_that_somebody_has_is_refused(tmp_path, loop, host_qemu):
    image, device = plain_chain(tmp_path / "c", length=2), loop(16 * MIB)
    with device.open("rb"):
        pass  # our own descriptors are no other process's
    with subprocess.Popen(["sleep", "60"], stdin=device.open("rb")) as sleeping:
        refused(image, device, r"is open in sleep \(process")
        sleeping.kill()
    # Who only looks, as udev and losetup do, is waited for.
    with subprocess.Popen(["sleep", "0.2"], stdin=device.open("rb")):
        flatten(image, device, overwrite=True)
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", device, place], check=True)
    try:
        refused(image, device, "is mounted")
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.needs("root")
def test_a_device_that_the_chain_reads_is_refused(tmp_path, loop, tool, host_qemu):
    base = loop(16 * MIB)
    write_image(tmp_path / "base", virtual_size=8 * MIB, clusters=[0, 1], data=b"b" * 131072)
    flatten(tmp_path / "base", base, overwrite=True)
    write_image(tmp_path / "top", virtual_size=8 * MIB, backing_file=str(base), backing_format="qcow2")
    # The layer is the device; the file behind the device; a device over the device.
    before = base.read_bytes()
    refused(tmp_path / "top", base, "the chain reads")
    refused(tmp_path / "top", loop(file=base), "the chain reads")
    write_image(tmp_path / "file", virtual_size=8 * MIB, clusters=[3], data=b"f" * 65536)
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(16 * MIB)
    write_image(tmp_path / "over", virtual_size=8 * MIB, backing_file="file", backing_format="qcow2")
    refused(tmp_path / "over", loop(file=tmp_path / "file"), "the chain reads .*file from it")
    assert base.read_bytes() == before


@pytest.mark.needs("root")
def test_a_device_that_fails_is_told_with_status_4(tmp_path, small_disk, loop, capsys, contents):
    image = plain_chain(tmp_path / "c")
    with (small_disk / "disk").open("wb") as file:
        file.truncate(64 * MIB)
    device = loop(file=small_disk / "disk")
    before = contents(tmp_path / "c")
    with pytest.raises(UnknownStateError, match="neither what it had before nor the whole image"):
        flatten(image, device, file_format="raw", overwrite=True)
    with pytest.raises(SystemExit) as ended:
        main(["flatten", "--overwrite", str(image), str(device)])
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (4, 1), said
    assert contents(tmp_path / "c") == before


def test_a_raw_image_cannot_be_compressed_and_that_is_found_first(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["flatten", "-O", "raw", "--compress", "zlib", str(tmp_path / "no"), str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "goes with -O qcow2" in capsys.readouterr().err
