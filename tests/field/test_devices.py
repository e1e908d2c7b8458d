"""Layers on block devices: read as devices, and nothing of ours is written below /dev."""

import itertools
import os
import stat
import subprocess
from pathlib import Path

import pytest
from tests.support.need import missing
from tests.support.running import Running
from tests.support.stock import create, img, read, run, write

pytestmark = pytest.mark.integration


@pytest.fixture
def devices(tmp_path):
    """Three loop devices with a chain on them, base first."""
    found: list[Path] = []
    try:
        for number in range(3):
            file = tmp_path / f"volume{number}"
            with file.open("wb") as made:
                made.truncate(8 << 20)
            done = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True)
            if done.returncode != 0:
                missing("loop", done.stderr.strip())
            device = Path(done.stdout.strip())
            found.append(device)
            create(device, found[-2] if number else None, named=str(found[-2]) if number else "")
            write(device, number + 1, number << 18, "384k")
        yield found
    finally:
        for device in found:
            subprocess.run(["losetup", "-d", device], check=True)
        lifts = list(Path("/dev").glob("loop*.lift*"))
        for lift in lifts:
            subprocess.run(["rm", "-rf", lift], check=True)


def below_dev():
    return sorted(str(path) for path in Path("/dev").iterdir())


@pytest.mark.parametrize("kind", ["index", "squash"])
@pytest.mark.needs("root")
def test_a_lift_is_never_written_below_dev(verb, kind, devices):
    before, names = read(devices[-1]), below_dev()
    said = verb(kind, devices[-1])
    assert below_dev() == names
    assert read(devices[-1]) == before
    assert said.status == 2, said
    assert "/dev" in said.err


@pytest.mark.needs("root")
def test_nor_under_a_running_disk(verb, devices):
    with Running(devices[-1], driver="host_device") as running:
        before, names = running.read(), below_dev()
        said = verb("squash", "--qmp", running.qmp_path)
        assert running.read() == before
        assert below_dev() == names
        assert said.status == 2, said


@pytest.mark.needs("root")
def test_layers_on_devices_under_an_image_in_a_file(verb, devices, tmp_path):
    top = create(tmp_path / "top", devices[-1], named=str(devices[-1]))
    write(top, 9, "1M")
    before = read(top)
    for kind in ("index", "squash"):
        said = verb(kind, top)
        assert said.status == 0, said
        assert read(top) == before
        said = verb("restore", "--clean", top)
        assert said.status == 0, said
        assert read(top) == before


@pytest.fixture
def nodes(devices, tmp_path):
    """A directory of device nodes like /dev, which may lose them."""
    place = tmp_path / "dev"
    place.mkdir()
    for number, device in enumerate(devices):
        os.mknod(place / f"volume{number}", 0o600 | stat.S_IFBLK, device.stat().st_rdev)
    return place


def test_device_nodes_are_never_unlinked(verb, nodes, tmp_path):
    chain = [nodes / f"volume{number}" for number in range(3)]
    for below, above in itertools.pairwise(chain):
        img("rebase", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", above)
    top = create(tmp_path / "top", chain[-1], named=str(chain[-1]))
    before = read(top)
    said = verb("squash", "--delete-layers", "--search", nodes, top)
    assert said.status in (0, 2), said
    assert all(node.is_block_device() for node in chain), said
    assert read(top) == before


@pytest.mark.needs("root")
def test_flatten_onto_a_device_when_asked(verb, devices, tmp_path):
    volume = tmp_path / "target"
    with volume.open("wb") as made:
        made.truncate(4 << 20)
    device = run("losetup", "-f", "--show", volume).stdout.strip()
    try:
        before = read(devices[-1])
        refused = verb("flatten", "-O", "raw", devices[-1], device)
        assert refused.status == 2
        assert "--overwrite" in refused.err
        assert verb("flatten", "-O", "raw", "--overwrite", devices[-1], device).status == 0
        assert Path(device).read_bytes() == before
    finally:
        img("info", devices[-1])
        subprocess.run(["losetup", "-d", device], check=True)
