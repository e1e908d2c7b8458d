"""Snapshots go under a running domain: libvirt itself opens the chain anew, and names no layer that is gone."""

import os
import signal
import subprocess
import sys

import pytest
from tests.support.domain import Guest, Machine, rebuilt
from tests.support.libvirt import virsh
from tests.support.stock import everything
from tests.support.thinned import held, names, read_each

from chainlift import facts
from chainlift.errors import ChainliftError, ImageError, InputError, OperationError
from chainlift.host.virsh import daemon_version
from chainlift.lift.domain import chain_limit
from chainlift.lift.domain.disk import DomainDisk
from chainlift.lift.prune.retention import Retention
from chainlift.lift.prune.verb import drop, prune
from chainlift.lift.record.mark import Mark, read_mark, state_directory, write_mark

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


def keep(disk, *layers, **options):
    return prune(disk, Retention(), keep=layers, **options)


def definitions():
    """Everything that libvirt's definitions of the domain say."""
    texts = [virsh("dumpxml", "vm"), virsh("dumpxml", "vm", "--inactive")]
    for kind in ("snapshot", "checkpoint"):
        listed = virsh(f"{kind}-list", "vm", "--name").split()
        texts += [virsh(f"{kind}-dumpxml", "vm", name) for name in listed]
    return "\n".join(texts)


def images(machine):
    return {path.name for path in machine.images.iterdir() if path.suffix != ".xml"}


def test_a_domains_disk_is_thinned_out_and_libvirt_knows_of_it(verb, machine):
    guest = Guest(machine)
    guest.io("write -P 9 1M 70k")
    guest.stop()
    taints = machine.log.count("tainted")
    base, *gone, kept, disk = machine.files
    before, contents, inode = machine.content(), read_each([base, kept]), disk.stat().st_ino
    said = verb("prune", "--libvirt", "vm", "--device", "vda", "--keep-last", "1")
    assert said.status == 0, said
    assert said.out.startswith(f"{disk}: 3 of 4 snapshots are deleted")
    assert "libvirt has opened what is under vda anew" in said.out
    assert machine.chain == [disk, kept, base]
    assert disk.stat().st_ino == inode
    assert images(machine) == {"disk.qcow2", "s4.qcow2", "base.qcow2"}
    assert held(machine.pid, machine.images) == images(machine)
    assert machine.content() == before
    assert read_each([base, kept]) == contents
    assert not [path for path in gone if str(path) in definitions()]
    assert machine.log.count("tainted") == taints
    machine.restart()
    assert machine.chain == [disk, kept, base]
    assert machine.content() == before


def test_where_libvirt_takes_no_layer_more_the_active_layer_is_copied_and_copied_back(machine, open_disk, monkeypatch):
    monkeypatch.setattr(chain_limit, "takes_one_more", lambda version, length: False)
    mark = Mark(is_paused=True, at_s=1.0, why="asked")
    write_mark(machine.disk, mark, state_directory())
    machine.snapshot("one")
    write_mark(machine.disk, mark, state_directory())
    with Guest(machine) as guest:
        disk = open_disk(machine)
        keep(disk, "s4.qcow2", "disk.qcow2")
    one = machine.images / "one.qcow2"
    assert disk.image == one
    assert not disk.left
    assert machine.chain == [one, machine.files[-1], machine.files[-2], machine.files[0]]
    assert images(machine) == {"one.qcow2", "disk.qcow2", "s4.qcow2", "base.qcow2"}
    assert read_mark(one, state_directory()) == mark
    guest.verify(machine)
    virsh("snapshot-delete", "vm", "one")
    machine.restart()
    guest.verify(machine)


def test_incremental_backups_after_prunes_hold_every_changed_block(machine, open_disk, monkeypatch):
    machine.checkpoint("cp")
    full = machine.backup("full.qcow2")
    with Guest(machine) as guest:
        machine.snapshot("one", "--no-metadata")
        machine.snapshot("two", "--no-metadata")
        assert keep(open_disk(machine), "one.qcow2", "disk.qcow2").deleted
    first = machine.backup("first.qcow2", since="cp")
    assert rebuilt(full, first) == machine.content() == bytes(guest.model)
    monkeypatch.setattr(chain_limit, "takes_one_more", lambda version, length: False)
    with Guest(machine, seed=2) as guest:
        machine.snapshot("three", "--no-metadata")
        assert names(keep(open_disk(machine), "two.qcow2", "disk.qcow2").deleted) == ["one.qcow2"]
    assert machine.disk.name == "three.qcow2"
    second = machine.backup("second.qcow2", since="cp")
    assert rebuilt(full, second) == machine.content() == bytes(guest.model)


def test_a_dry_run_says_the_same_and_changes_nothing(verb, machine):
    files, texts = everything(machine.images), definitions()
    said = verb("prune", "--libvirt", "vm", "--keep-last", "1", "--dry-run")
    assert said.status == 0, said
    assert "3 of 4 snapshots would go" in said.out
    assert everything(machine.images) == files
    assert definitions() == texts


