"""Lifts and restores under a guest's I/O, with libvirt's snapshots, block jobs, checkpoints and backups in between."""

import random

import pytest
from tests.support.domain import Guest, Machine, rebuilt
from tests.support.libvirt import virsh

from chainlift.errors import AnswerIsNo, ImageError
from chainlift.lift import verbs

pytestmark = [pytest.mark.integration, pytest.mark.no_cover, pytest.mark.needs("libvirt")]


class Rounds:
    """A domain that many people work on."""

    def __init__(self, machine, open_disk, guest, seed):
        self.machine, self.open_disk, self.guest = machine, open_disk, guest
        self.random = random.Random(seed)
        self.snapshots = 0
        self.done = {}
        with guest.paused():
            machine.checkpoint("cp0")
            self.backups = [machine.backup("full.qcow2")]

    def squash(self):
        if len(self.machine.chain) < 3:
            self.snapshot()
        if len(self.machine.chain) < 3:
            self.snapshot()
        verbs.squash(self.open_disk(self.machine, much_bytes=self.random.choice([0, 1 << 40])), clean=True)

    def restore(self):
        try:
            verbs.restore(self.open_disk(self.machine), clean=self.random.random() < 0.5)
        except (ImageError, AnswerIsNo) as error:
            # libvirt has merged the guest's writes into the squash: it is a layer like any other then.
            assert self.done.get("commit"), error
            assert "is not lifted" in str(error) or "reads differently" in str(error)

    def snapshot(self):
        self.snapshots += 1
        self.machine.snapshot(f"snapshot-{self.snapshots}", "--no-metadata")

    def commit(self):
        if len(self.machine.chain) > 2:
            virsh("blockcommit", "vm", "vda", "--active", "--shallow", "--pivot", "--wait")

    def commit_below(self):
        chain = self.machine.chain
        if len(chain) > 3:
            virsh("blockcommit", "vm", "vda", "--top", chain[1], "--base", chain[2], "--wait")

    def backup(self):
        with self.guest.paused():
            since = len(self.backups) - 1
            backup = self.machine.backup(f"backup-{since}.qcow2", since=f"cp{since}")
            self.backups.append(backup)
            self.machine.checkpoint(f"cp{since + 1}")
            assert rebuilt(*self.backups) == bytes(self.guest.model)

    def one(self):
        for step in (self.squash, self.restore):
            for other in self.random.sample([self.snapshot, self.commit, self.commit_below, self.backup], 2):
                other()
                self.done[other.__name__] = self.done.get(other.__name__, 0) + 1
            step()
            with self.guest.paused():
                assert self.machine.content() == bytes(self.guest.model)


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_what_the_guest_wrote_is_there_whatever_others_do(place, open_disk, rounds, record_property):
    with Machine(place) as machine:
        guest = Guest(machine)
        with guest:
            work = Rounds(machine, open_disk, guest, seed=rounds)
            for _ in range(rounds):
                work.one()
        guest.verify(machine)
        machine.restart()
        guest.verify(machine)
        record_property("lifts of a domain", f"{rounds} and back, {guest.requests} requests, {work.done}")
