"""What a lift stands on, written beside it: ``manifest.json`` in ``IMAGE.lift/``.

History of :data:`SCHEMA`: 1, the first.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chainlift.errors import ImageError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1
NAME = "manifest.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class FileIdentity(_Frozen):
    """How a file was found when the lift was built; any difference means that it is not the same any more."""

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


class Pointer(_Frozen):
    """A backing file name as it stands in a header."""

    name: str
    format: str | None


class Layer(_Frozen):
    """One layer that the lift stands on, or replaces."""

    identity: FileIdentity
    format: Literal["qcow2", "raw"]
    #: What this layer's own header names as its backing file.
    backing: Pointer | None = None
    #: Clusters of it that can be seen through the layers above it.
    visible_clusters: int = 0
    #: The external data file, where it has one.
    data_file: FileIdentity | None = None


class Manifest(_Frozen):
    """One lift."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    kind: Literal["index", "squash"]
    chainlift: str
    created_at: str
    #: The lifted image, absolute; where it moved, verify says so.
    image: str
    #: What its header named before: restoring writes this again.
    original: Pointer
    #: What its header names now.
    lifted: Pointer
    #: Layers that can be reached through the lift, top first; for a squash, those that it replaces.
    layers: list[Layer]
    #: Layers under a squash, which it has as its own backing chain.
    below: list[Layer] = Field(default_factory=list)
    #: Whether the layers that a squash replaces were deleted.
    deleted: bool = False
    #: Files of the lift itself.
    files: list[FileIdentity]
    extents: int = 0
    virtual_size_bytes: int
    cluster_size_bytes: int
    copied_bytes: int
    #: Shared with the layers by the file system.
    cloned_bytes: int = 0


def write_text(manifest: Manifest) -> str:
    """Return the manifest as it is written."""
    return manifest.model_dump_json(indent=1, by_alias=True) + "\n"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest.

    :param path: the file.
    :raise ImageError: if it is missing, of another schema, or no manifest.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", path=path) from error
    except UnicodeDecodeError as error:
        raise ImageError("is not a manifest of a lift", path=path) from error
    try:
        schema = json.loads(text).get("schema")
        if schema != SCHEMA:
            raise ImageError(f"has schema {schema}, this chainlift reads {SCHEMA}", path=path)
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ImageError(f"does not hold what it should: {where}: {first['msg']}", path=path) from error
    except (ValueError, AttributeError) as error:
        raise ImageError(f"is not a manifest of a lift: {error}", path=path) from error
