"""What the verbs of lifts at rest say, on standard output and beside it, and how they end."""

import json

import pytest
from tests.support.chains import plain_chain
from tests.support.json_schemas import valid
from tests.support.stock import backing_name, create, everything, read, write

pytestmark = pytest.mark.integration


def test_a_lift_and_its_end(tmp_path, said):
    image = plain_chain(tmp_path / "c")
    before, files = read(image), everything(tmp_path)
    lift = f"{image}.lift"
    status, out, err = said("index", "--content", image)
    assert (status, err) == (0, "")
    assert out == f"{image}: an index of 5 extents over 4 layers (4 can be seen), 0 B copied\n"
    status, out, err = said("verify", "--content", image)
    assert (status, err) == (0, "")
    assert out == f"{image}: its index is true: 4 layers are as they were, and every byte is the same\n"
    assert said("restore", "--dry-run", image) == (
        0, f"{image}: would stand on layer3.qcow2 again, not on {lift}/index-1.vmdk\n", "",
    )  # fmt: skip
    status, out, err = said("squash", image)
    assert status == 0
    assert err == f"chainlift: {lift}/index-1.vmdk is not needed any more by this image; --clean removes it\n"
    status, out, err = said("restore", "--clean", image)
    assert status == 0
    assert out == f"{image}: stands on layer3.qcow2 again, not on {lift}/squash-1.qcow2\n"
    searched, removed = err.splitlines()
    assert searched.startswith(f"chainlift: searched {image.parent} (")
    names = ("index-1.table", "index-1.vmdk", "index-1.json", "squash-1.qcow2", "squash-1.json")
    assert removed.startswith("chainlift: removed ")
    assert sorted(removed.removeprefix("chainlift: removed ").split(", ")) == sorted(f"{lift}/{name}" for name in names)
    assert read(image) == before
    assert everything(tmp_path).keys() == {*files, f"c/{image.name}.lift.json"}  # the note stays
    for words in (["restore"], ["restore", "--clean"], ["verify"]):
        status, out, err = said(*words, image)
        assert (status, out) == (2, "")
        assert "is not lifted" in err


def test_json_of_lifts_in_a_chain(tmp_path, said):
    image = plain_chain(tmp_path / "c")
    status, out, _ = said("squash", "--json", image)
    assert (status, valid("squash", out)["extents"]) == (0, 0)
    over = create(tmp_path / "c/over.qcow2", image)
    write(over, 9, 0)
    before = read(over)
    status, out, _ = said("plan", "--json", over)
    assert (status, valid("plan", out)["length"]) == (0, 3)
    status, out, _ = said("index", "--json", over)
    assert status == 0
    record = valid("index", out)
    assert record == json.loads((tmp_path / "c/over.qcow2.lift/index-1.json").read_text())
    assert (record["schema"], record["used"], record["original"]["name"]) == (3, True, "layer4.qcow2")
    status, out, _ = said("verify", "--json", over)
    assert status == 0
    verified = valid("verify", out)
    assert verified["true"]
    kinds = [(lift["image"], lift["kind"]) for lift in verified["lifts"]]
    assert kinds == [(str(over), "index"), (str(image), "squash")]
    status, out, _ = said("restore", "--dry-run", "--json", over)
    planned = valid("restore", out)
    assert (status, planned["restored"]) == (0, False)
    # Only the lower one: named by the image that stands on it.
    status, out, _ = said("restore", "--json", "--lift", image, over)
    assert (status, valid("restore", out)["lifts"]) == (0, planned["lifts"][1:])
    assert backing_name(image) == "layer3.qcow2"
    assert "index-1.vmdk" in backing_name(over)
    status, out, err = said("restore", "--lift", image, over)
    assert (status, out) == (2, "")
    assert f"{image}: is no lift of this chain; there are: {over}.lift/index-1.vmdk" in err
    status, out, _ = said("restore", "--json", over)
    assert (status, json.loads(out)) == (0, {"schema": 1, "restored": True, "lifts": planned["lifts"][:1]})
    assert read(over) == before


def test_what_is_gone_is_told_and_what_was_deleted_is_no_fault(tmp_path, said):
    image = plain_chain(tmp_path / "c")
    assert said("squash", image)[0] == 0
    layer = tmp_path / "c/layer2.qcow2"
    layer.rename(tmp_path / "aside")
    status, out, err = said("verify", image)
    assert (status, out) == (1, f"{layer}: is gone\n")
    assert "its squash is not true any more; chainlift restore takes the image off it" in err
    status, out, _ = said("verify", "--json", image)
    (lift,) = valid("verify", out)["lifts"]
    assert (status, lift["findings"]) == (1, [{"path": str(layer), "what": "is gone"}])
    (tmp_path / "aside").rename(layer)
    assert said("restore", "--clean", image)[0] == 0
    status, out, err = said("squash", "--delete-layers", image)
    assert status == 0
    assert out.endswith("deleted 3 of 3 replaced layers\n")
    assert f"chainlift: searched {image.parent}" in err
    assert said("verify", image) == (0, f"{image}: its squash is true: its layers were deleted\n", "")


def test_a_lift_in_another_directory_has_absolute_names(tmp_path, said):
    image = plain_chain(tmp_path / "c")
    place = tmp_path / "place"
    place.mkdir()
    before, files = read(image), everything(image.parent)
    for verb, file in (("index", "index-1.vmdk"), ("squash", "squash-1.qcow2")):
        assert said(verb, "--lift-dir", place, image)[0] == 0
        assert str(place / f"{image.name}.lift" / file) in backing_name(image)
        assert read(image) == before
        assert said("verify", "--content", image)[0] == 0
        assert everything(image.parent).keys() == files.keys()
        assert said("restore", "--clean", image)[0] == 0
        assert [path.name for path in place.iterdir()] == [f"{image.name}.lift.json"]
    assert read(image) == before
    assert backing_name(image) == "layer3.qcow2"
