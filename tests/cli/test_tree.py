"""What `tree` shows, at the widths of terminals."""

import os
import time

import pytest
from tests.support.json_schemas import valid

from chainlift.cli.main import main
from chainlift.qcow2.writer import write_image

MIB = 1 << 20


def image(path, backing=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(
        path, virtual_size=MIB, clusters=[0], data=b"x" * 65536, backing_file=backing,
        backing_format="qcow2" if backing else None,
    )  # fmt: skip
    os.utime(path, (time.time() - 3 * 3600,) * 2)


@pytest.fixture
def place(tmp_path):
    image(tmp_path / "base.qcow2")
    below = "../base.qcow2"
    for number in range(20):
        image(tmp_path / f"vm/{number:02}.qcow2", below)
        below = f"{number:02}.qcow2"
    image(tmp_path / "clones/one.qcow2", "../base.qcow2")
    image(tmp_path / "clones/two.qcow2", "../base.qcow2")
    image(tmp_path / "old/disk.qcow2", "gone.qcow2")
    image(tmp_path / "moved/gone.qcow2")
    return tmp_path


@pytest.fixture
def tree(monkeypatch, capsys):
    def run(*words, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as ended:
            main(["tree", *map(str, words)])
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    return run


def names(lines):
    return [line.split("  ")[0] if line[:1] != " " else "  " + line.strip().split("  ")[0] for line in lines]


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_it_fits_the_terminal(place, tree, columns):
    lines = tree(place, columns=columns)
    assert any(line.endswith(f"chainlift relink {place}") for line in lines)
    # A path is left whole, so that it can be copied.
    assert all(len(line) <= columns for line in lines if str(place) not in line)
    assert lines[0] == str(place)
    assert lines[1].startswith("  25 images in 3 trees, on disk ")
    table = lines[4:]
    found = [line.split("   ")[0].rstrip() for line in table if "KiB" in line or "MiB" in line]
    assert found[:3] == ["base.qcow2", "  ├─ clones/one.qcow2", "  ├─ clones/two.qcow2"]
    assert any("... 14 snapshots" in line for line in table)
    assert any(line.rstrip().endswith("3 h") for line in table)


def test_every_snapshot_and_each_directory(place, tree):
    assert sum("vm/" in line for line in tree("--all", place)) == 20
    lines = tree(place / "vm", place / "clones")
    assert any("in none of the directories" in line for line in lines)
    assert lines[:2] == [str(place / "vm"), str(place / "clones")]
    assert sum(" clones/" in line for line in lines[3:]) == 2


def test_json(place, tree):
    said = valid("tree", "\n".join(tree("--json", place)))
    images = {entry["path"]: entry for entry in said["images"]}
    assert len(images) == 25
    broken = images[str(place / "old/disk.qcow2")]["broken"]
    assert broken["kind"] == "moved"
    assert [one["path"] for one in broken["candidates"]] == [str(place / "moved/gone.qcow2")]
    base = images[str(place / "base.qcow2")]
    assert (base["images_above"], base["stands_on"], base["frees_bytes"]) == (3, None, base["disk_bytes"])
    # What stands on another comes behind it.
    order = [entry["path"] for entry in said["images"]]
    assert all(order.index(one["stands_on"]) < order.index(one["path"]) for one in images.values() if one["stands_on"])


def test_deep_branches_stay_on_the_screen(tmp_path, tree):
    below = None
    for number in range(60):
        image(tmp_path / f"{number:02}.qcow2", below)
        if below:
            image(tmp_path / f"{number:02}-branch.qcow2", below)
        below = f"{number:02}.qcow2"
    lines = tree(tmp_path)
    assert all(len(line) <= 80 for line in lines[1:])
    assert sum(".qcow2" in line for line in lines) == 119
