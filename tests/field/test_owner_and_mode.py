"""Files of a lift belong to whom the image belongs, and may be read by whom the image may be read."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from tests.support.running import Running
from tests.support.stock import make_pool, read

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("root"),
]
OWNER, STRANGER = 1234, 4321


@pytest.fixture
def place():
    """A directory that everybody may enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="chainlift-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def disk(place):
    pool = make_pool(place, "base", "one", "disk")
    for path in pool:
        os.chown(path, OWNER, OWNER)
        path.chmod(0o600)
    return pool[-1]


def may_read(user, path):
    """Whether a user may read a file, asked by opening it as he."""
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            os.close(os.open(path, os.O_RDONLY))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
@pytest.mark.parametrize("kind", ["index", "squash", "index --copy-budget 1M"])
def test_a_lift_may_be_read_by_whom_the_image_may(verb, disk, kind, umask):
    assert verb(*kind.split(), disk, umask=umask).status == 0
    files = [path for path in disk.parent.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert may_read(OWNER, path), path
        assert not may_read(STRANGER, path), path


def test_group_and_mode_are_the_images(verb, disk):
    os.chown(disk, OWNER, STRANGER)
    disk.chmod(0o640)
    assert verb("squash", disk).status == 0
    for path in disk.parent.rglob("*.qcow2"):
        status = path.stat()
        assert (status.st_uid, status.st_gid) == (OWNER, STRANGER)
        assert stat.S_IMODE(status.st_mode) == 0o640


def test_so_it_is_under_a_running_disk(verb, disk):
    with Running(disk) as running:
        before = running.read()
        said = verb("squash", "--qmp", running.qmp_path, umask=0o022)
        assert said.status == 0, said
        assert running.read() == before
        for path in disk.parent.rglob("*.qcow2"):
            assert not may_read(STRANGER, path), said


def test_the_image_keeps_its_owner_and_mode(verb, disk):
    before = read(disk)
    for words in ("index", "restore", "squash", "restore --clean"):
        assert verb(*words.split(), disk).status == 0
        status = disk.stat()
        assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (OWNER, OWNER, 0o600)
    assert read(disk) == before


def test_the_directory_of_a_lift_can_be_entered_by_the_images_owner(verb, disk):
    assert verb("squash", disk, umask=0o077).status == 0
    said = verb("inspect", disk, user=OWNER)
    assert said.status == 0, said


def test_cleaning_by_somebody_who_may_not_delete_leaves_everything(verb, place):
    pool = make_pool(place / "pool", "base", "one", "disk")
    for path in (pool[0].parent, *pool):
        os.chown(path, OWNER, OWNER)
    assert verb("squash", pool[-1]).status == 0
    lift = place / "pool/disk.lift"
    os.chown(lift, 0, 0)
    lift.chmod(0o755)
    for path in lift.iterdir():
        os.chown(path, 0, 0)
        path.chmod(0o644)
    header = pool[-1].read_bytes()
    said = verb("restore", "--clean", pool[-1], user=OWNER)
    # Either it is refused before anything happens, or the switch is done and what is left is told.
    if said.status in (2, 3):
        assert pool[-1].read_bytes() == header, said
    else:
        assert said.status in (0, 4), said
        assert "disk.lift" in said.err
