"""One visit to one VM, in a thread of its own: a look, and then what is to be done, one disk after the other.

Nothing is kept here but in messages to the watch's main loop, which alone knows and writes: whoever hangs holds nobody
up, and nothing needs a lock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.errors import ChainliftError
from chainlift.host.virsh import Domain
from chainlift.lift.prune.verb import unwanted
from chainlift.lift.record.mark import write_mark
from chainlift.lift.watching.acting import SQUASHED_LENGTH, Acted, lift_disk
from chainlift.lift.watching.domains import look_at_domain
from chainlift.lift.watching.looking import Look, SeenDisk, look_at_vm
from chainlift.lift.watching.pauses import Pauses, read_pauses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event, Semaphore

    from chainlift.lift.prune.retention import Policy
    from chainlift.lift.watching.where import Where
    from chainlift.qemu.binary import Qemu

_POLL_S = 0.5


@dataclass(frozen=True)
class Rules:
    """How a VM is cared for."""

    #: Layers over the base, or over an index, that are still well.
    max_length: int
    copy_budget_bytes: int | None
    #: How long to wait for a socket to be free, and for the answer to each command; None: 10 and 120 s.
    timeout_s: float | None
    #: Of pauses and marks.
    state_directory: Path
    #: Whose storage daemon compares; None compares nothing.
    qemu: Qemu | None
    #: Squashes copy at most so fast; None: as fast as it goes.
    rate_bytes_per_s: int | None = None
    #: Delete the snapshots that this does not keep, instead of lifting what is too long.
    policy: Policy | None = None

    def longest(self, where: Where) -> int:
        """Return how long a chain may be there: a squash leaves two layers over the base."""
        return max(self.max_length, SQUASHED_LENGTH) if isinstance(where, Domain) else self.max_length


@dataclass(frozen=True)
class Silent:
    """The VM could not be asked."""

    where: Where
    error: str


@dataclass(frozen=True)
class Looked:
    """What was seen, and for each disk why it is to be left alone (None: it is not)."""

    where: Where
    look: Look
    paused: list[str | None]
    #: Whether something is to be done to it.
    due: list[bool]
    took_s: float


@dataclass(frozen=True)
class Began:
    """A disk is being lifted."""

    where: Where
    disk: SeenDisk


@dataclass(frozen=True)
class Ended:
    """A disk was lifted, or not."""

    where: Where
    disk: SeenDisk
    acted: Acted


@dataclass(frozen=True)
class Unreadable:
    """What was said of pauses cannot be read: nothing is done."""

    error: str


@dataclass(frozen=True)
class Done:
    """The visit is over."""

    where: Where


Message = Silent | Looked | Began | Ended | Unreadable | Done


def visit(
    where: Where,
    rules: Rules,
    *,
    tell: Callable[[Message], None],
    ends: Event,
    slots: Semaphore,
    waits: Callable[[Where, SeenDisk], bool],
    kept_back: Callable[[Where, SeenDisk], frozenset[str]],
) -> None:
    """Look at a VM, and do what is due to its disks. Never raises.

    :param tell: takes what happens.
    :param ends: set when the watch is to end.
    :param slots: so many disks are lifted at a time.
    :param waits: whether a disk is to be tried later, because the last attempt failed.
    :param kept_back: a disk's snapshots that somebody needed when it was pruned last.
    """
    try:
        _visit(where, rules, tell=tell, ends=ends, slots=slots, waits=waits, kept_back=kept_back)
    except ChainliftError as error:
        tell(Silent(where, str(error)))
    except OSError as error:
        tell(Silent(where, f"{error.filename or where}: {error.strerror or error}"))
    except Exception as error:  # noqa: BLE001 - other VMs are to be looked after
        tell(Silent(where, f"{where}: {type(error).__name__}: {error}"))
    finally:
        tell(Done(where))


def _visit(
    where: Where,
    rules: Rules,
    *,
    tell: Callable[[Message], None],
    ends: Event,
    slots: Semaphore,
    waits: Callable[[Where, SeenDisk], bool],
    kept_back: Callable[[Where, SeenDisk], frozenset[str]],
) -> None:
    began = time.monotonic()
    look = _look(where, rules)
    due = [_is_due(where, disk, rules, kept_back(where, disk)) for disk in look.disks]
    took_s = time.monotonic() - began
    pauses = _pauses(rules, tell)
    reasons = [_reason(pauses, disk, where, look) for disk in look.disks]
    tell(Looked(where, look, reasons, due, took_s))
    if pauses is not None:
        for disk in look.disks:
            _keep_mark(disk, where, look, pauses, rules)
    for disk, paused, is_due in zip(look.disks, reasons, due, strict=True):
        if not is_due or paused or disk.busy or waits(where, disk):
            continue
        if not _take(slots, ends):
            return
        try:
            now = _pauses(rules, tell)
            if now is None or now.of_vm(where, look.vm.name) is not None:
                continue
            tell(Began(where, disk))
            acted = lift_disk(
                where,
                disk,
                directory=rules.state_directory,
                is_paused=lambda mark, now=now: now.counts(mark, where, look.vm.name),  # type: ignore[misc]
                ends=ends.is_set,
                copy_budget_bytes=rules.copy_budget_bytes,
                rate_bytes_per_s=rules.rate_bytes_per_s,
                policy=rules.policy,
                qemu=rules.qemu,
                timeout_s=rules.timeout_s,
            )
            tell(Ended(where, disk, acted))
        finally:
            slots.release()


def _look(where: Where, rules: Rules) -> Look:
    if isinstance(where, Domain):
        return look_at_domain(where, rules.state_directory)
    return look_at_vm(where, rules.state_directory, timeout_s=rules.timeout_s)


def _is_due(where: Where, disk: SeenDisk, rules: Rules, kept_back: frozenset[str]) -> bool:
    """Whether a disk's chain is too long or, with a policy, has snapshots that nothing keeps.

    What somebody needed the last time alone is not tried again: another snapshot that goes is.
    """
    if rules.policy is None:
        return disk.length > rules.longest(where)
    try:
        with open_chain(disk.image) as chain:
            found = unwanted(chain, rules.policy.retention, rules.policy.only)
    except ChainliftError:  # told by the attempt
        return True
    return not kept_back.issuperset(map(str, found))


def _take(slots: Semaphore, ends: Event) -> bool:
    """Wait for a slot; False where the watch ends before there is one."""
    while not slots.acquire(timeout=_POLL_S):
        if ends.is_set():
            return False
    if ends.is_set():
        slots.release()
        return False
    return True


def _pauses(rules: Rules, tell: Callable[[Message], None]) -> Pauses | None:
    try:
        return read_pauses(rules.state_directory)
    except ChainliftError as error:
        tell(Unreadable(str(error)))
        return None


def _reason(pauses: Pauses | None, disk: SeenDisk, where: Where, look: Look) -> str | None:
    if pauses is None:
        return "it cannot be read what is paused"
    return pauses.of_disk(disk, where, look.vm.name)


def _keep_mark(disk: SeenDisk, where: Where, look: Look, pauses: Pauses, rules: Rules) -> None:
    """Have the mark on the active layer, for this VM: a snapshot puts another file there, a restart another process."""
    if disk.mark is None or not disk.mark[0].is_paused:
        return
    mark, depth = disk.mark
    wanted = replace(mark, vm=look.vm.identity)
    if not pauses.counts(mark, where, look.vm.name):
        wanted = replace(wanted, is_paused=False, at_s=time.time())
    if depth or wanted != mark:
        with suppress(OSError):
            write_mark(disk.image, wanted, rules.state_directory)