def test_what_libvirts_snapshots_name_stays_until_it_is_forgotten(verb, machine):
    for name in ("one", "two", "three"):
        machine.snapshot(name)
    machine.checkpoint("cp")
    machine.snapshot("four")
    before, two = machine.content(), machine.images / "two.qcow2"
    said = verb("prune", "--libvirt", "vm", "--keep-last", "1")
    assert said.status == 0, said
    assert f"kept {two}: snapshot two of domain vm names it" in said.err
    assert "virsh snapshot-delete DOMAIN NAME --metadata" in said.err
    assert {"one.qcow2", "two.qcow2", "three.qcow2", "four.qcow2"} <= images(machine)
    assert not any(str(path) in definitions() for path in machine.files[1:-1])
    said = verb("drop", "--libvirt", "vm", "two.qcow2")
    assert (said.status, "two.qcow2: cannot go: snapshot two of domain vm names it" in said.err) == (2, True), said
    virsh("snapshot-delete", "vm", "two", "--metadata")
    said = verb("drop", "--libvirt", "vm", "two.qcow2")
    listed = ["four", "three"]
    if facts.REVERTS.holds(daemon_version()):
        # What three was taken of stays in its definition, for a revert; before, libvirt gave it its parent's instead.
        assert (said.status, "cannot go: snapshot three of domain vm names it" in said.err) == (2, True), said
        virsh("snapshot-delete", "vm", listed.pop(), "--metadata")
        said = verb("drop", "--libvirt", "vm", "two.qcow2")
    assert said.status == 0, said
    assert not two.exists()
    assert str(two) not in definitions()
    assert machine.content() == before
    # libvirt finds its snapshots where it looks for them: it merges the newest two.
    for name in listed:
        virsh("snapshot-delete", "vm", name)
        assert machine.content() == before
    machine.restart()
    assert machine.content() == before


def test_a_guest_reads_what_it_wrote_through_prunes(machine, open_disk):
    guest = Guest(machine)
    with guest:
        for number in range(3):
            for part in range(3):
                machine.snapshot(f"s-{number}-{part}", "--no-metadata")
            disk = open_disk(machine)
            done = prune(disk, Retention(last=2))
            assert done.deleted
            assert disk.image == machine.images / f"s-{number}-2.qcow2"
    guest.verify(machine)
    assert guest.requests > 0
    assert held(machine.pid, machine.images) == images(machine) == set(names(machine.chain))
    machine.restart()
    guest.verify(machine)


def test_the_layer_right_below_a_running_disk_cannot_be_dropped(machine, open_disk):
    with pytest.raises(ImageError, match=r"s4.qcow2: cannot go: .* domain vm writes to it"):
        drop(open_disk(machine), ["s4.qcow2"])


def test_a_job_of_libvirts_on_the_disk_is_not_disturbed(machine, open_disk):
    virsh("blockcopy", "vm", "vda", machine.images / "somewhere.qcow2", "--transient-job", "--wait")
    files = everything(machine.images)
    with pytest.raises(InputError, match="libvirt runs a copy on the disk vda"):
        drop(open_disk(machine), ["s2.qcow2"])
    assert everything(machine.images) == files
    virsh("blockjob", "vm", "vda", "--abort")


def test_a_disk_of_the_same_domain_over_the_same_layers_is_a_neighbour(place, open_disk):
    with Machine(place) as machine:
        other = machine.images / "other.qcow2"
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", machine.files[3], other], check=True
        )
        machine.give_to_libvirt()
        virsh("attach-disk", "vm", other, "vdb", "--subdriver", "qcow2", "--live")
        done = keep(open_disk(machine, device="vda"), "s4.qcow2")
        assert names(done.deleted) == []
        assert machine.chain == list(reversed(machine.files))
        virsh("detach-disk", "vm", "vdb", "--live")


@pytest.mark.parametrize("how", ["begun", "ready", "aborted"])
def test_a_copy_that_fails_leaves_every_name_as_it_was(machine, open_disk, how):
    def fail(reached):
        if how == "aborted" and reached == "begun":
            virsh("blockjob", "vm", "vda", "--abort")
        elif reached == how:
            raise OperationError("the test says no")

    files, before, chain = everything(machine.images), machine.content(), machine.chain
    inodes = {path: path.stat().st_ino for path in machine.files}
    with pytest.raises(OperationError, match=r"the test says no|has ended before it was complete"):
        keep(open_disk(machine, after=fail), "s4.qcow2")
    assert everything(machine.images) == files
    assert {path: path.stat().st_ino for path in machine.files} == inodes
    assert machine.chain == chain
    assert machine.content() == before
    done = keep(open_disk(machine), "s4.qcow2")
    assert names(done.deleted) == ["s3.qcow2", "s2.qcow2", "s1.qcow2"]
    assert machine.content() == before


