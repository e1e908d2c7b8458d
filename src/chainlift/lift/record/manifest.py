"""What a lift says of itself, written beside its own files: ``index-1.json`` beside ``index-1.vmdk``.

It is found through the pointer that names the lift (:mod:`chainlift.lift.record.lifts`), whatever the lifted image is
called by then. The file is there before the lift's other files, as a claim to their name; until the lift is about to
be switched to, it says that nobody can use it, and the next run removes what a killed one has left.

The classes are plain dataclasses, and pydantic validates what is read: to build a first lift nothing is parsed, and
the import would take longer than merging the tables of 300 layers.

History of :data:`SCHEMA`: 1, the first, one for each directory, in ``manifest.json``; 2 (a digest of each layer's L2
tables); 3 (a file for each lift, where the original pointer led to, and whether the lift was ever used). 1 and 2 can
still be read.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from chainlift.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 3
#: What every record was called up to schema 2.
NAME = "manifest.json"
SUFFIX = ".json"
_READABLE = (1, 2, 3)
#: 10,000 layers take 8 MB.
_MOST_BYTES = 64 << 20
#: pydantic's ConfigDict: a key that we do not know means that we do not know what it says.
_CONFIG: dict[str, Any] = {"extra": "forbid"}


@dataclass(frozen=True)
class FileIdentity:
    """How a file was found when the lift was built; any difference means that it is not the same any more."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG
    #: Absolute.
    path: str
    device: int
    inode: int
    size_bytes: int
    #: Times as the file system has them; ctime also shows what was changed back.
    mtime_ns: int
    ctime_ns: int
    #: SHA-256 of the header and the L1 table of a qcow2 layer; None for a raw one.
    metadata_sha256: str | None = None


@dataclass(frozen=True)
class Pointer:
    """A backing file name as it stands in a header."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG
    #: The name, which may be a ``json:`` one.
    name: str
    #: The format; None where the header says none.
    format: str | None


@dataclass(frozen=True)
class Tables:
    """What the L2 tables of a layer say, see :mod:`chainlift.chain.digest`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG
    sha256: str
    #: Of the guest's disk, from its start.
    span_bytes: int


@dataclass(frozen=True)
class Layer:
    """One layer that the lift stands on, or replaces."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG
    identity: FileIdentity
    format: Literal["qcow2", "raw"]
    #: What this layer's own header names as its backing file.
    backing: Pointer | None = None
    #: Clusters of it that can be seen through the layers above it.
    visible_clusters: int = 0
    #: The external data file, where it has one.
    data_file: FileIdentity | None = None
    #: None for a raw layer, and where they were not read: below another lift that did not say.
    tables: Tables | None = None


@dataclass(frozen=True)
class Manifest:
    """One lift."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _CONFIG
    #: Which lift it is.
    kind: Literal["index", "squash"]
    #: The version that made it.
    chainlift: str
    #: When, ISO 8601, UTC.
    created_at: str
    #: The image that was lifted, absolute, as it was called then: for people; nothing is decided by it.
    image: str
    #: What its header named before it was lifted for the first time: restoring writes this again.
    original: Pointer
    #: What its header names now.
    lifted: Pointer
    #: Layers that can be reached through the lift, top first; for a squash, those that it replaces.
    layers: list[Layer]
    #: Files of the lift itself.
    files: list[FileIdentity]
    #: Of the disk.
    virtual_size_bytes: int
    #: Of the lift's own tables.
    cluster_size_bytes: int
    #: What was copied for it.
    copied_bytes: int
    #: Layers under a squash, which it has as its own backing chain.
    below: list[Layer] = field(default_factory=list)
    #: Whether the layers that a squash replaces were deleted.
    deleted: bool = False
    #: Files that an index points into, its own included; 0 for a squash.
    extents: int = 0
    #: Shared with the layers by the file system.
    cloned_bytes: int = 0
    #: The file that :attr:`original` led to, absolute; None where that was not one plain file.
    original_path: str | None = None
    #: Whether an image may name the lift: said before the first switch, and true from then on.
    used: bool = True
    #: Files of lifts that the image stood on before this one, which it does not need any more; absolute.
    supersedes: list[str] = field(default_factory=list)


def write_text(manifest: Manifest) -> str:
    """Return a record as it is written: a line for each key and each layer."""
    # Not json's own indentation: with it a list of 1,000 layers takes longer than their tables.
    lines = [f'"schema": {SCHEMA}']
    for key, value in vars(manifest).items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(element, default=vars) for element in value) + "\n ]"
        else:
            text = json.dumps(value, default=vars)
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n " + ",\n ".join(lines) + "\n}\n"


def read_text(path: Path) -> str:
    """Read a record or a note: what lies beside an image may be anything.

    :raise OSError: if it cannot be read.
    :raise ValueError: if it is no regular file, too large, or no UTF-8.
    """
    # O_NONBLOCK: a FIFO would hang us for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
            raise ValueError("it is no regular file, or too large")
        with open(descriptor, encoding="utf-8", closefd=False) as stream:
            return stream.read(_MOST_BYTES)
    finally:
        os.close(descriptor)


def claim_text(kind: str) -> str:
    """Return what stands in a record's place while the lift is built."""
    return json.dumps({"schema": SCHEMA, "kind": kind, "used": False}) + "\n"


def is_unused(path: Path) -> bool:
    """Whether a record says that its lift was never switched to, and nobody can use it."""
    try:
        data = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("schema") in _READABLE and data.get("used") is False


def read_manifest(path: Path) -> Manifest:
    """Read a record.

    :param path: the file.
    :raise ImageError: if it is missing, of another schema, or no record.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        data = json.loads(read_text(path))
        schema = data.pop("schema")
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", path=path) from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f"is not the record of a lift: {error}", path=path) from error
    if schema not in _READABLE:
        hint = "use the chainlift that made it" if isinstance(schema, int) and schema > SCHEMA else None
        raise ImageError(f"has schema {schema!r}, this chainlift reads {SCHEMA}", path=path, hint=hint)
    try:
        return TypeAdapter(Manifest).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ImageError(f"does not hold what it should: {where}: {first['msg']}", path=path) from error
