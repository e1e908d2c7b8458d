"""Reading a survey's file, and writing it line after line so that a killed survey can go on."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pydantic import ValidationError

from chainlift.errors import InputError
from chainlift.results.survey.records import RECORD, SCHEMA, Chain, End, Head, Place, Trouble

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from chainlift.results.survey.records import Record, Source

#: Of one line: a chain with 15 findings takes 6 KB.
_MOST_LINE_BYTES = 4 << 20
#: So many lines are in the file at the latest when the machine loses its power.
_SYNC_LINES = 256


@dataclass
class Survey:
    """What a survey has found."""

    head: Head
    #: By host and path.
    by_key: dict[tuple[str, str], Chain] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)
    #: Of a fleet: the places that were looked at, by what they were asked for as.
    places: dict[Source, Place] = field(default_factory=dict)
    #: None: it was interrupted.
    end: End | None = None

    @property
    def chains(self) -> list[Chain]:
        """The chains, in the order in which they were looked at."""
        return list(self.by_key.values())

    @property
    def sources(self) -> tuple[Source, ...]:
        """Where it has looked."""
        return tuple(place.source for place in self.places.values()) or self.head.sources

    def add(self, record: Record) -> None:
        """Take a line in; the last one of a chain counts."""
        match record:
            case Chain():
                self.by_key[record.key] = record
            case Trouble():
                self.by_key.pop((record.host, record.path), None)
                self.troubles.append(record)
            case Place():
                self.places[record.asked] = record
            case End():
                self.end = record
            case Head():  # it went on after an interruption, and whatever was in the way was tried again
                self.head = record
                self.troubles.clear()

    @property
    def left_out(self) -> int:
        """How many things are missing."""
        return sum(trouble.left_out for trouble in self.troubles)


def read_survey(path: Path) -> Survey:
    """Read what ``chainlift survey --json`` has written.

    A last line without an end was cut off by a kill and is left out.

    :raise InputError: if it cannot be read, or holds something else.
    """
    survey: Survey | None = None
    try:
        with path.open("rb") as stream:
            number = 0
            while line := stream.readline(_MOST_LINE_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    break
                record = _parse(line, number, path)
                if survey is None:
                    if not isinstance(record, Head):
                        raise InputError("is no survey: its first line says nothing of one", path=path)
                    survey = Survey(record)
                else:
                    survey.add(record)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=path) from error
    if survey is None:
        raise InputError("is no survey: it has no line", path=path)
    return survey


def _parse(line: bytes, number: int, path: Path) -> Record:
    try:
        return RECORD.validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if number == 1:
            hint = "chainlift survey --json writes one"
            what = f"is no survey of schema {SCHEMA}: {where}: {first['msg']}"
            raise InputError(what, path=path, hint=hint) from error
        raise InputError(f"line {number}: {where}: {first['msg']}", path=path) from error


class SurveyWriter:
    """Writes a survey's file; a context manager.

    :param path: the file. One that is there and belongs to an interrupted survey of the same places and policy is gone
        on with: :attr:`found` is what it holds. Any other one is refused.
    :param head: of the survey.
    :raise InputError: if it holds something else, another survey writes it, or it cannot be written.
    """

    def __init__(self, path: Path, head: Head) -> None:
        self._path = path
        try:
            self._stream = path.open("a+b")
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", path=path) from error
        try:
            self.found = self._begin(head)
        except BaseException:
            self._stream.close()
            raise
        self._lines = 0

    def _begin(self, head: Head) -> Survey | None:
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError("another survey is writing it", path=self._path, hint="wait for it") from error
        except OSError:  # a file system without locks
            pass
        found = None
        if self._stream.seek(0, os.SEEK_END):
            found = read_survey(self._path)
            if found.end is not None:
                raise InputError(
                    "holds a survey that is complete", path=self._path, hint="choose another name; --before compares"
                )
            if _asked(found.head) != _asked(head):
                what = "holds another survey that was interrupted: of other places, another policy or another QEMU"
                raise InputError(what, path=self._path, hint="choose another name")
            self._cut_off_rest()
        self._write(head)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, record: Chain | Trouble | Place | End) -> None:
        """Add a line."""
        self._write(record)
        self._lines += 1
        if isinstance(record, End) or self._lines % _SYNC_LINES == 0:
            with suppress(OSError):  # a pipe
                os.fsync(self._stream.fileno())

    def _write(self, record: Record) -> None:
        self._stream.write(to_line(record))
        self._stream.flush()

    def _cut_off_rest(self) -> None:
        """Take away a last line that has no end."""
        end = self._stream.seek(0, os.SEEK_END)
        self._stream.seek(max(0, end - _MOST_LINE_BYTES))
        rest = self._stream.read()
        self._stream.truncate(end - (len(rest) - (rest.rfind(b"\n") + 1)))


def _asked(head: Head) -> tuple[object, ...]:
    return head.sources, head.policy, head.qemu


def to_line(record: Record) -> bytes:
    """Return a record as a line."""
    return record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
