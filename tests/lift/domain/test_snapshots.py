"""Snapshots, block jobs, checkpoints and backups of libvirt, before and after its disk was lifted."""

import subprocess

import pytest
from tests.support.domain import Guest, Machine, rebuilt
from tests.support.libvirt import virsh
from tests.support.need import missing
from tests.support.stock import read

from chainlift import facts
from chainlift.host.virsh import daemon_version
from chainlift.lift import verbs

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


def delete(name, *words):
    done = subprocess.run(["virsh", "-q", "snapshot-delete", "vm", name, *words], capture_output=True, text=True)
    return done.returncode == 0, done.stderr


def names():
    return virsh("snapshot-list", "vm", "--name").split()


def test_the_newest_snapshot_can_be_deleted_and_the_others_are_named(verb, machine):
    machine.snapshot("older")
    machine.snapshot("old")
    machine.snapshot("newest")
    before = machine.content()
    said = verb("squash", "--libvirt", "vm")
    assert said.status == 0, said
    assert "2 snapshots in libvirt's list (older, old) have their layers beside the chain now" in said.err
    assert "virsh snapshot-delete vm NAME --metadata" in said.err
    squash = machine.chain[1]
    assert delete("newest") == (True, "")
    assert machine.disk == squash
    assert machine.content() == before
    # What libvirt says of one whose layer is elsewhere, and what the message says to do.
    assert not delete("older")[0]
    assert delete("older", "--metadata") == (True, "")
    assert names() == ["old"]
    machine.restart()
    assert machine.content() == before


def test_after_a_restore_all_of_them_can_be_deleted(machine, open_disk):
    machine.snapshot("first")
    machine.snapshot("second")
    verbs.squash(open_disk(machine))
    machine.snapshot("third")
    before = machine.content()
    done = open_disk(machine)
    verbs.restore(done)
    assert done.left == []
    for name in ("third", "second", "first"):
        assert delete(name) == (True, "")
        assert machine.content() == before
    assert machine.chain == list(reversed(machine.files))
    machine.restart()
    assert machine.content() == before


def test_the_domain_is_reverted_to_a_snapshot_from_before_a_lift(machine, open_disk):
    if not facts.REVERTS.holds(daemon_version()):
        missing("reverts", f"libvirt {'.'.join(map(str, daemon_version()))} is older")
    guest = Guest(machine)
    then = {}
    for name in ("first", "second", "third"):
        for _ in range(5):
            guest.step()
        guest.io("flush")
        then[name] = bytes(guest.model)
        machine.snapshot(name)
    guest.stop()
    verbs.squash(open_disk(machine))
    for name in ("second", "third", "first"):
        virsh("snapshot-revert", "vm", name)
        assert machine.content() == then[name]
        virsh("start", "vm")
        verbs.squash(open_disk(machine))
        assert machine.content() == then[name]


def test_snapshots_and_block_jobs_go_on_working(machine, open_disk):
    verbs.squash(open_disk(machine))
    before = machine.content()
    lifted = machine.disk
    one, two = machine.snapshot("one"), machine.snapshot("two")
    assert machine.chain[:3] == [two, one, lifted]
    virsh("blockcommit", "vm", "vda", "--top", one, "--base", lifted, "--wait")
    assert machine.chain[:2] == [two, lifted]
    assert delete("one", "--metadata") == (True, "")
    virsh("blockpull", "vm", "vda", "--wait")
    assert machine.chain == [two]
    assert "tainted" not in machine.log
    Guest(machine).stop()  # a job leaves its tables in QEMU's cache
    assert machine.content() == before


def test_a_snapshot_of_several_disks_keeps_what_it_says_of_the_others(place, open_disk):
    extra = place / "images/extra.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", extra, "1M"], check=True)
    with Machine(place) as machine:
        extra.rename(machine.images / "extra.qcow2")
        extra = machine.images / "extra.qcow2"
        machine.give_to_libvirt()
        virsh("attach-disk", "vm", extra, "vdb", "--subdriver", "qcow2", "--live")
        virsh("snapshot-create-as", "vm", "both", "--disk-only")
        verbs.squash(open_disk(machine, device="vda"))
        assert f"{extra.stem}.both" in virsh("snapshot-dumpxml", "vm", "both")
        assert delete("both") == (True, "")
        assert machine.definition(target="vdb").path == extra


def test_incremental_backups_after_lifts_hold_every_changed_block(machine, open_disk):
    machine.checkpoint("cp")
    full = machine.backup("full.qcow2")
    guest = Guest(machine)
    with guest:
        machine.snapshot("one")
        verbs.squash(open_disk(machine))
        machine.snapshot("two")
    first = machine.backup("first.qcow2", since="cp")
    assert rebuilt(full, first) == machine.content() == bytes(guest.model)
    guest = Guest(machine, seed=2)
    with guest:
        verbs.squash(open_disk(machine, much_bytes=0))
        verbs.restore(open_disk(machine))
    machine.checkpoint("later")
    second = machine.backup("second.qcow2", since="cp")
    assert rebuilt(full, second) == machine.content() == bytes(guest.model)
    guest = Guest(machine, seed=3)
    with guest:
        verbs.squash(open_disk(machine))
    third = machine.backup("third.qcow2", since="later")
    assert rebuilt(full, second, third) == machine.content() == bytes(guest.model)
    virsh("checkpoint-delete", "vm", "cp")
    machine.restart()
    fourth = machine.backup("fourth.qcow2", since="later")
    assert rebuilt(full, second, fourth) == machine.content() == bytes(guest.model)


def test_a_bitmap_that_cannot_be_carried_is_refused_by_name(verb, machine):
    machine.checkpoint("cp")
    machine.snapshot("one", "--no-metadata")
    # As after a crash: what the layer's bitmap says cannot be relied on.
    layer = machine.files[-1]
    mark_in_use(layer)
    said = verb("squash", "--libvirt", "vm")
    assert (said.status, "'cp' was not saved properly" in said.err) == (2, True), said
    assert len(machine.chain) == len(machine.files) + 1
    assert read(machine.disk) == machine.content()


def mark_in_use(image):
    """Set the flag in_use of an image's only bitmap (qcow2 specification, section "Bitmap directory")."""
    from chainlift.qcow2.bitmaps import list_bitmaps
    from chainlift.qcow2.file import ImageFile
    from chainlift.qcow2.image import Image, read_header

    data = bytearray(image.read_bytes())
    file = ImageFile(str(image))
    header = Image(file, read_header(file)).header
    assert [bitmap.name for bitmap in list_bitmaps(Image(file, header))] == ["cp"]
    file.close()
    at = data.rindex(b"cp") - 24
    while data[at + 18 : at + 20] != b"\x00\x02":
        at -= 1
    data[at + 12 : at + 16] = (int.from_bytes(data[at + 12 : at + 16], "big") | 1).to_bytes(4, "big")
    image.write_bytes(data)
