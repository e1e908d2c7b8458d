"""VMs that a person has paused: by name or by socket, in the state directory; and when one was told to go on.

A pause by name is what somebody said of that name, of whichever VM has it. A disk is paused by a mark on its file,
which no other disk gets (:mod:`chainlift.lift.record.mark`).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chainlift.host.durable import write_atomically
from chainlift.lift.record.mark import locked
from chainlift.lift.watching.kept import read_kept
from chainlift.lift.watching.where import words_of

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.record.mark import Mark
    from chainlift.lift.watching.looking import SeenDisk
    from chainlift.lift.watching.where import Where

_FILE: Final = "paused.json"
_SCHEMA: Final = 1


@dataclass
class Pauses:
    """What was said of VMs: name, or path of a socket -> when, seconds since the epoch."""

    paused: dict[str, float] = field(default_factory=dict)
    resumed: dict[str, float] = field(default_factory=dict)

    def of_vm(self, where: Where, name: str | None) -> float | None:
        """Return since when a VM is paused, None if it is not."""
        return max((self.paused[key] for key in words_of(where, name) if key in self.paused), default=None)

    def counts(self, mark: Mark, where: Where, name: str | None) -> bool:
        """Whether a mark still pauses its disk: the VM was not told to go on since.

        :param mark: of a disk.
        :param where: its VM is asked.
        :param name: of its VM, where that is known.
        """
        later = [self.resumed[key] for key in words_of(where, name) if key in self.resumed]
        return mark.is_paused and all(at_s < mark.at_s for at_s in later)

    def of_disk(self, disk: SeenDisk, where: Where, name: str | None) -> str | None:
        """Return why a disk is to be left alone, None if it is not.

        :param disk: as it was looked at.
        :param where: its VM is asked.
        :param name: of its VM, where that is known.
        """
        since = self.of_vm(where, name)
        if since is not None:
            return f"paused by command since {_date(since)}"
        if disk.mark is None or not self.counts(disk.mark[0], where, name):
            return None
        mark = disk.mark[0]
        said = "restored by hand" if mark.why == "restored" else "paused by command"
        return f"{said}{' on' if mark.why == 'restored' else ' since'} {_date(mark.at_s)}"


def read_pauses(directory: Path) -> Pauses:
    """Return what was said.

    :param directory: the state directory.
    :raise ImageError: if the file there is not ours.
    """
    return read_kept(directory / _FILE, _SCHEMA, _pauses_of, what="record of pauses") or Pauses()


def _pauses_of(data: Any) -> Pauses:  # noqa: ANN401 - JSON
    return Pauses(*({str(key): float(at_s) for key, at_s in data[part].items()} for part in ("paused", "resumed")))


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
    write_atomically(directory / _FILE, json.dumps({"schema": _SCHEMA, **asdict(pauses)}, indent=1) + "\n")


def _date(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))
