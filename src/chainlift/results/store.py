"""Reading and writing a result directory (its files are described in :mod:`chainlift.results.model`)."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from chainlift.errors import InputError
from chainlift.host.durable import write_atomically
from chainlift.results.model import SCHEMA, ChainShape, Environment, LimitAttempt, Sample, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_M = TypeVar("_M", bound=BaseModel)

PLAN = "plan.toml"
ENVIRONMENT = "environment.json"
CHAIN = "chain.json"
PARAMETERS = "parameters.json"
SAMPLES = "samples.jsonl"
ATTEMPTS = "attempts.jsonl"
CSV = "results.csv"
STATE = "state.json"
LOCK = ".lock"
REPORT = "report.html"
PROFILES = "profiles"
LIVE = "live"
LATENCIES = "latencies"

_CSV_COLUMNS = (
    "test", "variant", "qemu", "lift", "setting", "length", "repeat", "started_at", "outcome", "signal", "load_1m",
    "metric", "value",
)  # fmt: skip


class ResultDirectory:
    """One result directory.

    :param path: the directory; :meth:`create` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path) -> ResultDirectory:
        """Open a directory that a study has written.

        :raise InputError: if it is none.
        """
        if not (path / PLAN).is_file():
            raise InputError("is not a result directory: it has no plan.toml", path=path)
        return cls(path)

    @classmethod
    def create(cls, path: Path, plan_text: str, *, before: str | None = None) -> ResultDirectory:
        """Make the directory for this plan, or open it where it holds the same plan (a study that continues).

        :param before: the text of the plan whose results may be there too, because this plan extends it.
        :raise InputError: if it holds another plan's results, or other files.
        """
        plan = path / PLAN
        if plan.exists():
            if plan.read_text(encoding="utf-8") not in (plan_text, before):
                raise InputError("holds another plan's results", path=path, hint="choose another --out")
            return cls(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError("exists and is not a result directory", path=path, hint="choose another --out")
        path.mkdir(parents=True, exist_ok=True)
        write_atomically(plan, plan_text)
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory for one study: what is measured is measured once.

        :raise InputError: if another study writes into it.
        """
        with (self.path / LOCK).open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    "another study writes its results there", path=self.path, hint="wait for it or choose another --out"
                ) from error
            yield

    def write_plan(self, plan_text: str) -> None:
        """Replace the plan by one that extends it."""
        write_atomically(self.path / PLAN, plan_text)

    def write_state(self, state: State) -> None:
        """Note how far the study is."""
        write_atomically(self.path / STATE, state.model_dump_json() + "\n")

    def state(self) -> State | None:
        """Return how far the study is; None of results from before this was noted."""
        return self._read(STATE, State) if (self.path / STATE).exists() else None

    def plan_text(self) -> str:
        """Return the plan as it ran."""
        return (self.path / PLAN).read_text(encoding="utf-8")

    def environment(self) -> Environment:
        """Return the environment; :raise InputError: if it is missing or of another schema."""
        return self._read(ENVIRONMENT, Environment)

    def write_environment(self, environment: Environment) -> None:
        """Write the environment."""
        write_atomically(self.path / ENVIRONMENT, environment.model_dump_json(indent=1, by_alias=True) + "\n")

    def chain(self) -> ChainShape | None:
        """Return the chain's shape, or None before it is known."""
        return self._read(CHAIN, ChainShape) if (self.path / CHAIN).exists() else None

    def write_chain(self, shape: ChainShape) -> None:
        """Write the chain's shape."""
        write_atomically(self.path / CHAIN, shape.model_dump_json(indent=1) + "\n")

    def samples(self) -> list[Sample]:
        """Return every sample, in the order they were taken.

        A last line without an end was cut off by a kill and is left out; where a name occurs twice, the later wins.

        :raise InputError: if a whole line is no sample.
        """
        return list({sample.name: sample for sample in self._lines(SAMPLES, Sample, "a sample")}.values())

    def append(self, sample: Sample) -> None:
        """Add a sample; it is on disk when this returns."""
        self._append(SAMPLES, sample)

    def attempts(self) -> list[LimitAttempt]:
        """Return every attempt of the limits test, in the order they were made; the rest is as for samples."""
        return self._lines(ATTEMPTS, LimitAttempt, "an attempt")

    def append_attempt(self, attempt: LimitAttempt) -> None:
        """Add an attempt; it is on disk when this returns."""
        self._append(ATTEMPTS, attempt)

    def write_csv(self, samples: Iterable[Sample]) -> None:
        """Write the samples as a tidy table: one row a sample and metric."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for sample in samples:
            head = [
                sample.test, sample.variant, sample.qemu, sample.lift, sample.setting, sample.length, sample.repeat,
                sample.started_at.isoformat(), sample.outcome, sample.signal, sample.load_1m,
            ]  # fmt: skip
            for metric, value in sample.metrics.items() or [("", "")]:
                writer.writerow([*head, metric, value])
        write_atomically(self.path / CSV, text.getvalue())

    def _lines(self, name: str, model: type[_M], what: str) -> list[_M]:
        path = self.path / name
        if not path.exists():
            return []
        found = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                found.append(model.model_validate_json(line))
            except ValidationError as error:
                raise InputError(f"line {number}: not {what}: {_first(error)}", path=path) from error
        return found

    def _append(self, name: str, line: BaseModel) -> None:
        with (self.path / name).open("a+b") as stream:
            self._drop_partial_line(stream)
            stream.write(line.model_dump_json(exclude_none=True).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    @staticmethod
    def _drop_partial_line(stream: io.BufferedRandom | object) -> None:
        assert isinstance(stream, io.BufferedRandom)
        end = stream.seek(0, os.SEEK_END)
        position = end
        while position > 0:
            stream.seek(position - 1)
            if stream.read(1) == b"\n":
                break
            position -= 1
        if position != end:
            stream.truncate(position)
        stream.seek(position)

    def _read(self, name: str, model: type[_M]) -> _M:
        path = self.path / name
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror}", path=path) from error
        try:
            schema = json.loads(text).get("schema", SCHEMA)
            if schema != SCHEMA:
                raise InputError(f"has schema {schema}, this chainlift reads {SCHEMA}", path=path)
            return model.model_validate_json(text)
        except (ValidationError, ValueError, AttributeError) as error:
            raise InputError(f"does not hold what it should: {_first(error)}", path=path) from error


def _first(error: Exception) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
    return str(error)
