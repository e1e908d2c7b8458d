"""Images that are renamed, moved, linked or named in other ways: what a lift is of says its pointer, never its name."""

import os
import shutil

import pytest
from tests.support.stock import backing_name, create, everything, img, make_pool, opens, read, write

pytestmark = pytest.mark.integration


@pytest.fixture(params=["index", "squash"])
def kind(request):
    return request.param


def renamed(verb, kind, directory):
    """A lifted disk that was renamed; a new one stands on it and has its old name."""
    *_, disk = make_pool(directory, "base", "one", "disk")
    assert verb(kind, disk).status == 0
    snapshot = disk.rename(directory / "snapshot")
    create(disk, snapshot)
    write(disk, 9, "1M")
    return disk, snapshot


def test_an_image_that_took_the_name_of_a_lifted_one_is_not_lifted(verb, kind, tmp_path):
    disk, snapshot = renamed(verb, kind, tmp_path)
    before, files = (read(disk), read(snapshot)), everything(tmp_path)
    said = verb("restore", "--clean", disk)
    # Its chain has a lift, in the image under it; either that is taken out, or it is said that this one is not lifted.
    assert (read(disk), read(snapshot)) == before
    assert backing_name(disk) == "snapshot"
    if said.status == 0:
        assert backing_name(snapshot) == "one"
    else:
        assert said.status == 2
        assert "is not lifted" in said.err
        assert everything(tmp_path) == files


def test_a_renamed_image_is_restored_by_its_new_name(verb, kind, tmp_path):
    _, snapshot = renamed(verb, kind, tmp_path)
    before = read(snapshot)
    assert verb("restore", snapshot).status == 0
    assert backing_name(snapshot) == "one"
    assert read(snapshot) == before


def test_the_way_back_of_a_renamed_image_outlives_lifts_of_its_successor(verb, kind, tmp_path):
    disk, snapshot = renamed(verb, kind, tmp_path)
    before = read(disk), read(snapshot)
    assert verb(kind, disk).status == 0
    lift = disk.with_name("disk.lift") / ("index-2.vmdk" if kind == "index" else "squash-2.qcow2")
    assert verb("restore", "--lift", lift, disk).status == 0
    assert backing_name(disk) == "snapshot"
    assert backing_name(snapshot) != "one"
    assert verb("restore", snapshot).status == 0
    assert backing_name(snapshot) == "one"
    assert (read(disk), read(snapshot)) == before


def test_restore_takes_out_the_lifts_of_all_images_of_the_chain(verb, kind, tmp_path):
    disk, snapshot = renamed(verb, kind, tmp_path)
    before = read(disk), read(snapshot)
    assert verb(kind, disk).status == 0
    said = verb("restore", "--dry-run", disk)
    assert said.status == 0
    assert said.out.count("would stand") == 2
    assert backing_name(disk) != "snapshot"
    assert verb("restore", disk).status == 0
    assert (backing_name(disk), backing_name(snapshot)) == ("snapshot", "one")
    assert (read(disk), read(snapshot)) == before
    assert (backing_name(disk), backing_name(snapshot)) == ("snapshot", "one")


def test_cleaning_never_takes_a_lift_that_a_renamed_image_stands_on(verb, kind, tmp_path):
    disk, snapshot = renamed(verb, kind, tmp_path)
    before = read(disk), read(snapshot)
    assert verb(kind, disk).status == 0
    assert verb("restore", "--clean", disk).status in (0, 2)
    assert (read(disk), read(snapshot)) == before


def test_two_images_that_swapped_names_are_restored_each_to_its_own(verb, kind, tmp_path):
    _, one, two = make_pool(tmp_path, "base", "one", "two")
    other = create(tmp_path / "three", one)
    write(other, 7, "2M")
    assert verb(kind, two).status == 0
    before = read(two), read(other)
    two.rename(tmp_path / "aside")
    other.rename(two)
    (tmp_path / "aside").rename(other)
    files = everything(tmp_path)
    said = verb("restore", two)
    assert said.status == 2, said
    assert everything(tmp_path) == files
    assert (read(other), read(two)) == before


def test_a_hard_link_is_as_good_a_name_as_the_first(verb, kind, tmp_path):
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    assert verb(kind, disk).status == 0
    before = read(disk)
    link = tmp_path / "link"
    os.link(disk, link)
    disk.unlink()
    assert verb("restore", link).status == 0
    assert backing_name(link) == "one"
    assert read(link) == before


