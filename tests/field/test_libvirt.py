"""Lifts beside libvirt, which keeps its own record of a chain and merges bitmaps of its layers at a backup."""

import json
import os
import shlex
import subprocess
import time

import pytest
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.stock import backing_name, everything, img, make_pool, opens, read

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]
DOMAIN = """
<domain type='qemu'><name>vm</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>
"""
BACKUP = """
<domainbackup><incremental>cp</incremental><disks><disk name='vda' type='file'>
<target file='{target}'/><driver type='qcow2'/></disk></disks></domainbackup>
"""
DEVICE = "/machine/peripheral/virtio-disk0/virtio-backend"


@pytest.fixture(scope="module")
def place():
    with running_libvirtd() as path:
        yield path


class Machine:
    """A domain whose disk has a chain of three, which libvirt has started."""

    def __init__(self, place):
        self.place = place
        self.images = place / "images" / str(time.monotonic_ns())
        chain = make_pool(self.images, "base.qcow2", "a.qcow2", "b.qcow2", absolute=True)
        self.disk = chain[-1]
        self.give_to_libvirt()
        self.xml("define", DOMAIN.format(image=self.disk))
        virsh("start", "vm")

    def give_to_libvirt(self):
        owner = self.place.stat()
        for path in (self.images, *self.images.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)

    def xml(self, command, text, *arguments):
        file = self.place / "images/some.xml"
        file.write_text(text)
        virsh(command, *arguments, file)

    def write(self, pattern, offset):
        virsh("qemu-monitor-command", "vm", "--hmp", f'qemu-io -d {DEVICE} "write -P {pattern} {offset} 64k"')

    def snapshot(self, name):
        overlay = self.images / f"{name}.qcow2"
        virsh("snapshot-create-as", "vm", name, "--disk-only", "--diskspec", f"vda,file={overlay}")
        self.disk = overlay
        return overlay

    def changed_since_the_checkpoint(self, name):
        """Make an incremental backup; return the blocks that are in it."""
        target = self.images / name
        self.xml("backup-begin", BACKUP.format(target=target), "vm")
        while "None" not in virsh("domjobinfo", "vm"):
            time.sleep(0.05)
        blocks = json.loads(img("map", "-U", "--output=json", target))
        return {block["start"] >> 16 for block in blocks if block["depth"] == 0 and block["data"]}


@pytest.fixture
def machine(place):
    made = Machine(place)
    yield made
    subprocess.run(["virsh", "destroy", "vm"], capture_output=True)
    for kind in ("checkpoint", "snapshot"):
        for name in subprocess.run(
            ["virsh", "-q", f"{kind}-list", "vm", "--name"], capture_output=True, text=True
        ).stdout.split():
            subprocess.run(["virsh", f"{kind}-delete", "vm", name, "--metadata"], capture_output=True)
    virsh("undefine", "vm")


@pytest.mark.parametrize("words", ["index", "index --drop-bitmaps", "squash", "stream"])
def test_a_backup_after_a_lift_has_every_block_or_the_lift_is_refused(verb, machine, words):
    machine.xml("checkpoint-create", "<domaincheckpoint><name>cp</name></domaincheckpoint>", "vm")
    machine.write(1, "1M")
    machine.snapshot("s1")
    machine.write(2, "2M")
    assert machine.changed_since_the_checkpoint("before.qcow2") == {16, 32}
    said = verb(*words.split(), "--libvirt", "vm")
    if "--drop-bitmaps" in words and said.status == 0:
        return  # was asked for: no backup since that checkpoint is to be had
    if said.status != 0:
        assert said.status == 2, said
        assert "bitmap" in said.err
    machine.write(3, "3M")
    assert machine.changed_since_the_checkpoint("after.qcow2") == {16, 32, 48}, said
    back = verb("restore", "--libvirt", "vm")
    assert back.status in (0, 2), back
    assert machine.changed_since_the_checkpoint("restored.qcow2") == {16, 32, 48}, (said, back)


@pytest.mark.parametrize("words", ["index", "squash", "squash --delete-layers"])
def test_the_next_start_reads_the_same_or_the_lift_is_refused(verb, machine, words):
    disk = machine.snapshot("s1")
    virsh("destroy", "vm")
    before, files = read(disk), everything(machine.images)
    said = verb(*words.split(), disk)
    if said.status != 0:
        assert said.status == 2, said
        assert "libvirt" in said.err or "vm" in shlex.split(said.err)
        assert everything(machine.images) == files
    machine.give_to_libvirt()
    assert read(disk) == before
    virsh("start", "vm")
    named = virsh("dumpxml", "vm")
    # Either the definition names what the disk stands on now, or the chain is what it was.
    assert ".lift/" in named or not (backing_name(disk) or "").startswith(("json:", f"{disk}.lift")), said
    assert read(disk) == before
    virsh("destroy", "vm")


def test_an_index_below_a_domains_disk_is_refused_and_a_squash_is_not(verb, machine):
    virsh("destroy", "vm")
    middle, before = machine.images / "a.qcow2", read(machine.disk)
    files = everything(machine.images)
    said = verb("index", middle)
    assert said.status == 2, said
    assert "domain vm" in said.err
    assert everything(machine.images) == files
    assert verb("squash", machine.disk).status == 0
    machine.give_to_libvirt()
    virsh("start", "vm")
    virsh("destroy", "vm")
    assert read(machine.disk) == before


def test_after_a_restore_libvirts_block_jobs_work_or_that_is_said(verb, machine):
    before = read(machine.disk)
    said = verb("index", "--libvirt", "vm")
    assert said.status in (0, 2), said
    back = verb("restore", "--libvirt", "vm")
    assert back.status == said.status, back
    commit = ["virsh", "blockcommit", "vm", "vda", "--top", machine.images / "a.qcow2", "--base",
              machine.images / "base.qcow2", "--wait"]  # fmt: skip
    done = subprocess.run([*map(str, commit)], capture_output=True, text=True)
    told = said.err + back.err
    if done.returncode != 0:
        assert "destroy" in told or "restart" in told or "shut down" in told or "started again" in told, (told, done)
    virsh("destroy", "vm")
    assert opens(machine.disk)
    assert read(machine.disk) == before
