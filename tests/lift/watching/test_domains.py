"""A watch over domains of a real libvirt."""

import os

import pytest
from tests.support.domain import Machine
from tests.support.json_schemas import valid
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.verbs import Verbs
from tests.support.watching import rules as rules_of
from tests.support.watching import wait_for, watching

from chainlift.lift.watching.metrics import as_prometheus
from chainlift.lift.watching.service import Settings, Watch
from chainlift.lift.watching.status import as_json
from chainlift.qemu.find import find_qemu

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


@pytest.fixture(scope="module")
def place():
    with running_libvirtd() as path:
        yield path


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """The state directory of the watch and of the verbs."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def rules(state, **more):
    return rules_of(state, qemu=find_qemu(need=["img", "storage-daemon"]), **more)


def once(settings):
    watch = Watch(settings)
    watch.run(once=True)
    return watch.status


def lengths(status):
    return {(disk.vm, disk.disk): disk.length for disk in status.disks.values()}


def test_a_domain_is_squashed_when_its_chain_is_too_long_and_libvirt_knows(place, state, capsys):
    with Machine(place, 6) as machine, Machine(place, 5, name="other vm") as other:
        before, files = machine.content(), machine.chain
        status = once(Settings(rules(state, max_length=6), domains=("*",)))
        assert lengths(status) == {("vm", "vda"): 2, ("other vm", "vda"): 6}
        assert status.troubles() == []
        assert other.chain[0] == other.files[-1]
        assert len(machine.chain) == 3
        assert [path.name for path in machine.chain[1:]] == ["squash-1.qcow2", "base.qcow2"]
        assert machine.definition(inactive=True).path == machine.disk
        assert machine.content() == before
        assert "tainted" not in machine.log
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "squash: " in line]
        assert "vm vda: squash: squashed, length 7, " in line
        assert f"image {files[0]}, lift {machine.chain[1]}, domain vm" in line
        # What is short is left alone, and counters go on.
        status = once(Settings(rules(state, max_length=6), domains=("*",)))
        assert lengths(status) == {("vm", "vda"): 2, ("other vm", "vda"): 6}
        (disk,) = [disk for disk in as_json(status)["disks"] if disk["vm"] == "vm"]
        assert (disk["socket"], disk["indexed"], disk["image"]) == ("domain vm", 1, str(machine.disk))
        metrics = as_prometheus(status)
        assert 'chainlift_indexed_total{socket="domain vm",vm="vm",disk="vda"} 1' in metrics
        assert 'chainlift_chain_length{socket="domain other vm",vm="other vm",disk="vda"} 6' in metrics
        assert "squash: " not in capsys.readouterr().err
        machine.restart()
        assert machine.content() == before


def test_only_the_domains_that_are_meant_are_looked_at_and_a_pause_holds(place, state, capsys):
    with Machine(place, 4, name="web-1") as machine, Machine(place, 4, name="db") as other, Verbs() as verb:
        chain, others = machine.chain, other.chain
        settings = Settings(rules(state, max_length=3), domains=("web-*",))
        assert verb("watch", "pause", "web-1").status == 0
        status = once(settings)
        assert [(disk.vm, disk.state) for disk in status.disks.values()] == [("web-1", "paused")]
        assert machine.chain == chain
        assert verb("watch", "resume", "web-1").status == 0
        assert lengths(once(settings)) == {("web-1", "vda"): 2}
        # Who takes the lift out again wants the disk left alone; so does who says it of an image.
        done = verb("restore", "--libvirt", "web-1")
        assert done.status == 0, done
        status = once(settings)
        (disk,) = status.disks.values()
        assert (disk.state, disk.length) == ("paused", 5)
        assert "web-1 vda: paused: restored by hand on " in capsys.readouterr().err
        # The mark goes along with a snapshot.
        machine.snapshot("later")
        (disk,) = once(settings).disks.values()
        assert (disk.state, disk.length, disk.image) == ("paused", 6, str(machine.disk))
        assert verb("watch", "resume", machine.disk).status == 0
        assert lengths(once(settings)) == {("web-1", "vda"): 2}
        assert other.chain == others


def test_what_a_job_of_libvirts_works_on_is_busy(place, state):
    with Machine(place, 4) as machine:
        target = machine.images / "copy.qcow2"
        virsh("blockcopy", "vm", "vda", "--dest", target, "--format", "qcow2", "--transient-job")
        status = once(Settings(rules(state, max_length=3), domains=("*",)))
        assert [disk.busy for disk in status.disks.values()] == ["libvirt runs a copy on it"]
        assert status.troubles() == ["vm vda"]
        virsh("blockjob", "vm", "vda", "--abort")
        assert once(Settings(rules(state, max_length=3), domains=("*",))).troubles() == []


def test_libvirt_s_events_bring_a_look_before_the_next_round(place, state, capsys):
    settings = Settings(rules(state, max_length=3), domains=("*",), interval_s=3600)
    with watching(settings) as watch:
        wait_for(lambda: watch.status.rounds == 1)
        with Machine(place, 4) as machine:

            def is_seen():
                # virsh may not have been listening yet when it was started.
                virsh("suspend", "vm")
                virsh("resume", "vm")
                return lengths(watch.status) == {("vm", "vda"): 2}

            # It is seen, and squashed, though the next round is an hour away.
            wait_for(is_seen)
            machine.snapshot("one")
            virsh("suspend", "vm")
            wait_for(lambda: lengths(watch.status) == {("vm", "vda"): 3})
            virsh("destroy", "vm")
            wait_for(lambda: not watch.status.vms)
        assert watch.status.rounds == 1
    said = capsys.readouterr().err
    assert "vm: answers: vda length 5, domain vm" in said
    assert "vm: does not run any more" in said


def test_a_libvirt_that_does_not_answer_is_told_and_its_domains_stay_known(state, capsys):
    with running_libvirtd() as place, Machine(place, 4), pytest.MonkeyPatch.context() as patch:
        settings = Settings(rules(state, max_length=9), domains=("*",), interval_s=1)
        with watching(settings) as watch:
            wait_for(lambda: lengths(watch.status) == {("vm", "vda"): 5})
            uri = os.environ["LIBVIRT_DEFAULT_URI"]
            patch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={place / 'run/nobody'}")
            wait_for(lambda: "libvirt" in watch.status.problems)
            assert lengths(watch.status) == {("vm", "vda"): 5}
            assert "libvirt" in watch.status.troubles()
            patch.setenv("LIBVIRT_DEFAULT_URI", uri)
            wait_for(lambda: "libvirt" not in watch.status.problems)
    said = capsys.readouterr().err
    assert said.count("libvirt: libvirt, list: ") == 1
    assert "libvirt: is well again" in said


def test_the_command_says_how_long_a_chain_libvirt_takes(place, state):
    with Machine(place, 4), Verbs() as verb:
        said = verb("watch", "--libvirt", os.environ["LIBVIRT_DEFAULT_URI"], "--max-length", "500", "--once")
        assert said.status == 0, said
        assert "--max-length 500 is too many: libvirt " in said.err
        assert [disk["length"] for disk in valid("watch", said.out)["disks"]] == [5]
        said = verb("watch", "--libvirt", "--domain", "nobody's", "--once")
        assert (said.status, valid("watch", said.out)["disks"]) == (0, [])
        assert verb("watch", "--domain", "vm", "--qmp", "/none", "--once").status == 2
