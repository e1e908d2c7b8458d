"""Smaller things that people met."""

import shutil
import subprocess

import pytest
from tests.support.stock import create, everything, img, make_pool, opens, read, write

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("kind", ["index", "squash"])
def test_a_middle_layer_that_is_marked_corrupt_is_told(verb, kind, tmp_path):
    _, middle, top = make_pool(tmp_path, "base", "middle", "top")
    with middle.open("r+b") as file:
        file.seek(72)
        bits = int.from_bytes(file.read(8), "big") | 2  # the corrupt bit of the incompatible features
        file.seek(72)
        file.write(bits.to_bytes(8, "big"))
    before, files = read(top), everything(tmp_path)
    said = verb(kind, top)
    assert read(top) == before
    assert "corrupt" in said.err
    if said.status:
        assert everything(tmp_path) == files


@pytest.mark.parametrize("name", ["a:b", "vm:disk-1.qcow2", "file:x", "json:x"])
def test_a_name_with_a_colon_is_one_thing_to_all_verbs(verb, name, tmp_path):
    """QEMU takes what is before a colon for a protocol, ``./`` before it makes it a file."""
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    disk.rename(tmp_path / name)
    before = everything(tmp_path)
    stock = opens_there(tmp_path, name)
    for words in ("inspect", "map", "plan", "index", "squash", "verify", "restore"):
        said = verb(words, name, cwd=tmp_path)
        assert said.status in (0, 1, 2), said
        if not stock and said.status == 2:
            assert everything(tmp_path) == before
    said = verb("index", f"./{name}", cwd=tmp_path)
    assert said.status == 0, said
    assert opens(tmp_path / name)
    assert verb("restore", "--clean", f"./{name}", cwd=tmp_path).status == 0


def opens_there(directory, name):
    done = subprocess.run(["qemu-img", "info", name], cwd=directory, capture_output=True)
    return done.returncode == 0


def test_all_verbs_take_or_refuse_a_plain_name_with_a_colon(verb, tmp_path):
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    disk.rename(tmp_path / "a:b")
    statuses = {words: verb(words, "a:b", cwd=tmp_path).status for words in ("inspect", "map", "plan", "index")}
    assert len({status == 0 for status in statuses.values()}) == 1, statuses


def test_inspect_of_a_broken_chain_shows_what_is_left_and_what_to_do(verb, tmp_path):
    base, _, two, three = make_pool(tmp_path, "base", "one", "two", "three")
    base.rename(tmp_path / "moved")
    said = verb("inspect", three)
    assert "two" in said.out
    assert "one" in said.out
    assert "rebase" in said.out + said.err
    assert not opens(two)


@pytest.mark.parametrize("kind", ["index", "squash"])
def test_an_image_that_lost_its_lift_is_told_the_way_back(verb, kind, tmp_path):
    *_, disk = make_pool(tmp_path, "base", "middle-layer", "disk")
    before = read(disk)
    assert verb(kind, disk).status == 0
    shutil.rmtree(tmp_path / "disk.lift")
    said = verb("restore", disk)
    if said.status == 0:
        assert read(disk) == before
    else:
        assert said.status == 2, said
        assert "rebase" in said.err, said
        assert "middle-layer" in said.err, said
        img("rebase", "-u", "-b", "middle-layer", "-F", "qcow2", disk)
        assert read(disk) == before


def test_a_restore_after_a_layer_changed_never_changes_what_is_read_without_a_word(verb, tmp_path):
    base, one, disk = make_pool(tmp_path, "base", "one", "disk")
    assert verb("squash", disk).status == 0
    write(one, 200, "3M")
    before, files = read(disk), everything(tmp_path)
    said = verb("restore", disk)
    assert said.status == 1, said
    assert "chainlift verify" in said.err
    assert read(disk) == before
    assert everything(tmp_path) == files
    assert base.exists()


@pytest.mark.needs("root")
@pytest.mark.parametrize("words", ["index", "squash", "inspect", "map", "restore", "verify", "plan"])
def test_a_directory_that_may_not_be_entered_is_one_line(verb, words, tmp_path):
    *_, disk = make_pool(tmp_path / "pool", "base", "one", "disk")
    (tmp_path / "pool").chmod(0o700)
    said = verb(words, disk, user=4321)
    assert said.status == 2, said
    assert said.err.count("\n") == 1


def test_flatten_does_not_write_onto_what_exists(verb, tmp_path):
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    other = create(tmp_path / "other")
    files = everything(tmp_path)
    assert verb("flatten", disk, other).status == 2
    assert everything(tmp_path) == files