def test_a_directory_that_was_moved_with_everything_in_it_is_restored(verb, tmp_path):
    *_, disk = make_pool(tmp_path / "pool", "base", "one", "disk")
    before = read(disk)
    assert verb("squash", disk).status == 0
    (tmp_path / "pool").rename(tmp_path / "moved")
    disk = tmp_path / "moved/disk"
    assert read(disk) == before
    assert verb("restore", "--clean", disk).status == 0
    assert backing_name(disk) == "one"
    assert read(disk) == before


def test_a_copy_of_a_directory_is_restored_by_itself(verb, kind, tmp_path):
    *_, disk = make_pool(tmp_path / "pool", "base", "one", "disk")
    assert verb(kind, disk).status == 0
    before = read(disk)
    shutil.copytree(tmp_path / "pool", tmp_path / "copy", symlinks=True)
    files = everything(tmp_path / "pool")
    said = verb("restore", tmp_path / "copy/disk")
    assert said.status in (0, 2), said
    assert everything(tmp_path / "pool") == files
    assert read(tmp_path / "copy/disk") == before
    assert read(disk) == before


def opennebula(directory):
    """Images in a directory that is a link to itself, and the disk a link to one of them; names go over both."""
    (directory / "snap").mkdir()
    (directory / "snap/snap").symlink_to(".")
    for number in range(3):
        path = directory / f"snap/{number}"
        if number:
            img("create", "-q", "-u", "-f", "qcow2", "-b", f"snap/{number - 1}", "-F", "qcow2", path, "4M")
        else:
            create(path)
        write(path, number + 1, number << 18, "384k")
    disk = directory / "disk.0"
    disk.symlink_to("snap/2")
    return disk


@pytest.mark.parametrize("name", ["disk.0", "snap/2"])
def test_a_disk_that_is_a_link_opens_from_both_sides_after_a_lift(verb, kind, name, tmp_path):
    disk = opennebula(tmp_path)
    before = read(disk)
    said = verb(kind, tmp_path / name)
    assert read(disk) == before
    assert read(tmp_path / "snap/2") == before
    assert said.status == 0, said
    assert verb("restore", "--clean", tmp_path / name).status == 0
    assert read(disk) == before
    assert disk.is_symlink()


def test_an_image_behind_a_link_keeps_reading_the_same_through_the_link(verb, tmp_path):
    *_, disk = make_pool(tmp_path / "pool", "base", "one", "disk")
    link = tmp_path / "disk"
    link.symlink_to("pool/disk")
    # By its link the image's relative name leads nowhere: whoever uses the link has never been able to open it.
    assert not opens(link)
    before = read(disk)
    assert verb("squash", disk).status in (0, 2)
    assert read(disk) == before


def test_a_json_name_that_takes_the_backing_file_away_is_followed(verb, kind, tmp_path):
    _, one = make_pool(tmp_path, "base", "one")
    options = f'{{"driver":"qcow2","file":{{"driver":"file","filename":"{one}"}},"backing":null}}'
    two, three = tmp_path / "two", tmp_path / "three"
    img("create", "-q", "-u", "-f", "qcow2", "-b", f"json:{options}", "-F", "qcow2", two, "4M")
    create(three, two)
    before, files = read(three), everything(tmp_path)
    assert before[:4096] == bytes(4096)  # what the base has there is not seen
    said = verb(kind, three)
    assert read(three) == before
    assert said.status == 0 or (said.status == 2 and everything(tmp_path) == files), said


def test_a_json_name_that_puts_another_backing_file_under_an_image_is_followed(verb, kind, tmp_path):
    base, one = make_pool(tmp_path, "base", "one")
    other = create(tmp_path / "other")
    write(other, 77, 0, "4M")
    inner = f'"driver":"qcow2","file.driver":"file","file.filename":"{other}"'
    options = f'{{"driver":"qcow2","file.driver":"file","file.filename":"{one}","backing":{{{inner}}}}}'
    two, three = tmp_path / "two", tmp_path / "three"
    img("create", "-q", "-u", "-f", "qcow2", "-b", f"json:{options}", "-F", "qcow2", two, "4M")
    create(three, two)
    before, files = read(three), everything(tmp_path)
    assert before != read(one)
    said = verb(kind, three)
    assert read(three) == before
    assert said.status == 0 or (said.status == 2 and everything(tmp_path) == files), said
    assert read(base)[:4096] == b"\1" * 4096
