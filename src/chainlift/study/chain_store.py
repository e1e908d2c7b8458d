"""Built chains: one directory each, kept for later runs of plans that ask for the same chain.

A chain's directory holds::

    lock                who builds (exclusive) or measures (shared)
    base.qcow2
    layer-0001.qcow2    the first layer over the base, and so on; backing names are relative
    snapshots.jsonl     one line a completed snapshot, synced: what a resumed build continues from
    chain.json          :class:`Manifest`; written last, so a directory that has it holds a finished chain
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from chainlift.errors import InputError, OperationError
from chainlift.host.durable import write_atomically
from chainlift.results.model import ChainShape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BASE = "base.qcow2"


def layer_name(number: int) -> str:
    """Return the file name of layer ``number``; 0 is the base."""
    return f"layer-{number:04d}.qcow2" if number else BASE


class FileIdentity(BaseModel):
    """What a layer's file looked like when the chain was finished; an unchanged file looks the same."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file."""
        found = path.stat()
        return cls(name=path.name, size_bytes=found.st_size, modified_ns=found.st_mtime_ns)


class Manifest(BaseModel):
    """A finished chain."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    shape: ChainShape
    #: Bottom first, the base among them.
    files: tuple[FileIdentity, ...]
    #: The part of the plan that it was made from.
    made_from: dict[str, object]
    #: How often the build was interrupted and continued.
    resumed: int = 0


class ChainDirectory:
    """The directory of one chain, finished or not.

    :param path: the directory; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def layer(self, number: int) -> Path:
        """Return the path of layer ``number``; 0 is the base."""
        return self.path / layer_name(number)

    @contextmanager
    def lock(self, *, exclusive: bool) -> Iterator[None]:
        """Hold the chain: exclusively to build it, shared to measure on it.

        :raise OperationError: if another study holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as stream:
            try:
                fcntl.flock(stream, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError as error:
                doing = "uses" if exclusive else "builds"
                raise OperationError(f"another study {doing} this chain", path=self.path, hint="wait for it") from error
            yield

    def manifest(self) -> Manifest | None:
        """Return the manifest of a finished chain, None where it is not finished.

        :raise InputError: if it cannot be understood.
        """
        path = self.path / "chain.json"
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise InputError("is not a chain's manifest", path=path, hint="delete the chain's directory") from error

    def check_unchanged(self, manifest: Manifest) -> None:
        """Look at every file of a finished chain.

        :raise InputError: naming the first one that is missing or is not as it was when the chain was finished.
        """
        hint = f"delete {self.path} to have the chain built again"
        for expected in manifest.files:
            path = self.path / expected.name
            try:
                found = FileIdentity.of(path)
            except OSError as error:
                raise InputError(f"this layer is gone: {error.strerror}", path=path, hint=hint) from error
            if found != expected:
                raise InputError("this layer has changed since it was built", path=path, hint=hint)

    def snapshots(self) -> list[dict[str, float]]:
        """Return what was noted of each completed snapshot, in order; a line that a kill cut off is left out."""
        try:
            lines = (self.path / "snapshots.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def keep_snapshots(self, count: int) -> None:
        """Forget the notes after the first ``count`` and every layer from number ``count`` on (0 keeps nothing)."""
        kept = self.snapshots()[:count]
        write_atomically(self.path / "snapshots.jsonl", "".join(json.dumps(note) + "\n" for note in kept))
        for path in self.path.glob("layer-*.qcow2"):
            if int(path.stem.removeprefix("layer-")) >= max(count, 1):
                path.unlink()
        if count == 0:
            self.layer(0).unlink(missing_ok=True)

    def note_snapshot(self, note: dict[str, float]) -> None:
        """Note that a snapshot is completed: the layers under the new one do not change any more."""
        with (self.path / "snapshots.jsonl").open("ab") as stream:
            stream.write(json.dumps(note).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, shape: ChainShape, made_from: dict[str, object], *, resumed: int) -> Manifest:
        """Write the manifest; the chain is then finished.

        :param shape: what was built.
        :param made_from: the part of the plan that it was made from.
        :param resumed: how often the building was interrupted.
        """
        files = tuple(FileIdentity.of(self.layer(n)) for n in range(shape.length + 1))
        manifest = Manifest(shape=shape, files=files, made_from=made_from, resumed=resumed)
        write_atomically(self.path / "chain.json", manifest.model_dump_json(indent=1) + "\n")
        return manifest

    def sizes(self, length: int) -> list[int]:
        """Return the bytes that the base and each layer take on disk, bottom first."""
        return [self.layer(n).stat().st_blocks * 512 for n in range(length + 1)]