@pytest.mark.parametrize("when", ["before the swap", "after it"])
def test_a_snapshot_that_comes_meanwhile_wins(machine, open_disk, monkeypatch, when):
    name = "check_again" if when == "before the swap" else "reopen"
    original = getattr(DomainDisk, name)

    def late(disk):
        if when == "before the swap":
            original(disk)
        machine.snapshot("late", "--no-metadata")
        if when != "before the swap":
            original(disk)

    guest = Guest(machine)
    guest.io("write -P 9 1M 70k")
    guest.stop()
    before = machine.content()
    monkeypatch.setattr(DomainDisk, name, late)
    with pytest.raises(ChainliftError, match="is not the active layer of vda of domain vm any more"):
        keep(open_disk(machine), "s4.qcow2")
    monkeypatch.undo()
    late_one = machine.images / "late.qcow2"
    assert machine.chain == [late_one, *reversed(machine.files)]
    assert machine.content() == before
    keep(open_disk(machine), "disk.qcow2")
    assert machine.chain == [late_one, machine.files[-1], machine.files[0]]
    assert machine.content() == before


RUN = """
import os, signal, sys
from chainlift import Retention, prune
from chainlift.lift.domain import home
from chainlift.lift.domain.disk import DomainDisk
from chainlift.lift.domain.open import open_domain_disk
from chainlift.host.virsh import Domain
from chainlift.qemu.find import find_qemu
disk = open_domain_disk(Domain("vm"), qemu=find_qemu(need=["img", "storage-daemon"]))
step = sys.argv[1]
def reached(what):
    if what == step:
        os.kill(os.getpid(), signal.SIGKILL)
disk.after = reached
reopen = DomainDisk.reopen
def reopened(disk):
    reached("swapped")
    reopen(disk)
    reached("reopened")
DomainDisk.reopen = reopened
commit_back = home.commit_back
def committed(virsh, target):
    if step == "merging":
        virsh.tell("blockcommit", target, "--active", "--shallow")
        reached(step)
    return commit_back(virsh, target)
home.commit_back = committed
prune(disk, Retention(), keep=["s4.qcow2"])
"""


@pytest.mark.parametrize("restarted", [False, True], ids=["", "and the domain is started anew"])
@pytest.mark.parametrize(
    "step", ["swapped", pytest.param("set aside", marks=pytest.mark.long),
             pytest.param("begun", marks=pytest.mark.long), "used", "switched",
             pytest.param("merging", marks=pytest.mark.long), pytest.param("reopened", marks=pytest.mark.long)],
)  # fmt: skip
def test_a_run_that_is_killed_is_taken_up_by_the_next(machine, open_disk, step, restarted):
    # Its definition says what is below, and the next start believes that.
    machine.snapshot("one", "--no-metadata")
    contents = read_each(machine.files)
    guest = Guest(machine)
    done = subprocess.run([sys.executable, "-c", RUN, step], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (machine.images / "one.qcow2.prune.json").exists()
    for _ in range(10):
        guest.step()
    guest.stop()
    after = bytes(guest.model)
    assert machine.content() == after
    assert read_each(machine.files) == contents
    if restarted:
        machine.restart()
        assert machine.content() == after
    keep(open_disk(machine), "s4.qcow2", "disk.qcow2")
    assert machine.chain == [machine.images / "one.qcow2", machine.files[-1], machine.files[-2], machine.files[0]]
    # A copy that might have become the disk is not removed.
    left = {"one.lift2"} if (step, restarted) == ("used", True) else set()
    assert images(machine) == set(names(machine.chain)) | left
    assert held(machine.pid, machine.images) == set(names(machine.chain))
    assert machine.content() == after
    machine.restart()
    assert machine.content() == after


def test_clean_merges_what_a_killed_prune_has_left_over_the_disk(verb, machine):
    before = machine.content()
    done = subprocess.run([sys.executable, "-c", RUN, "switched"], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    overlay = machine.disk
    assert machine.chain == [overlay, machine.files[-1], machine.files[-2], machine.files[0]]
    said = verb("clean", "--libvirt", "vm")
    assert said.status == 0, said
    assert f"merged {overlay} into {machine.files[-1]}" in said.out
    assert machine.chain == [machine.files[-1], machine.files[-2], machine.files[0]]
    assert not list(machine.images.glob("disk.lift*"))
    assert machine.content() == before


def test_qemu_is_killed_while_libvirt_copies(machine, open_disk):
    def kill(what):
        if what == "begun":
            os.kill(machine.pid, signal.SIGKILL)
            while "shut off" not in virsh("domstate", "vm"):
                pass

    before, files = machine.content(), everything(machine.images)
    with pytest.raises(OperationError):
        keep(open_disk(machine, after=kill), "s4.qcow2")
    passing = machine.images / "disk.lift1"
    there = everything(machine.images)
    # Libvirt was asked to put it over the disk, and can merge it only while the domain runs.
    assert there.pop(passing.name)
    assert there == files
    virsh("start", "vm")
    assert machine.chain == [passing, *reversed(machine.files)]
    assert machine.content() == before
    keep(open_disk(machine), "s4.qcow2")
    assert machine.chain == [machine.files[-1], machine.files[-2], machine.files[0]]
    assert images(machine) == set(names(machine.chain))
    assert machine.content() == before
