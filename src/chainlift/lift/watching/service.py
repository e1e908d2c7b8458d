"""The watch: VMs are visited side by side, and what they say is put together, written and told in one place."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Final

from chainlift._version import __version__
from chainlift.errors import ChainliftError, InputError
from chainlift.host.durable import write_atomically
from chainlift.host.systemd import notify, watchdog_s
from chainlift.host.virsh import Domain
from chainlift.lift.watching.book import Book
from chainlift.lift.watching.domains import Events, Happened, Listed, is_meant, list_domains
from chainlift.lift.watching.journal import INFO, NOTICE, Journal
from chainlift.lift.watching.metrics import as_prometheus
from chainlift.lift.watching.pauses import read_pauses
from chainlift.lift.watching.state import State, owned, read_state, write_state
from chainlift.lift.watching.status import as_json
from chainlift.lift.watching.visit import Began, Done, Ended, Message, Rules, visit
from chainlift.lift.watching.where import where_of
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.lift.watching.looking import SeenDisk
    from chainlift.lift.watching.status import WatchStatus
    from chainlift.lift.watching.where import Where

#: Stands for libvirt, while it is asked which domains there are.
_LISTING: Final = Domain("")
#: The files are written at most so often, but for the first and the last time.
_WRITE_S: Final = 0.5


@dataclass(frozen=True)
class Settings:
    """What is watched, and where it is written."""

    rules: Rules
    #: Sockets by name.
    sockets: tuple[Path, ...] = ()
    #: A directory of sockets, as they come and go.
    directory: Path | None = None
    #: The running domains of libvirt whose names match one of these, ``*`` for all; None: none.
    domains: tuple[str, ...] | None = None
    interval_s: float = 60.0
    #: So many disks are lifted at a time.
    jobs: int = 1
    #: Whether counters are kept in the state directory.
    keeps_state: bool = True
    status_file: Path | None = None
    metrics_file: Path | None = None


@dataclass
class _Round:
    began_s: float
    #: VMs whose visits are not over.
    waiting: set[Where] = field(default_factory=set)


class Watch:
    """Keeps the chains of many VMs short, until it is stopped.

    :param settings: what is watched.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._journal = Journal()
        self._state = State()
        self._book = Book(self._state, self._journal, settings.rules, settings.interval_s)
        # Its put() may be called from a signal's handler.
        self._inbox: SimpleQueue[Message | Happened | Listed | str] = SimpleQueue()
        self._ends = Event()
        self._slots = Semaphore(settings.jobs)
        #: VMs that are being visited, and those to which something has happened meanwhile.
        self._visited: set[Where] = set()
        self._again: dict[Where, Happened] = {}
        self._rounds: list[_Round] = []
        self._is_dirty = False
        self._written_s = 0.0

    @property
    def status(self) -> WatchStatus:
        """What is known."""
        return self._book.status

    def stop(self, why: str) -> None:
        """End it, soon and cleanly: what is under way is finished or undone. May be called from a signal's handler."""
        self._inbox.put(why)

    def run(self, *, once: bool = False) -> None:
        """Watch until :meth:`stop`.

        :param once: one round.
        :raise InputError: if a file or directory cannot be written, before anything is looked at.
        """
        with ExitStack() as stack:
            self._begin(stack)
            if not once:
                self._journal.say(INFO, f"watch begins: chainlift {__version__}, {self._described()}")
            if self._settings.domains is not None and not once:
                stack.callback(Events(self._inbox.put).close)
            notify("READY=1")
            try:
                self._loop(once=once)
            finally:
                notify("STOPPING=1")
                self._ends.set()
            self._write(at_end=True)

    def _begin(self, stack: ExitStack) -> None:
        settings, directory = self._settings, self._settings.rules.state_directory
        if settings.keeps_state:
            try:
                stack.enter_context(owned(directory))
                kept = read_state(directory)
                self._state.disks.update(kept.disks)
                self._state.rounds = self.status.rounds_before = kept.rounds
                write_state(directory, self._state, time.time())
            except OSError as error:
                raise InputError(f"cannot be written: {error.strerror}", path=error.filename or directory) from error
            for (socket, disk), since in kept.under_way.items():
                about = (
                    f"{self._state.disks[socket, disk].vm if (socket, disk) in self._state.disks else socket} {disk}"
                )
                self._journal.say(
                    NOTICE,
                    f"{about}: cut off, an earlier watch was killed while it worked on it (begun {since}); the disk "
                    f"reads as before, and what is left is put in order before the next one, socket {socket}",
                )
        read_pauses(directory)
        for path, text in self._texts():
            try:
                write_atomically(path, text, sync=False)
            except OSError as error:
                raise InputError(f"cannot be written: {error.strerror}", path=path) from error
        self._written_s = time.monotonic()

    def _loop(self, *, once: bool) -> None:
        settings = self._settings
        next_round = next_ping = time.monotonic()
        alive_s = watchdog_s()
        while True:
            now = time.monotonic()
            if now >= next_round and not self._ends.is_set():
                self._begin_round()
                next_round = now + settings.interval_s
            if alive_s is not None and now >= next_ping:
                notify("WATCHDOG=1")
                next_ping = now + alive_s / 3
            self._end_rounds()
            if self._is_over(once=once):
                return
            if self._is_dirty and now >= self._written_s + _WRITE_S:
                self._write()
            due = [next_round] if not self._ends.is_set() else [now + 1]
            due += [next_ping] if alive_s is not None else []
            due += [self._written_s + _WRITE_S] if self._is_dirty else []
            self._receive(max(0.0, min(due) - time.monotonic()))

    def _is_over(self, *, once: bool) -> bool:
        if not self._inbox.empty():
            return False
        if self._ends.is_set():
            # A visit that only looks leaves nothing behind.
            return not self._book.indexing
        return once and self.status.rounds > 0

    def _receive(self, timeout_s: float) -> None:
        try:
            message = self._inbox.get(timeout=timeout_s)
        except Empty:
            return
        if isinstance(message, str):
            if not self._ends.is_set():
                count = len(self._book.indexing)
                waits = f", when {counted(count, 'disk')} under way is finished or undone" if count else ""
                self._journal.say(INFO, f"watch ends: {message}{waits}")
                notify("STOPPING=1")
                self._ends.set()
            return
        self._is_dirty = True
        if isinstance(message, Happened):
            self._happened(message)
            return
        if isinstance(message, Listed):
            self._listed(message)
            return
        self._book.note(message)
        if isinstance(message, Done):
            self._visited.discard(message.where)
            for round_ in self._rounds:
                round_.waiting.discard(message.where)
            if (later := self._again.pop(message.where, None)) is not None:
                self._happened(later)
        if isinstance(message, Began | Ended):
            self._keep()

    def _begin_round(self) -> None:
        round_ = _Round(time.monotonic())
        self._rounds.append(round_)
        self._begin_visits(self._sockets(), Path, [round_])
        if self._settings.domains is not None:
            round_.waiting.add(_LISTING)
            if _LISTING not in self._visited:
                self._visited.add(_LISTING)
                Thread(target=self._list, args=(self._settings.domains,), name="list domains", daemon=True).start()
        self._is_dirty = True

    def _begin_visits(self, there: Sequence[Where] | None, kind: type, rounds: Sequence[_Round]) -> None:
        """Visit all VMs that are there; of those that are not, nothing is known any more.

        :param there: None where that cannot be told now.
        """
        for known in [where_of(text) for text in self.status.vms]:
            if there is not None and isinstance(known, kind) and known not in (*there, *self._visited):
                self._book.gone(known)
        for where in there or ():
            if where not in self._visited:  # else the last visit is not over: it hangs, or builds
                for round_ in rounds:
                    round_.waiting.add(where)
                self._begin_visit(where)

    def _list(self, patterns: Sequence[str]) -> None:
        # A libvirt that hangs does not keep the main loop from saying that it is alive.
        try:
            self._inbox.put(Listed(list_domains(patterns)))
        except ChainliftError as error:
            self._inbox.put(Listed(None, str(error)))

    def _listed(self, message: Listed) -> None:
        self._visited.discard(_LISTING)
        if message.domains is None:
            self._book.problem("libvirt", message.error)
        else:
            self._book.solved("libvirt")
        waiting = [round_ for round_ in self._rounds if _LISTING in round_.waiting]
        if not self._ends.is_set():
            self._begin_visits(message.domains, Domain, waiting)
        for round_ in waiting:
            round_.waiting.discard(_LISTING)

    def _begin_visit(self, where: Where) -> None:
        self._visited.add(where)
        self._book.looks(where)
        Thread(target=self._visit, args=(where,), name=f"visit {where}", daemon=True).start()

    def _happened(self, message: Happened) -> None:
        """Look at once at a domain of which libvirt tells something."""
        where = message.where
        if self._ends.is_set() or not is_meant(where.name, self._settings.domains or ()):
            return
        if where in self._visited:
            self._again[where] = message
        elif not message.has_ended:
            self._begin_visit(where)
        elif str(where) in self.status.vms:
            self._book.gone(where)

    def _visit(self, where: Where) -> None:
        visit(
            where,
            self._settings.rules,
            tell=self._inbox.put,
            ends=self._ends,
            slots=self._slots,
            waits=self._waits,
            kept_back=self._kept_back,
        )

    def _waits(self, where: Where, disk: SeenDisk) -> bool:
        return self._book.waits(where, disk.name)

    def _kept_back(self, where: Where, disk: SeenDisk) -> frozenset[str]:
        return self._book.kept_back(where, disk.name)

    def _sockets(self) -> list[Path] | None:
        """Return the sockets there are; None where that cannot be told now."""
        settings = self._settings
        found = list(settings.sockets)
        if settings.directory is not None:
            try:
                found += sorted(path for path in settings.directory.iterdir() if path.is_socket())
            except OSError as error:
                self._book.problem(str(settings.directory), error.strerror or str(error))
                return None
            self._book.solved(str(settings.directory))
        return list(dict.fromkeys(found))

    def _end_rounds(self) -> None:
        for round_ in [round_ for round_ in self._rounds if not round_.waiting]:
            self._rounds.remove(round_)
            self.status.rounds += 1
            self.status.last_round_at_s = time.time()
            self.status.last_round_s = round(time.monotonic() - round_.began_s, 3)
            self._is_dirty = True
            self._keep()
            notify(f"STATUS={self._book.summary()}")

    def _keep(self) -> None:
        if self._settings.keeps_state:
            directory = self._settings.rules.state_directory
            try:
                write_state(directory, self._book.remembered(), time.time())
            except OSError as error:
                self._book.problem(str(directory), error.strerror or str(error))
            else:
                self._book.solved(str(directory))

    def _write(self, *, at_end: bool = False) -> None:
        if at_end:
            self._keep()
        for path, text in self._texts():
            try:
                write_atomically(path, text, sync=False)
            except OSError as error:
                self._book.problem(str(path), error.strerror or str(error))
            else:
                self._book.solved(str(path))
        self._is_dirty, self._written_s = False, time.monotonic()

    def _texts(self) -> list[tuple[Path, str]]:
        settings, texts = self._settings, []
        if settings.status_file is not None:
            texts.append((settings.status_file, json.dumps(as_json(self.status), indent=1) + "\n"))
        if settings.metrics_file is not None:
            texts.append((settings.metrics_file, as_prometheus(self.status)))
        return texts

    def _described(self) -> str:
        settings, rules = self._settings, self._settings.rules
        what = [*map(str, settings.sockets), *([f"{settings.directory}/"] if settings.directory is not None else [])]
        what += [f"libvirt's domains {' '.join(settings.domains)}"] if settings.domains is not None else []
        state = f"state in {rules.state_directory}" if settings.keeps_state else "no state kept"
        does = f"above length {rules.max_length}" if rules.policy is None else f"pruning, {rules.policy}"
        return f"{', '.join(what)}, {does}, every {settings.interval_s:g} s, {state}"
