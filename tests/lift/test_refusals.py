"""What cannot be lifted is refused with one line and status 2, and nothing is touched."""

import os
import shutil

import pytest
from tests.support import mounts
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index, lift_squash
from tests.support.luks import create_encrypted

from chainlift.cli.main import main
from chainlift.lift.record.lifts import lift_directory
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

VERBS = {
    "index": ["index"], "budget": ["index", "--copy-budget", "1G"], "squash": ["squash"],
    "delete": ["squash", "--delete-layers"], "flatten": ["flatten"], "raw": ["flatten", "-O", "raw"],
}  # fmt: skip


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert ended.value.code == 2, said
    assert said.out == ""
    assert said.err.count("\n") == 1, said
    return said.err


def arguments_of(verb, image):
    return [*VERBS[verb], image, *([image.parent / "out"] if VERBS[verb][0] == "flatten" else [])]


@pytest.fixture
def mounted(tmp_path):
    """A file system of 8 MiB; mounted again with other options by calling it."""
    place = tmp_path / "mounted"
    place.mkdir()

    with mounts.in_memory(place, "8m"):
        yield place, lambda options: mounts.mount(place, "-o", f"remount,{options}")


@pytest.mark.parametrize("verb", VERBS)
def test_a_read_only_file_system(mounted, capsys, contents, verb):
    place, remount = mounted
    image = plain_chain(place / "c", length=3)
    before = contents(place)
    assert remount("ro") == ""
    assert "read-only" in refused(capsys, *arguments_of(verb, image)).replace("cannot be written to", "read-only")
    assert remount("rw") == ""
    assert contents(place) == before
    assert not lift_directory(image).exists()


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("free", [0, 65536, 500_000])
def test_a_full_file_system(mounted, capsys, contents, verb, free):
    place, _ = mounted
    image = plain_chain(place / "c", length=8)
    room = os.statvfs(place)
    with (place / "filler").open("wb") as filler:
        filler.write(bytes(room.f_bavail * room.f_frsize - free))
    before = contents(place)
    assert "are free" in refused(capsys, *arguments_of(verb, image))
    assert contents(place) == before
    assert not lift_directory(image).exists()


def test_restore_and_clean_need_no_room(mounted, host_qemu, contents):
    place, _ = mounted
    image = plain_chain(place / "c", length=3)
    before = contents(place)
    lift_index(image, host_qemu)
    room = os.statvfs(place)
    with (place / "filler").open("wb") as filler:
        filler.write(bytes(room.f_bavail * room.f_frsize))
    with pytest.raises(SystemExit) as ended:
        main(["restore", "--clean", str(image)])
    assert ended.value.code == 0
    (place / "filler").unlink()
    after = contents(place)
    assert {path for path in before if before[path] != after[path]} <= {str(image)}
    assert after.keys() == {*before, f"{image}.lift.json"}


def test_restore_on_a_read_only_file_system(mounted, host_qemu, capsys, contents):
    place, remount = mounted
    image = plain_chain(place / "c", length=3)
    lift_index(image, host_qemu)
    before = contents(place)
    assert remount("ro") == ""
    assert "cannot be written to" in refused(capsys, "restore", image)
    assert contents(place) == before


@pytest.fixture(scope="module", params=["base", "middle", "active"])
def encrypted(tmp_path_factory, request):
    """A chain with LUKS inside qcow2, made by QEMU: at the bottom, between, or as the image itself."""
    directory = tmp_path_factory.mktemp("luks")
    backing = None
    for place, name in (("base", "a.qcow2"), ("middle", "b.qcow2"), ("active", "c.qcow2")):
        path = directory / name
        if place == request.param:
            create_encrypted(path, "-u", *(["-F", "qcow2", "-b", backing] if backing else []))
        else:
            write_image(path, virtual_size=1 << 20, clusters=[0], data=bytes([len(name)]) * 65536,
                        backing_file=backing, backing_format=backing and "qcow2")  # fmt: skip
        backing = name
    return directory


@pytest.mark.parametrize("verb", [*VERBS, "plan"])
def test_encrypted_layers(encrypted, capsys, contents, verb):
    image = encrypted / "c.qcow2"
    before = contents(encrypted)
    words = ["plan", image] if verb == "plan" else arguments_of(verb, image)
    assert "is encrypted (LUKS)" in refused(capsys, *words)
    assert contents(encrypted) == before


@pytest.mark.parametrize("verb", ["verify", "restore"])
def test_an_encrypted_chain_has_no_lift_to_look_at_or_to_undo(encrypted, capsys, contents, verb):
    before = contents(encrypted)
    said = refused(capsys, verb, encrypted / "c.qcow2")
    assert "is encrypted (LUKS)" in said or "is not lifted" in said
    assert contents(encrypted) == before


def test_a_layer_s_data_file_is_deleted_with_it(tmp_path, host_qemu, tool, same, reference):
    base, middle, other, image = (tmp_path / f"{name}.qcow2" for name in ("base", "middle", "other", "top"))
    write_image(base, virtual_size=4 << 20, clusters=[1], data=b"b" * 65536)
    for layer, below in ((middle, base), (other, middle)):
        data_file = f"data_file={layer.with_suffix('.data')}"
        tool(host_qemu, "img", "create", "-q", "-f", "qcow2", "-o", data_file, "-F", "qcow2", "-b", below, layer)
        assert tool(host_qemu, "io", "-f", "qcow2", "-c", "write -q -P 7 64k 300k", layer)[0] == 0
    write_image(image, virtual_size=4 << 20, backing_file=other.name, backing_format="qcow2")
    raw = reference(image, tmp_path / "raw")
    _, deletion = lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert {path.name for path in deletion.data_files} == {"middle.data", "other.data"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.qcow2", "raw", "top.qcow2", "top.qcow2.lift", "top.qcow2.lift.json",
    ]  # fmt: skip
    assert same(image, raw)


def test_a_data_file_that_another_image_uses_keeps_its_layer(tmp_path, host_qemu, tool, same, reference):
    base, middle, image = (tmp_path / f"{name}.qcow2" for name in ("base", "middle", "top"))
    write_image(base, virtual_size=4 << 20, clusters=[1], data=b"b" * 65536)
    data_file = f"data_file={tmp_path}/middle.data"
    tool(host_qemu, "img", "create", "-q", "-f", "qcow2", "-o", data_file, "-F", "qcow2", "-b", base, middle)
    tool(host_qemu, "io", "-f", "qcow2", "-c", "write -q -P 7 64k 300k", middle)
    write_image(image, virtual_size=4 << 20, backing_file=middle.name, backing_format="qcow2")
    shutil.copy(middle, tmp_path / "elsewhere.qcow2")
    _, deletion = lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert deletion.deletable == []
    why = f"its data file is kept: {tmp_path}/elsewhere.qcow2 has its data in it"
    assert [kept.why for kept in deletion.kept] == [why]
    assert (tmp_path / "middle.data").exists()
