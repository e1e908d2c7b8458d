"""The list of names that a relink writes, kept beside the images: it finishes a run that was killed, and undoes one."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from chainlift.errors import ChainliftError, ImageError, InputError, OperationError
from chainlift.host.durable import sync_path
from chainlift.lift.build.workspace import write_file
from chainlift.lift.disk import Change
from chainlift.lift.ownership import Ownership
from chainlift.lift.record.manifest import Pointer, read_text
from chainlift.lift.record.pointer import named_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_JOURNAL: Final = "chainlift-relink-{}.json"
_SCHEMA: Final = 1
_ABOUT: Final = "backing file names that chainlift relink has written; chainlift relink --undo THIS writes the old ones"


def new_journal(place: Path) -> Path:
    """Return where the journal of a run is to be: a name that is free in a directory."""
    number = 1
    while os.path.lexists(place / _JOURNAL.format(number)):
        number += 1
    return place / _JOURNAL.format(number)


def write_journal(journal: Path, changes: Sequence[Change], state: Literal["begun", "done", "undone"]) -> None:
    """Note names and how far they are written; what is noted is durable when this returns.

    :param journal: the file.
    :param state: how far they are written.
    :raise OperationError: if that cannot be done before the first name is written; later it is not needed.
    """
    data = {
        "schema": _SCHEMA,
        "about": _ABOUT,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "state": state,
        "changes": [
            {"image": str(change.owner), "old": vars(change.old), "new": vars(change.new)} for change in changes
        ],
    }
    try:
        # The directory may be anybody's: nothing that lies there is followed or written over.
        ownership = Ownership(os.geteuid(), os.getegid(), 0o600)
        write_file(journal, (json.dumps(data, indent=1) + "\n").encode(), ownership)
        sync_path(journal.parent)
    except OSError as error:
        if state == "begun":
            raise OperationError(f"cannot be written: {error.strerror}; nothing was changed", path=journal) from error
        # The names are what they should be; the next run sees it.


def forget_journal(journal: Path) -> None:
    """Leave no list of what was not done."""
    with suppress(OSError):  # the next run sees that nothing of it was done
        journal.unlink()
        sync_path(journal.parent)


def unfinished_journal(place: Path) -> Path | None:
    """Return the journal of a run of ours that was killed; what another user has put there is not believed."""
    for path in sorted(place.glob(_JOURNAL.format("*"))):
        try:
            is_ours = path.lstat().st_uid == os.geteuid()
            if is_ours and json.loads(read_text(path))["state"] == "begun":
                read_journal(path)
                return path
        except (ChainliftError, OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # somebody else's file
    return None


def read_journal(journal: Path) -> list[Change]:
    """Read a journal.

    :raise InputError: if it is none.
    """
    try:
        data = json.loads(read_text(journal))
        if data["schema"] != _SCHEMA:
            raise InputError(f"has schema {data['schema']!r}, this chainlift reads {_SCHEMA}", path=journal)
        return [Change(Path(one["image"]), _pointer(one["old"]), _pointer(one["new"])) for one in data["changes"]]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", path=journal) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("is no list that chainlift relink has written", path=journal) from error


def _pointer(data: Any) -> Pointer:  # noqa: ANN401 - JSON
    name, file_format = data["name"], data["format"]
    if not isinstance(name, str) or not isinstance(file_format, str | None):
        raise TypeError
    return Pointer(name, file_format)


def applied_changes(changes: Iterable[Change]) -> list[Change]:
    """Return the changes that headers have."""
    return [change for change in changes if name_in(change.owner) == change.new.name != change.old.name]


def name_in(image: Path) -> str | None:
    """Return the backing file name in an image's header; None if there is none, or it cannot be read."""
    try:
        return named_in(image)
    except ImageError:
        return None
