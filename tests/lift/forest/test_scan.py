"""Which images are below a directory and what each stands on, whatever lies there."""

import os
import random
import struct
from pathlib import Path

import pytest
from tests.support.chains import plain_chain
from tests.support.json_schemas import valid

from chainlift.errors import ImageError
from chainlift.lift.forest.scan import scan
from chainlift.lift.forest.tree import open_tree
from chainlift.qcow2.writer import write_image

MIB = 1 << 20


def image(path, backing=None, form="qcow2", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(
        path, virtual_size=options.pop("size", MIB), backing_file=backing, backing_format=form if backing else None,
        **options,
    )  # fmt: skip
    return path


def stands(forest):
    """Image -> what it stands on, by their names below the first directory."""
    top = forest.directories[0]

    def name(node):
        return os.path.relpath(node.path, top)

    return {
        name(node): None if node.below is None else name(forest.nodes[node.below]) for node in forest.nodes.values()
    }


def trouble(forest):
    return {Path(node.path).name: node.trouble for node in forest.nodes.values() if node.trouble}


def test_chains_clones_and_a_base_elsewhere(tmp_path):
    place = tmp_path / "place"
    image(tmp_path / "elsewhere/base.qcow2")
    (place / "raw").mkdir(parents=True)
    (place / "raw/disk.img").write_bytes(b"r" * MIB)
    image(place / "a.qcow2", "../elsewhere/base.qcow2")
    image(place / "deep/down/b.qcow2", "../../a.qcow2")
    image(place / "c.qcow2", str(place / "a.qcow2"))
    image(place / "d.qcow2", "raw/disk.img", "raw")
    image(place / "e.qcow2", 'json:{"driver":"qcow2","file":{"driver":"file","filename":"%s"}}' % (place / "c.qcow2"))
    (place / "notes.txt").write_text("no image")
    forest = scan([place])
    assert stands(forest) == {
        "../elsewhere/base.qcow2": None, "a.qcow2": "../elsewhere/base.qcow2", "deep/down/b.qcow2": "a.qcow2",
        "c.qcow2": "a.qcow2", "raw/disk.img": None, "d.qcow2": "raw/disk.img", "e.qcow2": "c.qcow2",
    }  # fmt: skip
    assert [node.path for node in forest.nodes.values() if node.is_outside] == [str(place / "../elsewhere/base.qcow2")]
    assert not trouble(forest)
    assert not forest.unreadable


def test_names_are_those_of_the_files_whatever_links_there_are(tmp_path):
    image(tmp_path / "store/base.qcow2")
    image(tmp_path / "store/top.qcow2", "base.qcow2")
    (tmp_path / "again").symlink_to("store")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/base.qcow2").symlink_to("../store/base.qcow2")
    os.link(tmp_path / "store/top.qcow2", tmp_path / "linked/top.qcow2")
    # Its name counts from the directory of the link that people open it by.
    image(tmp_path / "real/moved.qcow2", "base.qcow2")
    (tmp_path / "store/by-link.qcow2").symlink_to("../real/moved.qcow2")
    forest = scan([tmp_path, tmp_path / "store", tmp_path / "again"])
    assert stands(forest) == {
        "store/base.qcow2": None, "store/top.qcow2": "store/base.qcow2", "real/moved.qcow2": "store/base.qcow2",
    }  # fmt: skip


def test_what_is_broken(tmp_path):
    image(tmp_path / "gone.qcow2", "nothing.qcow2")
    image(tmp_path / "net.qcow2", "nbd://host/disk")
    image(tmp_path / "self.qcow2", "self.qcow2")
    image(tmp_path / "one.qcow2", "two.qcow2")
    image(tmp_path / "two.qcow2", "one.qcow2")
    image(tmp_path / "on-the-loop.qcow2", "one.qcow2")
    os.mkfifo(tmp_path / "fifo")
    image(tmp_path / "pipe.qcow2", "fifo")
    image(tmp_path / "directory.qcow2", ".")
    (tmp_path / "cut.qcow2").write_bytes((tmp_path / "gone.qcow2").read_bytes()[:80])
    forest = scan([tmp_path])
    found = trouble(forest)
    assert found.pop("one.qcow2", None) or found.pop("two.qcow2") == "loop"
    assert found == {
        "gone.qcow2": "missing", "net.qcow2": "foreign", "self.qcow2": "loop", "pipe.qcow2": "unreadable",
        "directory.qcow2": "unreadable",
    }  # fmt: skip
    assert {Path(path).name for path in forest.unreadable} >= {"cut.qcow2", "fifo"}
    assert len(forest.nodes) == 8


def test_a_directory_that_is_none(tmp_path):
    with pytest.raises(ImageError, match="is no directory"):
        scan([tmp_path / "nothing"])


@pytest.mark.integration
def test_a_lift(tmp_path, host_qemu):
    from tests.support.lifts import lift_index, lift_squash

    top = plain_chain(tmp_path / "c", length=4)
    lift_index(top, host_qemu)
    forest = scan([tmp_path / "c"])
    assert stands(forest)["layer4.qcow2"] == "layer4.qcow2.lift/index-1.vmdk"
    assert stands(forest)["layer4.qcow2.lift/index-1.vmdk"] == "layer3.qcow2"
    with open_tree([tmp_path / "c"]) as tree:
        frees = {Path(entry.path).name: entry.frees_bytes for entry in tree}
    # The index points into all the layers.
    assert [frees[f"layer{number}.qcow2"] for number in range(4)] == [0] * 4
    lift_squash(top, host_qemu)
    found = stands(scan([tmp_path / "c"]))
    assert found["layer4.qcow2"] == "layer4.qcow2.lift/squash-1.qcow2"
    assert found["layer4.qcow2.lift/squash-1.qcow2"] == "layer0.qcow2"


def test_damaged_headers_are_told_and_end_nothing(tmp_path):
    rng = random.Random(3)
    image(tmp_path / "base.qcow2", clusters=[1], data=b"x" * 65536)
    whole = image(tmp_path / "whole.qcow2", "base.qcow2", clusters=[2], data=b"y" * 65536).read_bytes()
    for number in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.choice([rng.randrange(4, 300), rng.randrange(65536, len(whole))])] = rng.randrange(256)
        (tmp_path / f"d{number}.qcow2").write_bytes(damaged)
    with open_tree([tmp_path]) as tree:
        entries = list(tree)
        assert len(entries) + len(tree.unreadable) >= 302
        assert all("\n" not in why for why in tree.unreadable.values())
    assert any(entry.frees_bytes is None for entry in entries)


