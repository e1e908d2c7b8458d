"""Processes that look at chains, one chain at a time each.

An image is untrusted input: looking at one may take for ever, take all memory, or end the process. So the work is done
in processes of our own that have a limit of memory and are ended where one takes too long; what it was about is told,
and another process takes its place. One that waits for a dead file server cannot be ended, and is left behind.

They are programs of their own rather than copies of this process: whoever calls may have threads (a Dask worker).
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import TYPE_CHECKING, Final, Self

from chainlift.errors import ChainliftError
from chainlift.host.peak import peak_rss_bytes
from chainlift.results.survey.records import Chain, Trouble
from chainlift.survey.describe import describe
from chainlift.survey.words import readable
from chainlift.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from chainlift.survey.find import Found
    from chainlift.survey.settings import Settings

#: Of one process: 10,000 layers take 600 MiB.
MEMORY_BYTES: Final = 1 << 30
_GRACE_S: Final = 2.0
#: Until a process has begun.
_BEGIN_S: Final = 120.0


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    has_begun: bool = False
    task: Found | None = None
    #: When what it does has taken too long, monotonic.
    deadline: float = 0.0


class Crew:
    """Some processes; a context manager.

    :param count: how many.
    :param settings: what to do.
    :param timeout_s: for one chain.
    """

    def __init__(self, count: int, settings: Settings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._workers = [self._start() for _ in range(count)]
        #: Memory of the largest process, as far as is known.
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()  # which ends it, unless it is busy
        for worker in self._workers:
            _end(worker.process, at_once=worker.task is not None)

    def describe(self, chains: Iterable[Found]) -> Iterator[tuple[Found, Chain | Trouble]]:
        """Look at chains, and yield what there is to say of each, in the order in which they are done."""
        left = deque(chains)
        while True:
            for number, worker in enumerate(self._workers):
                if worker.task is None and left:
                    self._give(number, left.popleft())
            busy = [worker for worker in self._workers if worker.task is not None]
            if not busy:
                return
            first = min(worker.deadline for worker in busy)
            wait([worker.pipe for worker in busy], max(0.0, first - time.monotonic()))
            for number, worker in enumerate(self._workers):
                if worker.task is None:
                    continue
                task = worker.task
                if worker.pipe.poll():
                    if (record := self._take(number)) is not None:
                        yield task, record
                elif time.monotonic() >= worker.deadline:
                    yield task, self._give_up(number, f"took longer than {format_seconds(self._timeout_s)}")

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "chainlift.survey.crew", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            theirs.close()
        worker = _Worker(process, ours)
        with suppress(OSError):  # it ended at once: told when it is to do something
            ours.send(self._settings)
        return worker

    def _give(self, number: int, task: Found) -> None:
        worker = self._workers[number]
        worker.task = task
        worker.deadline = time.monotonic() + (self._timeout_s if worker.has_begun else _BEGIN_S)
        with suppress(OSError):  # it has ended, which is seen when it is listened to
            worker.pipe.send(task)

    def _take(self, number: int) -> Chain | Trouble | None:
        """Take what a process says: that it has begun (None), what it was asked, or, as it is gone, nothing more."""
        worker = self._workers[number]
        try:
            said = worker.pipe.recv()
        except (EOFError, OSError):
            status = _end(worker.process, at_once=True)
            return self._give_up(number, f"the process that looked at it ended {_how(status)}")
        if said is None:
            worker.has_begun, worker.deadline = True, time.monotonic() + self._timeout_s
            return None
        record, peak_bytes = said
        worker.task = None
        self.peak_bytes = max(self.peak_bytes, peak_bytes)
        assert isinstance(record, Chain | Trouble)
        return record

    def _give_up(self, number: int, why: str) -> Trouble:
        worker = self._workers[number]
        assert worker.task is not None
        worker.pipe.close()
        _end(worker.process, at_once=True)
        trouble = trouble_of(worker.task, why)
        self._workers[number] = self._start()
        return trouble


def trouble_of(found: Found, why: str, *, left_out: bool = True) -> Trouble:
    """Return what is said of a chain that could not be looked at.

    :param found: the chain.
    :param why: it could not.
    :param left_out: whether the survey is incomplete without it.
    """
    host, path = found.key
    return Trouble(host=host, path=path, what=readable(why), left_out=left_out)


def _end(process: subprocess.Popen[bytes], *, at_once: bool) -> int | None:
    """End a process; return its status, None where it does not end."""
    for kill in (False, True):
        if at_once or kill:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            return process.wait(_GRACE_S)
    return None


def _how(status: int | None) -> str:
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"by {signal.Signals(-status).name}"
    return "by itself"


def work(pipe: Connection) -> None:
    """Describe what is asked for, until nobody asks any more."""
    settings: Settings = pipe.recv()
    pipe.send(None)
    while True:
        try:
            found: Found = pipe.recv()
        except EOFError:
            return
        answer: Chain | Trouble
        try:
            answer = describe(found, settings)
        except ChainliftError as error:
            answer = trouble_of(found, str(error) if error.path != found.path else error.what)
        except MemoryError:
            answer = trouble_of(found, f"takes more than {format_bytes(MEMORY_BYTES)} of memory to look at")
        except Exception as error:  # noqa: BLE001 - whatever an image brings about is told of it, and ends nothing
            answer = trouble_of(found, f"cannot be looked at: {type(error).__name__}: {error}")
        pipe.send((answer, peak_rss_bytes()))


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the survey, and that ends us
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    with Connection(int(sys.argv[1])) as pipe, suppress(BrokenPipeError):
        work(pipe)


if __name__ == "__main__":
    _main()
