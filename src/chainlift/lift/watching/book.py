"""What the visits have found, put together: the status, the counters, and the lines of the journal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.lift.watching.acting import SQUASHED_LENGTH
from chainlift.lift.watching.journal import INFO, NOTICE
from chainlift.lift.watching.state import Known
from chainlift.lift.watching.status import DiskStatus, VmStatus, WatchStatus, time_text
from chainlift.lift.watching.visit import Began, Ended, Looked, Silent, Unreadable
from chainlift.units import counted

if TYPE_CHECKING:
    from chainlift.lift.watching.acting import Acted
    from chainlift.lift.watching.journal import Journal
    from chainlift.lift.watching.looking import SeenDisk
    from chainlift.lift.watching.state import State
    from chainlift.lift.watching.visit import Message, Rules
    from chainlift.lift.watching.where import Where

#: After an attempt that failed on the way the next one waits, longer each time, up to so long.
_LONGEST_WAIT_S: Final = 3600.0


class Book:
    """Kept by the main loop alone; :meth:`waits` may be asked by anybody.

    :param state: what is kept over restarts.
    :param rules: when a chain is too long.
    :param interval_s: between rounds.
    """

    def __init__(self, state: State, journal: Journal, rules: Rules, interval_s: float) -> None:
        self.status = WatchStatus()
        #: Disks that are being indexed: socket and name.
        self.indexing: dict[tuple[str, str], float] = {}
        self._state = state
        self._journal = journal
        self._rules = rules
        self._interval_s = interval_s
        #: Snapshots that no rule keeps and that somebody needed when the disk was pruned last.
        self._kept_back: dict[tuple[str, str], frozenset[str]] = {}
        #: Failures in a row, and when to try again (monotonic).
        self._failures: dict[tuple[str, str], tuple[int, float]] = {}

    def waits(self, where: Where, disk: str) -> bool:
        """Whether a disk is to be tried later, because an attempt has failed."""
        return time.monotonic() < self._failures.get((str(where), disk), (0, 0.0))[1]

    def kept_back(self, where: Where, disk: str) -> frozenset[str]:
        """Return a disk's snapshots that somebody needed when it was pruned last."""
        return self._kept_back.get((str(where), disk), frozenset())

    def looks(self, where: Where) -> None:
        """Note that a visit begins."""
        vm = self.status.vms.setdefault(str(where), VmStatus(str(where)))
        vm.looking_since_s = time.time()

    def gone(self, where: Where) -> None:
        """Note that a socket is not there any more."""
        vm = self.status.vms.pop(str(where))
        gone = f"its socket is gone, {where}" if isinstance(where, Path) else "does not run any more"
        self._journal.well(str(where))
        self._journal.say(INFO, f"{vm.vm}: {gone}")
        for key in [key for key in self.status.disks if key[0] == str(where)]:
            self._drop(key)

    def problem(self, where: str, text: str) -> None:
        """Note that a file or directory cannot be written or read."""
        self.status.problems[where] = text
        self._journal.trouble(where, f"{where}: {text}")

    def solved(self, where: str) -> None:
        """Note that it can again."""
        self.status.problems.pop(where, None)
        self._journal.well(where, f"{where}: is well again")

    def note(self, message: Message) -> None:
        """Take what a visit tells."""
        match message:
            case Silent():
                self._silent(message)
            case Looked():
                self._looked(message)
            case Began():
                self._began(message.where, message.disk)
            case Ended():
                self._ended(message.where, message.disk, message.acted)
            case Unreadable():
                self.problem("pauses", message.error)

    def remembered(self) -> State:
        """Return what is to be kept."""
        now = time.time()
        for key, disk in self.status.disks.items():
            self._state.disks[key] = Known(
                socket=disk.socket,
                disk=disk.disk,
                vm=disk.vm,
                image=disk.image,
                length=disk.length,
                state=disk.state,
                seen_at_s=now,
                paused=disk.paused,
                **disk.past(),
            )
        self._state.rounds = self.status.rounds_before + self.status.rounds
        self._state.under_way = {key: time_text(since) or "" for key, since in self.indexing.items()}
        return self._state

    def summary(self) -> str:
        """Return the status in a line."""
        vms, disks = self.status.vms.values(), [disk.state for disk in self.status.disks.values()]
        silent = sum(vm.is_up is False for vm in vms)
        states = [f"{disks.count(state)} {state}" for state in ("paused", "busy", "failed") if state in disks]
        well = ", ".join(states) or "all well"
        return f"{counted(len(vms), 'VM')} ({silent} silent), {counted(len(disks), 'disk')} ({well})"

    def _silent(self, message: Silent) -> None:
        vm = self.status.vms[str(message.where)]
        vm.looking_since_s, vm.is_up, vm.error = None, False, message.error
        self._journal.trouble(vm.socket, f"{vm.vm}: does not answer: {message.error}")

    def _looked(self, message: Looked) -> None:
        vm = self.status.vms[str(message.where)]
        is_new = vm.last_look_at_s is None
        vm.name, vm.is_up, vm.error = message.look.vm.name, True, None
        vm.looking_since_s, vm.last_look_at_s, vm.last_look_s = None, time.time(), round(message.took_s, 4)
        if is_new:
            disks = ", ".join(f"{disk.name} length {disk.length}" for disk in message.look.disks) or "no qcow2 disk"
            self._journal.well(vm.socket)
            self._journal.say(INFO, f"{vm.vm}: answers: {disks}, {vm.place}")
        else:
            self._journal.well(vm.socket, f"{vm.vm}: answers again, {vm.place}")
        there = {disk.name for disk in message.look.disks}
        for key in [key for key in self.status.disks if key[0] == vm.socket and key[1] not in there]:
            self._journal.say(INFO, f"{vm.vm} {key[1]}: is not there any more, {vm.place}")
            self._drop(key)
        for disk, paused, is_due in zip(message.look.disks, message.paused, message.due, strict=True):
            self._seen(vm, disk, paused, is_due=is_due)
        if all(paused != "it cannot be read what is paused" for paused in message.paused):
            self.solved("pauses")

    def _seen(self, vm: VmStatus, seen: SeenDisk, paused: str | None, *, is_due: bool) -> None:
        key = (vm.socket, seen.name)
        disk = self.status.disks.get(key) or self._known(vm, seen)
        self.status.disks[key] = disk
        disk.vm, disk.node, disk.image, disk.length = vm.vm, seen.node, str(seen.image), seen.length
        disk.seen_at = time_text(time.time()) or ""
        disk.is_long, disk.busy = is_due, seen.busy
        about = f"{vm.vm} {seen.name}"
        if paused != disk.paused:
            what = (
                "goes on, it is paused no more" if paused is None else f"paused: {paused}, until chainlift watch resume"
            )
            self._journal.say(NOTICE, f"{about}: {what}, length {seen.length}, image {seen.image}, {vm.place}")
        disk.paused = paused
        if disk.is_long and seen.busy and paused is None:
            what = "is too long" if self._rules.policy is None else "has snapshots that nothing keeps"
            text = f"{about}: {what}, and busy: {seen.busy}, length {seen.length}, image {seen.image}"
            self._journal.trouble("/".join(key), f"{text}, {vm.place}", what=seen.busy)
        elif not disk.is_long:
            self._well(key, disk)

    def _well(self, key: tuple[str, str], disk: DiskStatus) -> None:
        disk.error = disk.retry_at = None
        self._failures.pop(key, None)
        self._journal.well("/".join(key), f"{disk.vm} {disk.disk}: is well again, length {disk.length}")

    def _known(self, vm: VmStatus, seen: SeenDisk) -> DiskStatus:
        known = self._state.disks.get((vm.socket, seen.name))
        past = {} if known is None else known.past()
        return DiskStatus(vm.socket, vm.vm, seen.name, seen.node, str(seen.image), seen.length, "", **past)

    def _began(self, where: Where, disk: SeenDisk) -> None:
        key = (str(where), disk.name)
        self.indexing[key] = time.time()
        self.status.disks[key].is_indexing = self._rules.policy is None
        self.status.disks[key].is_pruning = self._rules.policy is not None

    def _ended(self, where: Where, seen: SeenDisk, acted: Acted) -> None:
        key = (str(where), seen.name)
        self.indexing.pop(key, None)
        disk = self.status.disks[key]
        disk.is_indexing = disk.is_pruning = False
        line = acted.line(f"{disk.vm} {disk.disk}", where)
        if acted.result in ("refused", "failed", "unknown"):
            disk.error = acted.error
            disk.counts.failed += 1
            self._journal.trouble("/".join(key), line, what=acted.error, priority=acted.priority)
            if acted.result != "refused":
                self._wait(key, disk)
            return
        self._journal.say(acted.priority, line)
        if acted.is_done:
            disk.is_long = False
            disk.counts.copied_bytes += acted.copied_bytes
            if acted.verb == "prune":
                self._pruned(key, disk, acted)
            else:
                self._lifted(disk, acted)
            disk.error = disk.retry_at = None
            self._failures.pop(key, None)
            self._journal.well("/".join(key))

    def _pruned(self, key: tuple[str, str], disk: DiskStatus, acted: Acted) -> None:
        disk.length -= acted.deleted
        disk.counts.pruned += 1
        disk.counts.deleted += acted.deleted
        disk.counts.freed_bytes += max(0, acted.freed_bytes)
        disk.last_pruned_at, disk.last_prune_s = time_text(time.time()), round(acted.took_s, 3)
        self._kept_back[key] = acted.kept_back

    def _lifted(self, disk: DiskStatus, acted: Acted) -> None:
        disk.length = 1 if acted.verb == "index" else SQUASHED_LENGTH
        disk.counts.indexed += 1
        disk.last_indexed_at, disk.last_index_s = time_text(time.time()), round(acted.took_s, 3)
        disk.last_extents = acted.extents
        disk.last_longest_command_s = None if acted.longest is None else round(acted.longest[1], 4)

    def _wait(self, key: tuple[str, str], disk: DiskStatus) -> None:
        count = self._failures.get(key, (0, 0.0))[0] + 1
        wait_s = min(self._interval_s * 2 ** min(count, 16), _LONGEST_WAIT_S)
        self._failures[key] = (count, time.monotonic() + wait_s)
        disk.retry_at = time_text(time.time() + wait_s)

    def _drop(self, key: tuple[str, str]) -> None:
        del self.status.disks[key]
        self._failures.pop(key, None)
        self._kept_back.pop(key, None)
        self._journal.well("/".join(key))
