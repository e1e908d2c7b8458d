"""Steps of other people with libvirt's block jobs, checkpoints and backups."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.neighbours import oracle
from tests.neighbours.libvirt_steps import Administrators
from tests.neighbours.machine import Base, choice, runs, step
from tests.support.stock import img, read

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.neighbours.domains import Domain

CHECKPOINT = "<domaincheckpoint><name>{name}</name></domaincheckpoint>"
BACKUP = """<domainbackup>{since}<disks><disk name='vda' type='file'>
<target file='{target}'/><driver type='qcow2'/></disk></disks></domainbackup>"""


def has_checkpoint(machine: Base) -> bool:
    """Whether a domain that runs has a checkpoint."""
    return any(domain.checkpoints for domain in machine.running)


class BlockJobs(Administrators):
    """Jobs that change what a disk stands on."""

    @step(when=runs, weight=3, which=choice, top=choice, base=choice, active=(False, False, True))
    def commit(self, which, top, base, active):
        domain = self._running(which)
        layers = domain.layers()
        number = 0 if active else 1 + top % max(1, len(layers) - 1)
        if number + 1 >= len(layers):
            return
        below = layers[number + 1 + base % (len(layers) - number - 1)]
        words = ["--active", "--pivot"] if active else ["--top", layers[number]]
        self._job("blockcommit", domain, *words, "--base", below, "--wait")

    @step(when=runs, which=choice, base=choice)
    def pull(self, which, base):
        domain = self._running(which)
        layers = domain.layers()
        words = ["--base", layers[1 + base % (len(layers) - 1)]] if base % 2 and len(layers) > 1 else []
        self._job("blockpull", domain, *words, "--wait")

    @step(when=runs, which=choice, name=choice, shallow=(False, True))
    def copy(self, which, name, shallow):
        """Move the disk to a copy: of all, or of the active layer."""
        domain, target = self._running(which), self._new_name(name)
        if self.is_full():
            return
        how = ["--shallow"] if shallow else []
        self._job("blockcopy", domain, target, *how, "--format", "qcow2", "--transient-job", "--wait", "--pivot")

    def _job(self, kind: str, domain: Domain, *words: object) -> None:
        said = self.world.virsh(kind, domain.name, "vda", *words)
        self.world.count(f"others: {kind}" if said else f"others: {kind} that fails")
        if not said:
            self.world.virsh("blockjob", domain.name, "vda", "--abort")
            # A layer that another domain has open is not written to.
            if "lock" not in said.error:
                self.judge_failure(kind, domain, said.error)
        domain.look_again()
        for other in self.world.domains:
            # What they have in common may have been written to while they were shut off.
            if other not in self.running:
                other.may_read_other_bytes = True


class Backups(Administrators):
    """Checkpoints, and backups whose content is checked."""

    def _checkpoint(self, number: int) -> tuple[Domain, str]:
        found = [(domain, name) for domain in self.running for name in sorted(domain.checkpoints)]
        return found[number % len(found)]

    @step(when=runs, weight=2, which=choice)
    def create_checkpoint(self, which):
        self.check(self._running(which))

    def check(self, domain: Domain) -> None:
        """Make a checkpoint."""
        name = f"c{len(self.world.script)}"
        said = self.world.virsh_with(CHECKPOINT.format(name=name), "checkpoint-create", domain.name)
        self.world.count("others: checkpoint-create" if said else "others: checkpoint-create that fails")
        if said:
            domain.checkpoints[name] = bytes(domain.expected)
        else:
            self.judge_failure("checkpoint-create", domain, said.error)

    @step(when=has_checkpoint, checkpoint=choice, metadata=(False, False, True))
    def delete_checkpoint(self, checkpoint, metadata):
        domain, name = self._checkpoint(checkpoint)
        said = self.world.virsh("checkpoint-delete", domain.name, name, *(["--metadata"] if metadata else []))
        self.world.count("others: checkpoint-delete" if said else "others: checkpoint-delete that fails")
        if said:
            del domain.checkpoints[name]
            if metadata:
                # What was written between it and the one before is in its bitmap, of which libvirt knows no more.
                domain.checkpoints = dict.fromkeys(domain.checkpoints)

    @step(when=has_checkpoint, weight=5, checkpoint=choice)
    def back_up(self, checkpoint):
        self.back_up_since(*self._checkpoint(checkpoint))

    def back_up_since(self, domain: Domain, name: str) -> None:
        """Make an incremental backup: over what the disk was at its checkpoint, it reads what the disk is now."""
        base = domain.checkpoints[name]
        with self._backup(domain, f"<incremental>{name}</incremental>") as target:
            if target is None or base is None:
                return
            below = self.world.daemon.path / "below.raw"
            below.write_bytes(base)
            img("rebase", "-u", "-f", "qcow2", "-b", below, "-F", "raw", target)
            if read(target) != domain.expected:
                oracle.fail(self.world, f"backup-begin: what was written since {name} is not in the backup of {domain}")

    @step(when=runs, weight=2, which=choice, checked=(False, True, True))
    def back_up_all(self, which, checked):
        """Make a full backup, mostly with a checkpoint that the next one begins at."""
        domain, name = self._running(which), f"c{len(self.world.script)}"
        more = ["--checkpointxml", self.world.write("checkpoint.xml", CHECKPOINT.format(name=name))] if checked else []
        with self._backup(domain, "", *more) as target:
            if target is None:
                return
            if read(target) != domain.expected:
                oracle.fail(self.world, f"backup-begin: the full backup of {domain} reads other bytes than its disk")
            if checked:
                domain.checkpoints[name] = bytes(domain.expected)

    @contextmanager
    def _backup(self, domain: Domain, since: str, *more: object) -> Iterator[Path | None]:
        """Make a backup; None where libvirt makes none."""
        kind = "incremental backup" if since else "full backup"
        target = self.world.root / "backup"
        text = BACKUP.format(since=since, target=target)
        said = self.world.virsh("backup-begin", domain.name, *more, "--backupxml", self.world.write("some.xml", text))
        error = self.world.wait_for_backup(domain) if said else said.error
        self.world.count(f"others: {kind} that fails" if error else f"others: {kind}")
        try:
            # Of bitmaps that are gone or not whole nobody makes a backup.
            if error and (not since or None not in domain.checkpoints.values()):
                self.judge_failure("backup-begin", domain, error)
            yield None if error else target
        finally:
            target.unlink(missing_ok=True)
