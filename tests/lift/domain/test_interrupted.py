"""Whatever ends in the middle of a lift (chainlift, libvirtd, QEMU): the domain is as before, or on the lift."""

import os
import signal
import subprocess
import sys
import threading
from itertools import product

import pytest
from tests.support.domain import Guest
from tests.support.libvirt import libvirtd_of, virsh
from tests.support.stock import read

from chainlift.errors import OperationError
from chainlift.lift import verbs

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]
STEPS = ["overlay", "begun", "ready", "used", "switched"]


def some_of(cases, *always):
    """All cases in a long run, else some."""
    return [case if case in always else pytest.param(*_as_tuple(case), marks=pytest.mark.long) for case in cases]


def _as_tuple(case):
    return case if isinstance(case, tuple) else (case,)


RUN = """
import os, signal, sys
from chainlift.lift import verbs
from chainlift.lift.domain.open import open_domain_disk
from chainlift.host.virsh import Domain
from chainlift.qemu.find import find_qemu
verb, step, much = sys.argv[1:]
disk = open_domain_disk(Domain("vm"), qemu=find_qemu(need=["img", "storage-daemon"]))
disk.much_bytes = int(much)
disk.after = lambda what: os.kill(os.getpid(), signal.SIGKILL) if what == step else None
getattr(verbs, verb)(disk)
"""


def killed(verb, step, much=1 << 40):
    done = subprocess.run([sys.executable, "-c", RUN, verb, step, str(much)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def files(machine):
    return {str(path.relative_to(machine.images)) for path in machine.images.rglob("*") if path.suffix != ".xml"}


@pytest.mark.parametrize(
    ("step", "how"),
    some_of(product(STEPS, ["clean", "again"]), ("overlay", "again"), ("begun", "clean"), ("used", "again")),
)
def test_chainlift_is_killed_while_it_squashes(verb, machine, step, how):
    there, chain = files(machine), machine.chain
    guest = Guest(machine)
    killed("squash", step)
    for _ in range(10):
        guest.step()
    guest.stop()
    assert machine.content() == bytes(guest.model)
    if step != "switched":
        assert machine.chain == chain
    if how == "clean":
        said = verb("clean", "--libvirt", "vm")
        assert said.status == 0, said
        if step == "switched":
            assert "nothing to put in order" in said.out
        else:
            assert machine.chain == chain
            assert files(machine) == there
    else:
        said = verb("squash", "--libvirt", "vm")
        assert said.status == 0, said
        assert len(machine.chain) == 3
    assert machine.definition().mirror is None
    assert machine.content() == bytes(guest.model)


@pytest.mark.parametrize("step", some_of(STEPS, "begun", "used"))
def test_chainlift_is_killed_while_it_restores(verb, machine, step):
    before = machine.content()
    assert verb("squash", "--libvirt", "vm").status == 0
    overlay = machine.snapshot("later", "--no-metadata")
    there = files(machine)
    killed("restore", step)
    said = verb("clean", "--libvirt", "vm")
    assert said.status == 0, said
    if step != "switched":
        assert files(machine) == there
        assert machine.disk == overlay
        assert verb("restore", "--libvirt", "vm").status == 0
    assert machine.chain[2:] == list(reversed(machine.files[:-1]))
    assert machine.content() == before


@pytest.mark.parametrize("step", ["set aside", "begun"])
def test_chainlift_is_killed_after_its_snapshot(verb, machine, step):
    guest = Guest(machine)
    guest.io("write -P 7 0 3M")
    guest.stop()
    before, there, chain = machine.content(), files(machine), machine.chain
    killed("squash", step, 1 << 20)
    said = verb("clean", "--libvirt", "vm")
    assert said.status == 0, said
    assert "merged" in said.out
    assert machine.chain == chain
    assert files(machine) == there
    assert machine.content() == before


def test_clean_touches_no_monitor_that_nobody_has_used(verb, machine):
    virsh("suspend", "vm")
    assert verb("squash", "--libvirt", "vm").status == 0
    assert verb("clean", "--libvirt", "vm").status == 0
    assert "tainted" not in machine.log
    virsh("resume", "vm")


def test_a_job_of_somebody_elses_is_no_leftover(verb, machine):
    other = machine.images / "disk.lift1"
    virsh("blockcopy", "vm", "vda", other, "--transient-job", "--wait")
    said = verb("clean", "--libvirt", "vm")
    assert said.status == 0, said
    assert machine.definition().mirror.path == str(other)
    virsh("blockjob", "vm", "vda", "--abort")


@pytest.mark.interrupts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_undoes_what_was_begun(machine, number):
    before, there, chain = machine.content(), files(machine), machine.chain
    run = RUN.replace("signal.SIGKILL", f"signal.Signals({int(number)})")
    run = run.replace("verb, step", "from chainlift.host import interrupts; interrupts.install()\nverb, step")
    done = subprocess.run([sys.executable, "-c", run, "squash", "begun", str(1 << 40)], capture_output=True, text=True)
    assert "Interrupted" in done.stderr
    assert machine.chain == chain
    assert machine.definition().mirror is None
    assert files(machine) == there
    assert machine.content() == before


@pytest.mark.parametrize(
    ("step", "number"),
    some_of(product(STEPS, [signal.SIGTERM, signal.SIGKILL]), ("begun", signal.SIGTERM), ("used", signal.SIGKILL)),
)
def test_libvirtd_is_restarted(place, machine, open_disk, step, number):
    before, there, chain = machine.content(), files(machine), machine.chain
    daemon = libvirtd_of(place)

    def restart(what):
        if what == step:
            daemon.stop(number)
            starter.start()

    starter = threading.Timer(0.3, daemon.start)
    disk = open_disk(machine, after=restart)
    try:
        verbs.squash(disk)
    except OperationError:
        assert machine.chain == chain
        assert files(machine) == there
        verbs.squash(open_disk(machine))
    starter.join()
    assert len(machine.chain) == 3
    assert machine.definition(inactive=True).path == machine.disk
    assert machine.content() == before
    machine.restart()
    assert machine.content() == before


@pytest.mark.parametrize("step", some_of(STEPS[:-1], "begun", "used"))
def test_qemu_is_killed(machine, open_disk, step):
    before = machine.content()

    def kill(what):
        if what == step:
            os.kill(machine.pid, signal.SIGKILL)
            while "shut off" not in virsh("domstate", "vm"):
                pass

    with pytest.raises(OperationError):
        verbs.squash(open_disk(machine, after=kill))
    assert sorted(path.name for path in machine.images.glob("disk.lift*")) == []
    assert machine.definition(inactive=True).path == machine.files[-1]
    virsh("start", "vm")
    assert machine.content() == before
    verbs.squash(open_disk(machine))
    assert read(machine.disk) == before
