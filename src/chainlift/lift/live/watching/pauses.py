"""VMs that a person has paused: by name or by socket, in the state directory; and when one was told to go on.

A pause by name is what somebody said of that name, of whichever VM has it. A disk is paused by a mark on its file,
which no other disk gets (:mod:`chainlift.lift.record.mark`).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import ImageError
from chainlift.lift.record.mark import locked, replace_file, require_schema

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.live.watching.looking import SeenDisk
    from chainlift.lift.record.mark import Mark

_FILE: Final = "paused.json"
_SCHEMA: Final = 1


@dataclass
class Pauses:
    """What was said of VMs: name, or path of a socket -> when, seconds since the epoch."""

    paused: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, float] = field(default_factory=dict)

    def of_vm(self, socket: Path, name: str | None) -> float | None:
        """Return since when a VM is paused, None if it is not."""
        return max((self.paused[key] for key in names_of(socket, name) if key in self.paused), default=None)

    def counts(self, mark: Mark, socket: Path, name: str | None) -> bool:
        """Whether a mark still pauses its disk: the VM was not told to go on since."""
        later = [self.resumed[key] for key in names_of(socket, name) if key in self.resumed]
        return mark.is_paused and all(at_s < mark.at_s for at_s in later)

    def of_disk(self, disk: SeenDisk, socket: Path, name: str | None) -> str | None:
        """Return why a disk is to be left alone, None if it is not."""
        since = self.of_vm(socket, name)
        if since is not None:
            return f"paused by command since {_date(since)}"
        if disk.mark is None or not self.counts(disk.mark[0], socket, name):
            return None
        mark = disk.mark[0]
        said = "restored by hand" if mark.why == "restored" else "paused by command"
        return f"{said}{' on' if mark.why == 'restored' else ' since'} {_date(mark.at_s)}"


def names_of(socket: Path, name: str | None) -> list[str]:
    """Return by which words a VM can be paused: its name, its socket's path, and its socket's name."""
    return [*([name] if name is not None else []), os.path.realpath(socket), socket.name, socket.stem]


def read_pauses(directory: Path) -> Pauses:
    """Return what was said.

    :param directory: the state directory.
    :raise ImageError: if the file there is not ours.
    """
    path = directory / _FILE
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        require_schema(data, _SCHEMA)
        return Pauses(*({str(key): float(at_s) for key, at_s in data[part].items()} for part in ("paused", "resumed")))
    except FileNotFoundError:
        return Pauses()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ImageError(f"is no record of pauses: {error}", path=path, hint="move it away") from error


def pause(directory: Path, word: str) -> bool:
    """Pause the VMs of a name or a socket; return whether they were not yet.

    :param word: a VM's name, a socket's name, or a socket's absolute path.
    :raise OSError: if it cannot be kept.
    """
    with locked(directory):
        pauses = read_pauses(directory)
        is_new = word not in pauses.paused
        pauses.paused.setdefault(word, time.time())
        pauses.resumed.pop(word, None)
        _write(directory, pauses)
    return is_new


def resume(directory: Path, words: list[str]) -> bool:
    """Let VMs go on, and each disk of theirs that is paused by itself; return whether one of the names was paused.

    :raise OSError: if it cannot be kept.
    """
    with locked(directory):
        pauses = read_pauses(directory)
        was = [pauses.paused.pop(word) for word in words if word in pauses.paused]
        pauses.resumed.update(dict.fromkeys(words, time.time()))
        _write(directory, pauses)
    return bool(was)


def _write(directory: Path, pauses: Pauses) -> None:
    replace_file(directory / _FILE, json.dumps({"schema": _SCHEMA, **asdict(pauses)}, indent=1) + "\n")


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