def test_a_huge_l1_table_of_one_l2_table_takes_no_time(tmp_path):
    image(tmp_path / "base.qcow2", clusters=[1], data=b"x" * 65536)
    path = image(tmp_path / "bomb.qcow2", "base.qcow2", size=1 << 50, cluster_size=1 << 21)
    image(tmp_path / "top.qcow2", "bomb.qcow2", size=1 << 50, cluster_size=1 << 21)
    data = bytearray(path.read_bytes())
    l1_size, l1_offset = struct.unpack_from(">I", data, 36)[0], struct.unpack_from(">Q", data, 40)[0]
    struct.pack_into(f">{l1_size}Q", data, l1_offset, *[(1 << 63) | l1_offset] * l1_size)
    path.write_bytes(data)
    with open_tree([tmp_path]) as tree:
        frees = {Path(entry.path).name: entry.frees_bytes for entry in tree}
    assert frees["bomb.qcow2"] is None


def test_json_and_hostile_names(tmp_path, capsys):
    from chainlift.cli.main import main

    image(tmp_path / "a\x1b[31m\n.qcow2")
    image(tmp_path / os.fsdecode(b"b\xff.qcow2"), "gone\x1b.qcow2")
    for words in (["--json"], []):
        with pytest.raises(SystemExit) as ended:
            main(["tree", *words, str(tmp_path)])
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert "\x1b[31m" not in said
        if words:
            images = valid("tree", said)["images"]
            assert [entry["broken"] and entry["broken"]["kind"] for entry in images] == [None, "missing"]
