"""A domain whose active layer lies on a block device: libvirt copies it into a file of a directory that is named."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.domain import DISK, SIZE, XML, Guest, Machine
from tests.support.libvirt import virsh
from tests.support.need import missing
from tests.support.stock import create

from chainlift.lift import verbs

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt", "root")]


@pytest.fixture
def devices(place, tmp_path):
    """Two loop devices that libvirt's user may use."""
    found: list[Path] = []
    try:
        for number in range(2):
            file = tmp_path / f"volume{number}"
            with file.open("wb") as made:
                made.truncate(2 * SIZE)
            done = subprocess.run(["losetup", "-f", "--show", file], capture_output=True, text=True)
            if done.returncode != 0:
                missing("loop", done.stderr.strip())
            found.append(Path(done.stdout.strip()))
            os.chown(found[-1], place.stat().st_uid, place.stat().st_gid)
        yield found
    finally:
        for device in found:
            os.chown(device, 0, 0)
            subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
def machine(place, devices):
    """A domain whose active layer is on the first device, over layers in files."""
    with Machine(place, start=False) as made:
        create(devices[0], made.files[-2], named=str(made.files[-2]))
        made.files[-1].unlink()
        disk = DISK.format(image=devices[0], target="vda", store="", more="", cache="none")
        disk = disk.replace("type='file'", "type='block'", 1).replace("source file=", "source dev=")
        virsh("undefine", made.name)
        made.tell("define", XML.format(name=made.name, disks=disk), domain=False)
        virsh("start", made.name)
        yield made


@pytest.fixture
def directory(machine):
    path = machine.images / "elsewhere"
    path.mkdir()
    machine.give_to_libvirt()
    return path


def below_dev():
    return sorted(path.name for path in Path("/dev").iterdir())


def test_without_a_directory_it_is_refused_and_the_directory_is_named(verb, machine, devices):
    there = below_dev()
    for words in ("squash", "restore"):
        said = verb(words, "--libvirt", "vm")
        assert said.status == 2, said
    assert "--lift-dir DIR" in verb("squash", "--libvirt", "vm").err
    assert (below_dev(), machine.disk) == (there, devices[0])


@pytest.mark.parametrize(("much_bytes", "number"), [(0, 2), (1 << 30, 1)])
def test_it_is_a_file_of_that_directory_afterwards(open_disk, machine, devices, directory, much_bytes, number):
    there = below_dev()
    with Guest(machine) as guest:
        verbs.squash(open_disk(machine, directory=directory, much_bytes=much_bytes), parent=directory)
    new = directory / f"{devices[0].name}.lift{number}"
    guest.verify(machine)
    assert (machine.disk, machine.definition(inactive=True).path) == (new, new)
    assert below_dev() == there
    machine.restart()
    guest.verify(machine)


def test_it_goes_back_to_the_chain_as_a_file(verb, machine, directory):
    with Guest(machine) as guest:
        said = verb("squash", "--libvirt", "vm", "--lift-dir", directory)
        assert said.status == 0, said
        said = verb("restore", "--libvirt", "vm", "--clean")
        assert said.status == 0, said
        assert machine.chain[1:] == machine.files[-2::-1]
    guest.verify(machine)
    machine.restart()
    guest.verify(machine)


def test_a_snapshot_of_libvirts_on_a_device_is_deleted_as_before(verb, machine, devices, directory):
    spec = f"vda,stype=block,file={devices[1]}"
    virsh("snapshot-create-as", "vm", "today", "--disk-only", "--diskspec", spec)
    assert machine.disk == devices[1]
    said = verb("squash", "--libvirt", "vm", "--lift-dir", directory)
    assert said.status == 0, said
    before = machine.content()
    virsh("snapshot-delete", "vm", "today")
    assert machine.content() == before


@pytest.mark.long
def test_libvirt_copies_it_back_onto_the_device_when_told(verb, machine, devices, directory):
    with Guest(machine) as guest:
        said = verb("squash", "--libvirt", "vm", "--lift-dir", directory)
        assert said.status == 0, said
        below = machine.chain[1:]
        words = ("--blockdev", "--format", "qcow2", "--shallow", "--transient-job", "--wait", "--pivot")
        virsh("blockcopy", "vm", "vda", "--dest", devices[0], *words)
    guest.verify(machine)
    assert machine.chain == [devices[0], *below]
    machine.restart()
    guest.verify(machine)


def test_a_snapshot_on_a_device_that_would_have_to_be_copied_is_refused(verb, machine, devices, directory):
    said = verb("squash", "--libvirt", "vm", "--lift-dir", directory)
    assert said.status == 0, said
    virsh("snapshot-create-as", "vm", "one", "--disk-only", "--diskspec", f"vda,stype=block,file={devices[1]}")
    machine.snapshot("two")
    chain, there = machine.chain, below_dev()
    said = verb("restore", "--libvirt", "vm")
    assert said.status == 2, said
    assert f"{devices[1]}: lies on a block device: no copy of it can lie beside it" in said.err
    assert (machine.chain, below_dev()) == (chain, there)


RUN = """
import os, signal, sys
from chainlift.lift import verbs
from chainlift.lift.open import open_disk
from pathlib import Path
place = Path(sys.argv[1])
with open_disk(libvirt="vm", directory=place) as disk:
    disk.after = lambda what: os.kill(os.getpid(), signal.SIGKILL) if what == "begun" else None
    verbs.squash(disk, parent=place)
"""


def test_a_copy_that_a_killed_run_has_left_is_ended(verb, machine, devices, directory):
    done = subprocess.run([sys.executable, "-c", RUN, directory], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert machine.definition().mirror is not None
    said = verb("clean", "--libvirt", "vm")
    assert said.status == 0, said
    assert "ended libvirt's copy" in said.out
    assert (machine.definition().mirror, machine.disk) == (None, devices[0])
    assert not list(directory.rglob("*.*"))
