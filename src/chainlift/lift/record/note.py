"""The way back, recorded a second time: ``IMAGE.lift.json`` beside the directory ``IMAGE.lift/``.

It outlives the directory: who deletes that has an image that does not open, and this file says what it named before.
It decides nothing; it is looked up by the name of the file that a pointer leads to. It has every lift that was ever in
use here, also those that are removed: a copy of the image, wherever that is, may still name one, and must not find
another lift under the old name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError
from chainlift.lift.record.manifest import Pointer, read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_SCHEMA: Final = 1
_ABOUT: Final = "what images named before chainlift lifted them: qemu-img rebase -u -F FORMAT -b NAME IMAGE goes back"


@dataclass(frozen=True)
class WayBack:
    """What an image named before it was lifted."""

    #: Absolute, as it was called then.
    image: str
    original: Pointer
    #: The file that this led to; None where it was not one plain file.
    original_path: str | None = None
    #: Whether the layers were deleted since, so that nothing leads back.
    deleted: bool = False


def note_path(directory: Path) -> Path:
    """Return the note that belongs to a lift's directory."""
    return directory.with_name(directory.name + ".json")


def read_note(directory: Path) -> dict[str, WayBack]:
    """Return what the note says: name of a lift's file in the directory -> the way back; empty without a note.

    :raise ImageError: if something else has the note's name.
    """
    path = note_path(directory)
    try:
        data = json.loads(read_text(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _not_ours(path, error) from error
    try:
        if data["schema"] != _SCHEMA:
            raise _not_ours(path, f"its schema is {data['schema']!r}")
        return {
            str(name): WayBack(
                image=str(entry["image"]),
                original=Pointer(name=str(entry["original"]["name"]), format=entry["original"]["format"]),
                original_path=entry["original_path"],
                deleted=bool(entry["deleted"]),
            )
            for name, entry in data["lifts"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _not_ours(path, error) from error


def note_text(entries: Mapping[str, WayBack]) -> str:
    """Return a note as it is written."""
    data = {"schema": _SCHEMA, "about": _ABOUT, "lifts": entries}
    return json.dumps(data, indent=1, default=vars) + "\n"


def _not_ours(path: Path, why: object) -> ImageError:
    return ImageError(f"is no note of chainlift: {why}", path=path, hint="move it away")
