"""A lift is found through what an image's header names: whatever the image, its links and directories are called."""

import os
import shutil
from pathlib import Path

import pytest
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift
from tests.support.stock import everything, img, opens

from chainlift.chain import open_chain
from chainlift.errors import AnswerIsNo, ImageError
from chainlift.lift.record.lifts import find_lift, lift_directory
from chainlift.lift.record.note import note_path, read_note
from chainlift.lift.record.pointer import led_to, read_pointer

pytestmark = pytest.mark.integration


def renamed(image):
    return image.rename(image.with_name("renamed.qcow2"))


def hard_linked(image):
    link = image.with_name("linked.qcow2")
    os.link(image, link)
    return link


def hard_linked_and_unlinked(image):
    link = hard_linked(image)
    image.unlink()
    return link


def copied(image):
    return shutil.copy(image, image.with_name("copy.qcow2"))


def symbolically_linked(image):
    link = image.with_name("link.qcow2")
    link.symlink_to(image.name)
    return link


def moved_together(image):
    return image.parent.rename(image.parent.with_name("moved")) / image.name


def copied_together(image):
    return shutil.copytree(image.parent, image.parent.with_name("copied")) / image.name


WAYS = [renamed, hard_linked, hard_linked_and_unlinked, copied, symbolically_linked, moved_together, copied_together]
#: The recorded layers are no more where they were.
LAYERS_ARE_GONE = [moved_together]


@pytest.fixture(params=[lift_index, lift_squash])
def lift(request):
    return request.param


@pytest.fixture(params=WAYS)
def found_as(request):
    return request.param


@pytest.fixture
def lifted(tmp_path, host_qemu, reference, lift, found_as):
    """A lifted image as it is called now, and what it read."""
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    lift(image, host_qemu)
    return found_as(image), raw


def test_it_is_verified(lifted, found_as):
    manifest, findings = verify_lift(lifted[0], content=True)
    assert manifest.layers
    assert {finding.what for finding in findings} == ({"is gone"} if found_as in LAYERS_ARE_GONE else set())


def test_it_is_restored(lifted, found_as, host_qemu, same):
    image, raw = lifted
    restored = restore_lift(image, host_qemu)
    (found,) = restored.found
    # Moved, they are the very files that were recorded; with copies, every byte was compared. An index's name leads
    # from a copied image to the index of the original.
    is_copy = found_as is copied_together and found.lift.manifest.kind == "squash"
    assert found.is_certain != is_copy
    assert same(image, raw)
    with open_chain(image) as chain:
        assert chain.length == 4
        homes = {Path(layer.path).resolve().parent for layer in chain.layers[1:]}
        assert homes == {image.parent if found_as is not copied_together or is_copy else image.parent.with_name("c")}
    with pytest.raises(ImageError, match="is not lifted"):
        restore_lift(image, host_qemu)


def test_it_is_lifted_again(lifted, host_qemu, same):
    image, raw = lifted
    manifest = lift_index(image, host_qemu)
    assert manifest.original.name.endswith("layer3.qcow2")
    assert same(image, raw)
    assert verify_lift(image, content=True)[1] == []
    restore_lift(image, host_qemu)
    assert same(image, raw)


def test_a_copy_whose_layers_are_others_is_not_restored(tmp_path, host_qemu, same, reference):
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    lift_squash(image, host_qemu)
    copy = copied_together(image)
    plain_chain(tmp_path / "others", length=2)
    for name in ("layer1.qcow2", "layer2.qcow2"):
        shutil.copy(tmp_path / "others" / name, copy.with_name(name))
    shutil.copy(copy.with_name("layer2.qcow2"), copy.with_name("layer3.qcow2"))
    files = everything(tmp_path)
    with pytest.raises(AnswerIsNo, match=r"reads differently at byte \d+ .*chainlift verify says which"):
        restore_lift(copy, host_qemu)
    assert everything(tmp_path) == files
    assert same(image, raw)


@pytest.mark.parametrize("what", ["directory", "record"])
def test_the_way_back_is_told_where_the_lift_or_its_record_is_gone(tmp_path, host_qemu, same, reference, lift, what):
    image = plain_chain(tmp_path / "c")
    raw = reference(image, tmp_path / "raw")
    lift(image, host_qemu)
    directory = lift_directory(image)
    if what == "directory":
        shutil.rmtree(directory)
    else:
        next(directory.glob("*.json")).unlink()
    assert list(read_note(directory)) == [led_to(image, read_pointer(image)[1]).name]
    is_a_layer = what == "record" and lift is lift_squash
    for verb in (verify_lift, lambda path: restore_lift(path, host_qemu)):
        with pytest.raises(ImageError) as refused:
            verb(image)
        if not is_a_layer:
            assert "what it named before: qemu-img rebase -u -F qcow2 -b layer3.qcow2" in str(refused.value)
    if not is_a_layer:
        img("rebase", "-u", "-F", "qcow2", "-b", "layer3.qcow2", image)
    assert opens(image)
    assert same(image, raw)


def test_a_record_of_another_file_is_not_taken(tmp_path, host_qemu):
    image = plain_chain(tmp_path / "c")
    lift_index(image, host_qemu)
    directory = lift_directory(image)
    pointer = read_pointer(image)[1]
    assert find_lift(image, pointer).record == directory / "index-1.json"
    (directory / "index-1.json").rename(directory / "index-2.json")
    with pytest.raises(ImageError, match="stands on a lift whose record is gone"):
        find_lift(image, pointer)


def test_a_file_in_the_place_of_the_note_is_refused_before_anything_is_left(tmp_path, host_qemu, contents):
    image = plain_chain(tmp_path / "c")
    note_path(lift_directory(image)).write_text("[1]")
    before = contents(tmp_path)
    with pytest.raises(ImageError, match="is no note of chainlift"):
        lift_index(image, host_qemu)
    assert contents(tmp_path) == before
    assert not lift_directory(image).exists()
