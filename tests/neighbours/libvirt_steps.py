"""Steps of other people with libvirt: what an administrator, a manager or a backup tool does with virsh."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hypothesis.stateful import invariant
from tests.neighbours import oracle
from tests.neighbours.domains import DEFINITION, STORE, Domain, LibvirtWorld
from tests.neighbours.machine import Base, choice, runs, step
from tests.neighbours.others import NAMES
from tests.neighbours.world import pick

if TYPE_CHECKING:
    from pathlib import Path


def at_rest(machine: Base) -> bool:
    """Whether a domain is shut off."""
    return len(machine.running) < len(machine.world.domains)


class Administrators(Base):
    """What others do with domains."""

    world: LibvirtWorld

    def _running(self, which: int) -> Domain:
        return self.running[which % len(self.running)]

    def _at_rest(self, which: int, *, defined: bool = True) -> Domain | None:
        found = [d for d in self.world.domains if d not in self.running and d.is_defined is defined]
        return found[which % len(found)] if found else None

    def _new_name(self, number: int) -> Path:
        pool = self.world.root / "pool"
        free = [pool / each for each in NAMES if not os.path.lexists(pool / each)]
        return pick(free or [pool / f"one more {len(self.world.script)}.qcow2"], number)

    @invariant()
    def all_live(self):
        for domain in self.running:
            if not domain.is_alive:
                self.running.remove(domain)
                try:
                    oracle.fail(self.world, f"QEMU has ended: {domain}", domain.said())
                except oracle.KnownViolation:
                    self.is_over = True
                return

    def must_not_fail(self, what: str, domain: Domain, error: str) -> None:
        oracle.fail(self.world, f"{what}: it fails after verbs of ours: {domain} ({error})", domain.said())

    def judge_failure(self, what: str, domain: Domain, error: str) -> None:
        """Judge what has failed: from the first start after a verb of ours on, it works as it did before."""
        if domain.is_touched and not domain.is_lifted_live and not domain.was_killed:
            self.must_not_fail(what, domain, error)

    @step(when=at_rest, weight=4, which=choice)
    def start(self, which):
        if (domain := self._at_rest(which)) is not None:
            self.start_domain(domain)

    def start_domain(self, domain: Domain) -> None:
        """Start it; that it does not start is nobody's fault but that of a verb that was made to go on."""
        said = self.world.virsh("start", domain.name, "--paused")
        self.world.count("others: start" if said else "others: start that fails")
        if not said:
            # A layer that another domain writes to, after an active commit, is not opened.
            is_over_index = (self.world.is_forced or domain.is_over_index) and self.world.indexes()
            if not is_over_index and not ("lock" in said.error and self.running):
                self.must_not_fail("start", domain, said.error)
            return
        self.running.append(domain)
        domain.is_saved = False
        domain.begin()
        content = domain.read()
        if domain.expected is not None and content != domain.expected:
            if not domain.may_read_other_bytes:
                oracle.fail(self.world, f"start: {domain} reads other bytes than before it was shut off")
            domain.checkpoints = dict.fromkeys(domain.checkpoints)
        domain.expected = bytearray(content)
        domain.may_read_other_bytes = False

    @step(when=runs, which=choice)
    def destroy(self, which):
        self.destroy_domain(self._running(which))

    def destroy_domain(self, domain: Domain) -> None:
        """End it; QEMU closes its images in good order."""
        said = self.world.virsh("destroy", domain.name)
        assert said, f"{said.error}\n{domain.said()}\n{self.world.tell()}"
        self._ended(domain)
        self.world.count("others: destroy")

    @step(when=runs, weight=2, which=choice)
    def kill(self, which):
        domain = self._running(which)
        self.world.kill(domain)
        self._ended(domain)
        domain.was_killed |= bool(domain.checkpoints)
        domain.checkpoints = dict.fromkeys(domain.checkpoints)
        self.world.count("others: kill -9")

    def _ended(self, domain: Domain) -> None:
        self.running.remove(domain)
        domain.image = domain.definition()[0]

    @step(when=runs, which=choice)
    def managedsave(self, which):
        domain = self._running(which)
        if self.world.virsh("managedsave", domain.name):
            self._ended(domain)
            domain.is_saved = True
            self.world.count("others: managedsave")
        else:
            self.world.count("others: managedsave that fails")

    @step()
    def restart_libvirtd(self):
        self.world.script.append("kill $(pidof libvirtd); libvirtd &")
        self.world.restart()
        self.world.count("others: restart libvirtd")

    @step(when=at_rest, weight=2, which=choice, described=(False, True))
    def define(self, which, described):
        """Define it again, by hand or by a tool; with what the headers say, or with nothing of it."""
        # What was saved is what starts, with the disk that it had then.
        if (domain := self._at_rest(which, defined=which % 2 == 0)) is not None and not domain.is_saved:
            self.define_domain(domain, described=described)

    def define_domain(self, domain: Domain, *, described: bool) -> None:
        below, backing = self.world.chain(domain.image), "<backingStore/>"
        domain.is_over_index = any(name.startswith("json:") for name in below)
        described = described and not domain.is_over_index
        for name in reversed(below):
            backing = STORE.format(format="raw" if name.endswith(".raw") else "qcow2", path=name, backing=backing)
        text = DEFINITION.format(name=domain.name, image=domain.image, backing=backing if described else "")
        # A definition under an old name must have the old identity.
        identity = self.world.virsh("domuuid", domain.name).text if domain.is_defined else ""
        text = text.replace("</name>", f"</name><uuid>{identity}</uuid>") if identity else text
        said = self.world.virsh_with(text, "define")
        assert said, said.error
        domain.is_defined = True
        self.world.count(f"others: define {'with' if described else 'without'} backingStore")

    @step(when=at_rest, which=choice)
    def undefine(self, which):
        domain = self._at_rest(which)
        if domain is None:
            return
        parts = ("--snapshots-metadata", "--checkpoints-metadata", "--managed-save")
        said = self.world.virsh("undefine", domain.name, *parts)
        assert said, said.error
        domain.is_defined = domain.is_saved = domain.was_killed = False
        domain.checkpoints.clear()
        domain.snapshots.clear()
        self.world.count("others: undefine")

    @step(weight=3, which=choice, name=choice)
    def snapshot(self, which, name):
        domain = self.world.domains[which % len(self.world.domains)]
        if self.is_full() or not domain.is_defined or domain.is_saved:
            return
        overlay = self._new_name(name)
        called = f"s{len(self.world.script)}"
        spec = f"vda,file={overlay}"
        said = self.world.virsh("snapshot-create-as", domain.name, called, "--disk-only", "--diskspec", spec)
        state = "" if domain in self.running else " at rest"
        self.world.count(f"others: snapshot-create-as{state}" if said else f"others: snapshot{state} that fails")
        if said:
            domain.snapshots.append(called)
            domain.image = overlay
        # libvirt takes no snapshot at rest of a disk with checkpoints.
        elif not self.may_fail_at_rest(domain) and "checkpoint exists" not in said.error:
            self.must_not_fail("snapshot-create-as", domain, said.error)

    def may_fail_at_rest(self, domain: Domain) -> bool:
        """Whether libvirt cannot read the chain of a domain that is shut off: its index is there by force."""
        return domain not in self.running and self.world.is_forced and bool(self.world.indexes())

    @step(which=choice, snapshot=choice)
    def delete_snapshot(self, which, snapshot):
        domain = self.world.domains[which % len(self.world.domains)]
        if not domain.snapshots:
            return
        name = domain.snapshots.pop(snapshot % len(domain.snapshots))
        said = self.world.virsh("snapshot-delete", domain.name, name, "--metadata")
        self.world.count("others: snapshot-delete --metadata" if said else "others: snapshot-delete that fails")
        if not said:
            self.must_not_fail("snapshot-delete", domain, said.error)

    @step(when=runs, weight=4, which=choice, block=range(256), blocks=[1, 16, 40], pattern=range(1, 256))
    def guest_writes(self, which, block, blocks, pattern):
        self.write(self._running(which), block, blocks, pattern)

    def write(self, domain: Domain, block: int, blocks: int, pattern: int) -> None:
        """Have the guest write blocks of 4 KiB, and flush."""
        size = len(domain.expected)
        offset = block * 4096 % (size // 4096 * 4096)
        length = min(blocks * 4096, size // 4096 * 4096 - offset)
        self.world.script.append(
            f"virsh qemu-monitor-command {domain} --hmp 'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "
            f'"write -P {pattern} {offset} {length}"\''
        )
        domain.write(pattern, offset, length)
        assert domain.read() == domain.expected, f"what the guest wrote is not there\n{self.world.tell()}"
        self.world.count("others: a guest writes")

    @step(which=choice)
    def look_at_disks(self, which):
        """What libvirt says is the disk is what QEMU has open, or what the next start will."""
        domain = self.world.domains[which % len(self.world.domains)]
        if not domain.is_defined:
            return
        said = self.world.virsh("domblklist", domain.name)
        assert said, said.error
        self.world.count("others: domblklist")
        named = said.text.split("\n")[-1].split(maxsplit=1)[1]
        if named != str(domain.image):
            oracle.fail(self.world, f"domblklist: {domain} has {domain.image}, and libvirt says {named}")

    @step(image=choice, name=choice)
    def clone(self, image, name):
        """Make a linked clone, of which no domain knows."""
        target = self.world.root / "clones" / NAMES[name % len(NAMES)]
        if (below := self.image(image)) is not None and not self.is_full() and not os.path.lexists(target):
            self.others("create", "qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", target)
