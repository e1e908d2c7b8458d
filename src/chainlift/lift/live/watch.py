"""Keeping the chains of many VMs short: looked at in turns, indexed when they have grown too long."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError
from chainlift.lift.live.describe import look
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.disks import list_disks
from chainlift.lift.live.session import connect, open_session
from chainlift.lift.verbs import index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chainlift.qemu.binary import Qemu


@dataclass
class DiskStatus:
    """What is known of one disk of one VM."""

    socket: str
    node: str
    image: str
    #: Layers over the base, or over the index that they stand on.
    length: int
    seen_at: str
    indexed: int = 0
    last_indexed_at: str | None = None
    last_index_s: float | None = None
    #: The longest that one command of the last pivot took.
    last_longest_command_s: float | None = None
    #: Why the last attempt did not work; None if it did.
    error: str | None = None


@dataclass
class WatchStatus:
    """What a watch has seen so far."""

    #: By the image's path: nodes get new names with every snapshot, sockets with every start.
    disks: dict[str, DiskStatus] = field(default_factory=dict)
    #: Sockets that could not be asked, and why.
    silent: dict[str, str] = field(default_factory=dict)
    rounds: int = 0


def sockets_in(directory: Path) -> list[Path]:
    """Return the sockets in a directory; ones that nobody listens on are found out later."""
    return sorted(path for path in directory.iterdir() if path.is_socket())


def watch_round(
    status: WatchStatus,
    sockets: Iterable[Path],
    *,
    max_length: int,
    copy_budget_bytes: int | None = None,
    qemu: Qemu | None = None,
) -> None:
    """Look at every disk of every socket once, and index those that are too long.

    Never raises for one VM's sake: what went wrong is in the status, and the others are looked at.

    :param max_length: layers over the base, or over an index, that are still well.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    seen: set[str] = set()
    status.silent = {}
    for socket in sockets:
        try:
            found = _look(socket)
        except ChainliftError as error:
            status.silent[str(socket)] = str(error)
            continue
        for node, image, length in found:
            seen.add(str(image))
            known = status.disks.get(str(image))
            disk = known or DiskStatus(str(socket), node, str(image), length, now)
            disk.socket, disk.node, disk.length, disk.seen_at = str(socket), node, length, now
            status.disks[str(image)] = disk
            if length > max_length:
                _index(disk, copy_budget_bytes, qemu)
    for gone in status.disks.keys() - seen:
        if status.disks[gone].socket not in status.silent:
            del status.disks[gone]
    status.rounds += 1


def _look(socket: Path) -> list[tuple[str, Path, int]]:
    """Return node, image and length of every qcow2 disk with a local file; the connection is not kept."""
    with connect(socket) as (monitor, _, peer):
        disks = list_disks(monitor, look(monitor, peer), peer)
    return [(disk.node, disk.path, disk.length) for disk in disks if disk.driver == "qcow2" and disk.path is not None]


def _index(disk: DiskStatus, copy_budget_bytes: int | None, qemu: Qemu | None) -> None:
    began = time.monotonic()
    try:
        with open_session(Path(disk.socket), node=disk.node) as session:
            running = RunningDisk(session, qemu)
            # Whoever lets this run by itself asks for its old indexes to be removed.
            index(running, copy_budget_bytes=copy_budget_bytes, clean=True)
    except ChainliftError as error:
        disk.error = str(error)
        return
    disk.error = None
    disk.length = 1
    disk.indexed += 1
    disk.last_indexed_at = datetime.now(UTC).isoformat(timespec="seconds")
    disk.last_index_s = round(time.monotonic() - began, 3)
    disk.last_longest_command_s = round(running.timings.longest_s(), 4)


def as_json(status: WatchStatus) -> dict[str, object]:
    """Return the status as it is written for monitoring."""
    return {
        "schema": 1,
        "rounds": status.rounds,
        "disks": [asdict(disk) for disk in status.disks.values()],
        "silent": [{"socket": socket, "error": error} for socket, error in status.silent.items()],
    }


def as_prometheus(status: WatchStatus) -> str:
    """Return the status in Prometheus' text format (version 0.0.4), for node_exporter's textfile collector."""
    lines = []
    for name, kind, text, values in (
        ("chain_length", "gauge", "Layers over the base or the index.", [(d, d.length) for d in status.disks.values()]),
        (
            "indexed_total",
            "counter",
            "Times that the disk was indexed.",
            [(d, d.indexed) for d in status.disks.values()],
        ),
        ("failed", "gauge", "1 if the last attempt failed.", [(d, int(bool(d.error))) for d in status.disks.values()]),
        (
            "last_longest_command_seconds",
            "gauge",
            "Longest command of the last pivot.",
            [(d, d.last_longest_command_s) for d in status.disks.values() if d.last_longest_command_s is not None],
        ),
    ):
        lines += [f"# HELP chainlift_{name} {text}", f"# TYPE chainlift_{name} {kind}"]
        lines += [f'chainlift_{name}{{image="{_escape(disk.image)}"}} {value}' for disk, value in values]
    lines += [
        "# HELP chainlift_silent_sockets Sockets that could not be asked.",
        "# TYPE chainlift_silent_sockets gauge",
        f"chainlift_silent_sockets {len(status.silent)}",
    ]
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
