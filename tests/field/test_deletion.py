"""Layers that somebody else still needs are kept by --delete-layers, and the line says so."""

import os

import pytest
from tests.support.running import Running
from tests.support.stock import create, img, make_pool, read, write

pytestmark = pytest.mark.integration


def test_a_layer_with_an_internal_snapshot_is_kept_and_named(verb, tmp_path):
    _, middle = make_pool(tmp_path, "base", "middle")
    write(middle, 7, "1M")
    img("snapshot", "-c", "before-upgrade", middle)
    write(middle, 8, "1M")
    top = create(tmp_path / "top", middle)
    before = read(top)
    said = verb("squash", "--delete-layers", top)
    assert read(top) == before
    assert middle.exists()
    assert "before-upgrade" in img("snapshot", "-l", middle)
    assert "middle" in said.err
    assert "snapshot" in said.err


def test_bitmaps_of_a_layer_live_on_or_the_layer_does(verb, tmp_path):
    _, middle = make_pool(tmp_path, "base", "middle")
    img("bitmap", "--add", middle, "checkpoint")
    top = create(tmp_path / "top", middle)
    said = verb("squash", "--delete-layers", top)
    carriers = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert any("checkpoint" in img("info", path) for path in carriers), said


@pytest.mark.parametrize("emulator", [False, True], ids=["storage-daemon", "emulator"])
def test_layers_that_a_clone_elsewhere_has_open_are_kept(verb, tmp_path, emulator):
    _, golden, first = make_pool(tmp_path / "pool", "base", "golden", "first")
    (tmp_path / "clones").mkdir()
    second = create(tmp_path / "clones/second", golden, named=str(golden))
    before = read(second)
    with Running(second, emulator=emulator):
        said = verb("squash", "--delete-layers", first)
        assert golden.exists(), said
        assert "golden" in said.err
    assert read(second) == before


def test_where_was_searched_is_said_before_a_deletion(verb, tmp_path):
    *_, top = make_pool(tmp_path / "pool", "base", "middle", "top")
    (tmp_path / "others").mkdir()
    said = verb("squash", "--delete-layers", "--search", tmp_path / "others", top)
    assert said.status == 0
    assert str(tmp_path / "pool") in said.out + said.err
    assert str(tmp_path / "others") in said.out + said.err


def test_a_clone_in_a_directory_that_is_searched_keeps_its_layers(verb, tmp_path):
    _, golden, first = make_pool(tmp_path / "pool", "base", "golden", "first")
    (tmp_path / "clones").mkdir()
    second = create(tmp_path / "clones/second", golden, named=str(golden))
    before = read(second)
    said = verb("squash", "--delete-layers", "--search", tmp_path / "clones", first)
    assert said.status == 0
    assert read(second) == before
    assert "golden" in said.err


def test_a_clone_below_the_images_directory_keeps_its_layers(verb, tmp_path):
    _, golden, first = make_pool(tmp_path, "base", "golden", "first")
    (tmp_path / "clones").mkdir()
    second = create(tmp_path / "clones/second", golden)
    before = read(second)
    verb("squash", "--delete-layers", first)
    assert read(second) == before


def test_a_clone_that_names_a_layer_by_a_link_keeps_it(verb, tmp_path):
    _, golden, first = make_pool(tmp_path, "base", "golden", "first")
    (tmp_path / "link").symlink_to("golden")
    second = create(tmp_path / "second", "link", named="link")
    before = read(second)
    assert verb("squash", "--delete-layers", first).status in (0, 2)
    assert read(second) == before
    assert golden.exists()


def test_a_clone_of_a_hard_linked_layer_keeps_reading(verb, tmp_path):
    _, golden, first = make_pool(tmp_path, "base", "golden", "first")
    os.link(golden, tmp_path / "other name")
    second = create(tmp_path / "second", "other name", named="other name")
    before = read(second)
    assert verb("squash", "--delete-layers", first).status in (0, 2)
    assert read(second) == before


def test_a_stray_file_with_the_magic_does_not_block_a_deletion(verb, tmp_path):
    _, middle, top = make_pool(tmp_path, "base", "middle", "top")
    (tmp_path / "stray").write_bytes(b"QFI\xfb\0\0\0\3")
    said = verb("squash", "--delete-layers", top)
    assert said.status == 0, said
    assert not middle.exists()


def test_after_a_deletion_verify_does_not_advise_a_restore(verb, tmp_path):
    base, _, top = make_pool(tmp_path, "base", "middle", "top")
    assert verb("squash", "--delete-layers", top).status == 0
    write(base, 50, 0)
    said = verb("verify", top)
    assert said.status == 1, said
    assert "restore" not in said.err
