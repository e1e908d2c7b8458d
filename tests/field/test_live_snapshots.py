"""Snapshots that others take over a lifted disk while it runs."""

import pytest
from tests.support.running import QmpError, Running
from tests.support.stock import backing_name, create, everything, make_pool, opens, read

pytestmark = pytest.mark.integration


@pytest.fixture(params=["blockdev-snapshot-sync", "blockdev-snapshot"])
def snapshot(request):
    """Takes a snapshot over a running disk as others do."""

    def take(running, overlay):
        existing = request.param == "blockdev-snapshot"
        if existing:
            create(overlay, running.image, size="4M", named=str(running.image))
        running.snapshot(overlay, existing=existing)
        return overlay

    return take


@pytest.fixture(params=["index", "squash"])
def kind(request):
    return request.param


@pytest.fixture(params=[False, True], ids=["storage-daemon", "emulator"])
def running(request, tmp_path):
    """A running disk with a chain of three, which its guest has written to."""
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    with Running(disk, emulator=request.param) as started:
        started.write(99, 3 << 20, 65536)
        yield started


def test_a_snapshot_over_a_lifted_disk_has_a_plain_name(verb, kind, running, tmp_path):
    disk = running.image
    said = verb(kind, "--qmp", running.qmp_path)
    assert said.status == 0, said
    running.snapshot(tmp_path / "overlay")
    name = backing_name(tmp_path / "overlay")
    assert name is not None
    assert not name.startswith("json:")
    assert (tmp_path / name).resolve() == disk


def test_restore_takes_an_index_out_from_under_a_snapshot(verb, running, snapshot, tmp_path):
    disk = running.image
    assert verb("index", "--qmp", running.qmp_path).status == 0
    overlay = snapshot(running, tmp_path / "overlay")
    running.write(98, 2 << 20, 65536)
    before = running.read()
    said = verb("restore", "--qmp", running.qmp_path)
    assert said.status == 0, said
    assert running.read() == before
    assert "vmdk" not in running.drivers()
    running.kill()
    assert backing_name(disk) == "one" or backing_name(disk) == str(tmp_path / "one")
    assert read(overlay) == before


def test_nothing_blocks_a_migration_after_restore(verb, tmp_path):
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    with Running(disk, emulator=True) as running:
        assert verb("index", "--qmp", running.qmp_path).status == 0
        with pytest.raises(QmpError, match=r"vmdk format .* does not support live migration"):
            running.execute("migrate", uri="exec:cat>/dev/null")
        running.snapshot(tmp_path / "overlay")
        assert verb("index", "--qmp", running.qmp_path).status == 0
        assert verb("restore", "--qmp", running.qmp_path).status == 0
        assert "vmdk" not in running.drivers()
        running.execute("migrate", uri="exec:cat>/dev/null")


@pytest.mark.parametrize("which", ["lifted", "overlay", "over that"])
@pytest.mark.parametrize("then", ["restore", "restore --clean", "index", "squash"])
def test_at_rest_every_image_of_the_chain_keeps_opening(verb, tmp_path, which, then):
    *_, disk = make_pool(tmp_path, "base", "one", "disk")
    overlay, top = tmp_path / "overlay", tmp_path / "top"
    with Running(disk) as running:
        assert verb("index", "--qmp", running.qmp_path).status == 0
        running.snapshot(overlay)
        running.write(98, 2 << 20, 65536)
        running.stop()
    create(top, overlay)
    images = {"lifted": disk, "overlay": overlay, "over that": top}
    before, files = {name: read(image) for name, image in images.items()}, everything(tmp_path)
    said = verb(*then.split(), images[which])
    for name, image in images.items():
        assert opens(image), f"{name}: {said}"
        assert read(image) == before[name], f"{name}: {said}"
    assert said.status in (0, 2), said
    if said.status:
        assert everything(tmp_path) == files
