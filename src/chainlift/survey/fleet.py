"""The survey of a fleet: the workers of a Dask cluster look at the directories of their own hosts.

A worker that sits beside disks is started with a resource of the host's name, and a task is bound to it by that::

    dask worker tcp://scheduler:8786 --resources "hostA=1"
    chainlift survey --scheduler tcp://scheduler:8786 hostA:/srv/vm hostB:/srv/vm /srv/nfs

A place without a name is looked at by any worker: a directory that all of them have. One task is one place. It runs
``chainlift survey`` as a process beside the worker, with idle priority and limits of its own, and returns its lines. A
task whose worker dies is run again by the scheduler.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.process import last_lines
from chainlift.results.survey.records import RECORD, Chain, End, Head, Place, Source, Trouble

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from chainlift.results.survey.records import Record
    from chainlift.survey.local import Progress

_CONNECT_S: Final = 10.0
#: How often the scheduler is asked who is there.
_LOOK_S: Final = 1.0
_ONE: Final = 1.0


@dataclass(frozen=True)
class Where:
    """A place as it is named on the command line."""

    #: The resource of the workers that see it; empty: any worker does.
    host: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Where:
        """Read ``HOST:/DIRECTORY`` or ``/DIRECTORY``.

        :raise InputError: if the directory is not absolute: a worker has a working directory of its own.
        """
        host, colon, path = text.partition(":")
        if text.startswith("/") or not colon:
            host, path = "", text
        if not path.startswith("/"):
            raise InputError("is no absolute path", path=text, hint="for workers, name places as HOST:/DIRECTORY")
        return cls(host, path)

    @property
    def source(self) -> Source:
        """The place as it stands in a survey's head."""
        return Source(host=self.host or "*", path=self.path)

    @property
    def who(self) -> str:
        """Who can look at it, in words."""
        return f"worker with the resource {self.host}" if self.host else "worker"


@dataclass
class _Tasks:
    """What is under way."""

    client: Any
    #: Task -> its place.
    waiting: dict[Any, Where]
    #: Since when nobody is there who could do it, monotonic.
    alone_since: dict[Where, float] = field(default_factory=dict)


def survey_fleet(
    address: str,
    places: Sequence[Where],
    options: Sequence[str],
    *,
    patience_s: float,
    done: Mapping[Source, Place] | None = None,
    progress: Progress | None = None,
) -> Generator[Chain | Trouble | Place | End]:
    """Have a cluster find and describe every chain.

    :param address: the scheduler's.
    :param options: of ``chainlift survey``, for the workers.
    :param patience_s: how long to wait for a worker that can look at a place.
    :param done: places that an interrupted survey has been through.
    :return: records as :func:`chainlift.survey.local.survey_host` gives them, and one for each place.
    :raise MissingToolError: if the extra ``fleet`` is not installed.
    :raise OperationError: if the scheduler does not answer.
    """
    started = time.monotonic()
    finished = {**(done or {})}
    wanted = [place for place in dict.fromkeys(places) if place.source not in finished]
    left_out = 0
    if progress is not None:
        progress.stage(f"asking the workers of {address}", len(finished) + len(wanted))
        progress.step(len(finished))
    with ExitStack() as stack:
        if wanted:
            client = stack.enter_context(_connect(address))
            for place, answer in _answers(client, wanted, options, patience_s):
                records = _read(place, answer)
                for record in records:
                    if isinstance(record, Place):
                        finished[place.source] = record
                    left_out += isinstance(record, Trouble) and record.left_out
                    yield record
                if progress is not None:
                    progress.step(len(finished), place.path)
    yield End(
        ended_at=datetime.now(UTC),
        images=sum(place.images for place in finished.values()),
        chains=sum(place.chains for place in finished.values()),
        disk_bytes=sum(place.disk_bytes for place in finished.values()),
        left_out=left_out,
        took_s=round(time.monotonic() - started, 3),
        peak_bytes=max((place.peak_bytes for place in finished.values()), default=0),
    )


def _connect(address: str) -> Any:  # noqa: ANN401 - distributed is not always there
    try:
        from distributed import Client
    except ImportError as error:
        raise MissingToolError(
            "a scheduler is asked with the Python package distributed", hint="pip install 'chainlift[fleet]'"
        ) from error
    import logging

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what fails is said here, in a line
    try:
        return Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, ImportError, TimeoutError) as error:
        why = f"does not answer within {_CONNECT_S:g} s" if isinstance(error, OSError) else f"is no address: {error}"
        raise OperationError(f"the scheduler {address} {why}", hint="is it running, and of this version?") from error


