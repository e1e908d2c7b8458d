"""What a watch knows: of each VM, of each disk, of itself; and how that is written for people and their tools."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from chainlift._version import __version__
from chainlift.lift.watching.where import described, where_of

SCHEMA = 2


@dataclass
class Counts:
    """What was done to a disk since it was first seen. Kept over restarts, never less than before."""

    indexed: int = 0
    failed: int = 0
    copied_bytes: int = 0
    pruned: int = 0
    #: Snapshots that were deleted, and what the file system got back.
    deleted: int = 0
    freed_bytes: int = 0


@dataclass(kw_only=True)
class Past:
    """What was done to a disk, and is kept over restarts."""

    counts: Counts = field(default_factory=Counts)
    last_indexed_at: str | None = None
    last_index_s: float | None = None
    #: Of the last index.
    last_extents: int | None = None
    #: The longest that one command of the last pivot took.
    last_longest_command_s: float | None = None
    last_pruned_at: str | None = None
    last_prune_s: float | None = None

    def past(self) -> dict[str, Any]:
        """Return just that, by its names."""
        return {each.name: getattr(self, each.name) for each in fields(Past)}


@dataclass
class DiskStatus(Past):
    """What is known of one disk of one VM."""

    socket: str
    vm: str
    #: The name of its device or export, else its node's.
    disk: str
    node: str
    image: str
    #: Layers over the base, or over the index that they stand on.
    length: int
    seen_at: str
    #: Whether that is more than it should be or, with a policy, whether there is something to delete.
    is_long: bool = False
    is_indexing: bool = False
    is_pruning: bool = False
    #: The job or the migration that would keep it from being indexed.
    busy: str | None = None
    #: Who said that it is to be left alone.
    paused: str | None = None
    #: Why the last attempt did not work; None if it did.
    error: str | None = None
    #: After an attempt that failed on the way: not again before then.
    retry_at: str | None = None

    @property
    def state(self) -> str:
        """In a word."""
        if self.is_pruning:
            return "pruning"
        if self.is_indexing:
            return "indexing"
        if self.paused is not None:
            return "paused"
        if self.busy is not None:
            return "busy"
        if self.error is not None:
            return "failed"
        return "long" if self.is_long else "short"


@dataclass
class VmStatus:
    """What is known of one VM."""

    #: Its socket, or its domain: ``domain vm7``.
    socket: str
    #: As QEMU tells it; None where it does not, or was never asked.
    name: str | None = None
    #: Whether it answered when it was last asked; None before that.
    is_up: bool | None = None
    #: Why it did not answer.
    error: str | None = None
    #: When the look began that is not done yet, seconds since the epoch.
    looking_since_s: float | None = None
    #: When it last answered, seconds since the epoch.
    last_look_at_s: float | None = None
    #: How long that took.
    last_look_s: float | None = None

    @property
    def place(self) -> str:
        """Where it is asked, as the journal has it."""
        return described(where_of(self.socket))

    @property
    def vm(self) -> str:
        """The VM's name, or its socket's."""
        return self.name or os.path.splitext(os.path.basename(self.socket))[0]  # noqa: PTH119, PTH122


@dataclass
class WatchStatus:
    """What a watch has seen so far."""

    started_at_s: float = field(default_factory=time.time)
    rounds: int = 0
    #: Of earlier watches.
    rounds_before: int = 0
    #: When the last round ended, and how long it took.
    last_round_at_s: float | None = None
    last_round_s: float | None = None
    #: By socket.
    vms: dict[str, VmStatus] = field(default_factory=dict)
    #: By socket and name: the image has another name with every snapshot, the node too.
    disks: dict[tuple[str, str], DiskStatus] = field(default_factory=dict)
    #: Files and directories that could not be written or read, and why.
    problems: dict[str, str] = field(default_factory=dict)

    def troubles(self) -> list[str]:
        """Return the disks, sockets and files that could not be served."""
        silent = [vm.socket for vm in self.vms.values() if vm.is_up is False]
        waiting = [disk for disk in self.disks.values() if disk.is_long and disk.paused is None]
        return [*silent, *(f"{disk.vm} {disk.disk}" for disk in waiting), *self.problems]


def time_text(at_s: float | None) -> str | None:
    """Return a time as it is written: UTC, ISO 8601."""
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")


def as_json(status: WatchStatus) -> dict[str, object]:
    """Return the status as it is written for monitoring."""
    return {
        "schema": SCHEMA,
        "version": __version__,
        "pid": os.getpid(),
        "started_at": time_text(status.started_at_s),
        "written_at": time_text(time.time()),
        "rounds": status.rounds,
        "last_round_at": time_text(status.last_round_at_s),
        "last_round_s": status.last_round_s,
        "vms": [
            {
                "socket": vm.socket,
                "vm": vm.vm,
                "name": vm.name,
                "up": vm.is_up,
                "error": vm.error,
                "looking_since": time_text(vm.looking_since_s),
                "last_look_at": time_text(vm.last_look_at_s),
                "last_look_s": vm.last_look_s,
            }
            for vm in status.vms.values()
        ],
        "disks": [_disk(disk) for disk in status.disks.values()],
        "silent": [{"socket": vm.socket, "error": vm.error} for vm in status.vms.values() if vm.is_up is False],
        "problems": status.problems,
    }


def _disk(disk: DiskStatus) -> dict[str, object]:
    row = asdict(disk)
    counts = row.pop("counts")
    return {**row, "state": disk.state, **counts}
