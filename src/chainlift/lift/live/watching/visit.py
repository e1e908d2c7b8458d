"""One visit to one VM, in a thread of its own: a look, and then what is to be done, one disk after the other.

Nothing is kept here but in messages to the watch's main loop, which alone knows and writes: whoever hangs holds nobody
up, and nothing needs a lock.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError
from chainlift.lift.live.watching.acting import Acted, index_disk
from chainlift.lift.live.watching.looking import Look, SeenDisk, look_at_vm
from chainlift.lift.live.watching.pauses import Pauses, read_pauses
from chainlift.lift.record.mark import write_mark

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from threading import Event, Semaphore

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


@dataclass(frozen=True)
class Silent:
    """The VM could not be asked."""

    socket: Path
    error: str


@dataclass(frozen=True)
class Looked:
    """What was seen, and for each disk why it is to be left alone (None: it is not)."""

    socket: Path
    look: Look
    paused: list[str | None]
    took_s: float


@dataclass(frozen=True)
class Began:
    """A disk is being indexed."""

    socket: Path
    disk: SeenDisk


@dataclass(frozen=True)
class Ended:
    """A disk was indexed, or not."""

    socket: Path
    disk: SeenDisk
    acted: Acted


@dataclass(frozen=True)
class Unreadable:
    """What was said of pauses cannot be read: nothing is done."""

    error: str


@dataclass(frozen=True)
class Done:
    """The visit is over."""

    socket: Path


Message = Silent | Looked | Began | Ended | Unreadable | Done


def visit(
    socket: Path,
    rules: Rules,
    *,
    tell: Callable[[Message], None],
    ends: Event,
    slots: Semaphore,
    waits: Callable[[Path, SeenDisk], bool],
) -> None:
    """Look at a VM, and index its disks that are too long. Never raises.

    :param tell: takes what happens.
    :param ends: set when the watch is to end.
    :param slots: so many disks are indexed at a time.
    :param waits: whether a disk is to be tried later, because the last attempt failed.
    """
    try:
        _visit(socket, rules, tell=tell, ends=ends, slots=slots, waits=waits)
    except ChainliftError as error:
        tell(Silent(socket, str(error)))
    except OSError as error:
        tell(Silent(socket, f"{error.filename or socket}: {error.strerror or error}"))
    except Exception as error:  # noqa: BLE001 - other VMs are to be looked after
        tell(Silent(socket, f"{socket}: {type(error).__name__}: {error}"))
    finally:
        tell(Done(socket))


def _visit(
    socket: Path,
    rules: Rules,
    *,
    tell: Callable[[Message], None],
    ends: Event,
    slots: Semaphore,
    waits: Callable[[Path, SeenDisk], bool],
) -> None:
    began = time.monotonic()
    look = look_at_vm(socket, rules.state_directory, timeout_s=rules.timeout_s)
    took_s = time.monotonic() - began
    pauses = _pauses(rules, tell)
    reasons = [_reason(pauses, disk, socket, look) for disk in look.disks]
    tell(Looked(socket, look, reasons, took_s))
    if pauses is not None:
        for disk in look.disks:
            _keep_mark(disk, socket, look, pauses, rules)
    for disk, paused in zip(look.disks, reasons, strict=True):
        if disk.length <= rules.max_length or paused or disk.busy or waits(socket, disk):
            continue
        if not _take(slots, ends):
            return
        try:
            now = _pauses(rules, tell)
            if now is None or now.of_vm(socket, look.vm.name) is not None:
                continue
            tell(Began(socket, disk))
            acted = index_disk(
                socket,
                disk,
                directory=rules.state_directory,
                is_paused=lambda mark, now=now: now.counts(mark, socket, look.vm.name),  # type: ignore[misc]
                ends=ends.is_set,
                copy_budget_bytes=rules.copy_budget_bytes,
                qemu=rules.qemu,
                timeout_s=rules.timeout_s,
            )
            tell(Ended(socket, disk, acted))
        finally:
            slots.release()


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


def _reason(pauses: Pauses | None, disk: SeenDisk, socket: Path, look: Look) -> str | None:
    if pauses is None:
        return "it cannot be read what is paused"
    return pauses.of_disk(disk, socket, look.vm.name)


def _keep_mark(disk: SeenDisk, socket: Path, look: Look, pauses: Pauses, rules: Rules) -> None:
    """Have the mark on the active layer, for this VM: a snapshot puts another file there, a restart another process."""
    if disk.mark is None or not disk.mark[0].is_paused:
        return
    mark, depth = disk.mark
    wanted = replace(mark, vm=look.vm.identity)
    if not pauses.counts(mark, socket, look.vm.name):
        wanted = replace(wanted, is_paused=False, at_s=time.time())
    if depth or wanted != mark:
        with suppress(OSError):
            write_mark(disk.image, wanted, rules.state_directory)