def _answers(
    client: Any,  # noqa: ANN401
    places: Sequence[Where],
    options: Sequence[str],
    patience_s: float,
) -> Generator[tuple[Where, list[str] | str]]:
    """Yield the lines of each place, or why there are none, as they come."""
    came: SimpleQueue[Any] = SimpleQueue()

    def submit(place: Where, extra: Sequence[str]) -> Any:  # noqa: ANN401
        resources = {place.host: _ONE} if place.host else None
        task = client.submit(survey_place, place.path, [*options, *extra], resources=resources, pure=False)
        task.add_done_callback(came.put)
        return task

    asked: set[str] = {""}  # nobody knows whose libvirt is asked by any worker
    tasks = _Tasks(client, {})
    for place in places:
        tasks.waiting[submit(place, ["--no-libvirt"] if place.host in asked else [])] = place
        asked.add(place.host)
    try:
        while tasks.waiting:
            try:
                task = came.get(timeout=_LOOK_S)
            except Empty:
                yield from _without_workers(tasks, patience_s)
                continue
            if (done := tasks.waiting.pop(task, None)) is not None:  # else it was given up
                yield done, _result(task)
    finally:
        client.cancel(list(tasks.waiting), force=True)


def _without_workers(tasks: _Tasks, patience_s: float) -> Generator[tuple[Where, str]]:
    """Give up places of which nobody can be seen any more who could look at them."""
    if tasks.client.status not in ("running", "connecting"):
        while tasks.waiting:
            yield tasks.waiting.popitem()[1], "the scheduler went away"
        return
    workers = tasks.client.scheduler_info()["workers"].values()
    offered = {"", *(name for worker in workers for name in worker["resources"])} if workers else set()
    now = time.monotonic()
    for task, place in list(tasks.waiting.items()):
        if place.host in offered:
            tasks.alone_since.pop(place, None)
        elif now - tasks.alone_since.setdefault(place, now) >= patience_s:
            del tasks.waiting[task]
            tasks.client.cancel([task], force=True)
            yield place, f"no {place.who} is there"


def _result(task: Any) -> list[str] | str:  # noqa: ANN401
    try:
        lines = task.result()
    except Exception as error:  # noqa: BLE001 - whatever a worker says is told, and the others go on
        name = type(error).__name__
        if name == "KilledWorker":
            return "every worker that tried it died"
        if name == "FutureCancelledError" or name == "CancelledError":
            return "the scheduler has lost it"
        return f"a worker could not: {last_lines(str(error), 1) or name}"
    return lines if isinstance(lines, list) else "a worker gave no lines"


def _read(place: Where, answer: list[str] | str) -> Generator[Chain | Trouble | Place]:
    """Yield the records of a place."""
    host = place.host or "*"
    if isinstance(answer, str):
        yield Trouble(host=host, path=place.path, what=answer)
        return
    end: End | None = None
    head: Head | None = None
    for line in answer:
        try:
            record: Record = RECORD.validate_json(line)
        except ValueError:
            yield Trouble(host=host, path=place.path, what="a worker answers in another form: is it of this version?")
            return
        match record:
            case Chain() | Trouble():
                yield record
            case End():
                end = record
            case Head():
                head = record
    if end is None or head is None:
        yield Trouble(host=host, path=place.path, what="a worker's answer has no end")
        return
    yield Place(
        asked=place.source,
        source=head.sources[0],
        images=end.images,
        chains=end.chains,
        disk_bytes=end.disk_bytes,
        took_s=end.took_s,
        peak_bytes=end.peak_bytes,
        model=head.model,
    )


def survey_place(path: str, options: Sequence[str]) -> list[str]:
    """Survey a directory of the host that this runs on; what a worker does.

    :raise RuntimeError: with what was said, if it failed.
    """
    done = subprocess.run(
        [sys.executable, "-P", "-m", "chainlift", "survey", path, "--json", "-", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(last_lines(done.stderr, 1) or f"it ended with status {done.returncode}")
    return done.stdout.splitlines()
