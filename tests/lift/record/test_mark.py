import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support import mounts, need

from chainlift.lift.record.mark import Mark, read_mark, state_directory, write_mark

PAUSED = Mark(is_paused=True, at_s=1700000000.0, why="restored", vm="name vm7")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.qcow2"
    path.write_bytes(b"an image")
    return path


def test_a_mark_belongs_to_the_file_and_not_to_its_name(image, tmp_path):
    write_mark(image, PAUSED, tmp_path / "nowhere")
    renamed = image.rename(tmp_path / "other.qcow2")
    image.write_bytes(b"another image under the old name")
    assert read_mark(renamed, tmp_path) == PAUSED
    assert read_mark(image, tmp_path) is None
    shutil.copy2(renamed, tmp_path / "copy.qcow2")  # with its attributes
    assert os.listxattr(tmp_path / "copy.qcow2") != []
    assert read_mark(tmp_path / "copy.qcow2", tmp_path) is None
    write_mark(renamed, None, tmp_path / "nowhere")
    write_mark(renamed, None, tmp_path / "nowhere")
    assert read_mark(renamed, tmp_path) is None


def test_a_mark_that_somebody_else_wrote_is_none(image, tmp_path):
    for text in (
        b"",
        b"[]",
        b"{}",
        b'{"inode": "x"}',
        b"[" * 1000,
        b'{"is_paused": 1, "inode": %d}' % image.stat().st_ino,
    ):
        os.setxattr(image, "user.chainlift.mark", text)
        assert read_mark(image, tmp_path) is None


@pytest.fixture
def device(image):
    done = subprocess.run([*(need.as_root() or ()), "losetup", "--show", "-f", image], capture_output=True, text=True)
    if done.returncode != 0:
        need.missing("loop", "no loop device can be made here (needs root)")
    device = done.stdout.strip()
    yield Path(device)
    subprocess.run([*need.as_root(), "losetup", "-d", device], check=True)


@pytest.mark.needs("loop")
def test_a_block_device_is_marked_in_the_state_directory(device, tmp_path):
    with pytest.raises(FileNotFoundError):
        write_mark(device, PAUSED, tmp_path / "nowhere")
    assert kept_in(tmp_path / "state", device) == f"device {os.major(rdev(device))}:{os.minor(rdev(device))}"


@pytest.mark.needs("mount")
def test_a_file_system_without_attributes_is_marked_in_the_state_directory(tmp_path):
    place = tmp_path / "ramfs"
    place.mkdir()
    if failed := mounts.mount(place, "-t", "ramfs", "-o", "mode=0777", "none"):
        need.missing("mount", failed)
    try:
        image = place / "disk.qcow2"
        image.write_bytes(b"an image")
        assert kept_in(tmp_path / "state", image) == str(image)
        write_mark(image, PAUSED, tmp_path / "state")
        image.unlink()
        (place / "first").write_bytes(b"takes a number")
        image.write_bytes(b"another image under the old name")
        assert read_mark(image, tmp_path / "state") is None
    finally:
        mounts.unmount(place)


def kept_in(state, image):
    """Mark it and take the mark away; return under which name it was kept."""
    state.mkdir()
    write_mark(image, PAUSED, state)
    assert read_mark(image, state) == PAUSED
    assert [path.name for path in state.iterdir()] == ["marks.json"]
    (key,) = json.loads((state / "marks.json").read_text())
    write_mark(image, None, state)
    assert read_mark(image, state) is None
    return key


def rdev(path):
    return path.stat().st_rdev


def test_the_state_directory_is_systemds_or_the_usual_one(monkeypatch):
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert str(state_directory()) == "/var/lib/chainlift"
    monkeypatch.setenv("STATE_DIRECTORY", "/srv/a:/srv/b")
    assert str(state_directory()) == "/srv/a"
