"""What a watch must not forget when it is started again: its counters, what it was at, and the disks that it knew."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import InputError
from chainlift.host.durable import write_atomically
from chainlift.lift.watching.kept import read_kept
from chainlift.lift.watching.status import Counts, Past

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE: Final = "watch.json"
_LOCK: Final = "watch.lock"
_SCHEMA: Final = 1
#: Sockets may have a new name at every start of a VM: what was not seen for so long is forgotten.
_KEPT_S: Final = 90 * 86400


@dataclass
class Known(Past):
    """What is kept of one disk."""

    socket: str
    disk: str
    vm: str
    image: str
    length: int
    state: str
    #: Seconds since the epoch.
    seen_at_s: float
    paused: str | None = None


@dataclass
class State:
    """What is kept; by socket and disk."""

    disks: dict[tuple[str, str], Known] = field(default_factory=dict)
    #: Disks that are being indexed: (socket, disk) -> since when.
    under_way: dict[tuple[str, str], str] = field(default_factory=dict)
    #: Rounds of all watches.
    rounds: int = 0


def read_state(directory: Path) -> State:
    """Return what an earlier watch has kept.

    :param directory: the state directory.
    :raise ImageError: if the file there is not ours.
    """
    return read_kept(directory / _FILE, _SCHEMA, _state_of, what="state of chainlift watch") or State()


def _state_of(data: Any) -> State:  # noqa: ANN401 - JSON
    disks = [Known(**{**entry, "counts": Counts(**entry["counts"])}) for entry in data["disks"]]
    under_way = {(str(socket), str(disk)): str(since) for socket, disk, since in data["under_way"]}
    return State({(known.socket, known.disk): known for known in disks}, under_way, int(data["rounds"]))


def write_state(directory: Path, state: State, now_s: float) -> None:
    """Keep it.

    :param now_s: seconds since the epoch.
    :raise OSError: if that does not work; the old one is as it was.
    """
    for key, known in list(state.disks.items()):
        if known.seen_at_s < now_s - _KEPT_S:
            del state.disks[key]
    data = {
        "schema": _SCHEMA,
        "rounds": state.rounds,
        "disks": [asdict(known) for known in state.disks.values()],
        "under_way": [[*key, since] for key, since in state.under_way.items()],
    }
    write_atomically(directory / _FILE, json.dumps(data, indent=1) + "\n")


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """Own a state directory: two watches would count what the other has not done.

    :raise InputError: if another watch has it.
    :raise OSError: if it cannot be written to.
    """
    path = directory / _LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "another chainlift watch has this state directory", path=directory, hint="name another one with --state"
            ) from None
        yield
    finally:
        os.close(descriptor)


def is_owned(directory: Path) -> bool:
    """Whether a watch runs that has this state directory."""
    try:
        descriptor = os.open(directory / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
