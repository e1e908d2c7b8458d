"""The status in Prometheus' text format (version 0.0.4), for node_exporter's textfile collector."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chainlift._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chainlift.lift.watching.status import DiskStatus, VmStatus, WatchStatus

    _Value = float | int | bool | None


@dataclass
class _Family:
    name: str
    kind: str
    text: str
    samples: list[tuple[dict[str, str], float]] = field(default_factory=list)


def as_prometheus(status: WatchStatus, *, now_s: float | None = None) -> str:
    """Return the status as metrics.

    :param now_s: seconds since the epoch; None: now.
    """
    now = time.time() if now_s is None else now_s
    vms, disks = list(status.vms.values()), list(status.disks.values())
    families = [
        _of_vms("up", "1 if the VM answered when it was last asked.", vms, lambda vm: vm.is_up),
        _of_vms("last_look_timestamp_seconds", "When the VM last answered a look.", vms, lambda vm: vm.last_look_at_s),
        _of_vms(
            "last_look_age_seconds",
            "How long ago that was when this was written.",
            vms,
            lambda vm: None if vm.last_look_at_s is None else max(0.0, now - vm.last_look_at_s),
        ),
        _of_vms("last_look_seconds", "How long the last look took.", vms, lambda vm: vm.last_look_s),
        _info("disk_info", "Which image a disk is now.", disks),
        _of_disks("chain_length", "Layers over the base or the index.", disks, lambda disk: disk.length),
        _of_disks("busy", "1 if a job or a migration holds the disk.", disks, lambda disk: disk.busy is not None),
        _of_disks("paused", "1 if somebody wants the disk left alone.", disks, lambda disk: disk.paused is not None),
        _of_disks("failed", "1 if the last attempt failed.", disks, lambda disk: disk.error is not None),
        _of_disks("indexed_total", "Times that the disk was lifted.", disks, lambda disk: disk.counts.indexed),
        _of_disks("failures_total", "Attempts that failed.", disks, lambda disk: disk.counts.failed),
        _of_disks("copied_bytes_total", "Bytes that lifts have copied.", disks, lambda disk: disk.counts.copied_bytes),
        _of_disks("last_index_seconds", "How long the last lift took.", disks, lambda disk: disk.last_index_s),
        _of_disks("pruned_total", "Times that the disk was pruned.", disks, lambda disk: disk.counts.pruned),
        _of_disks("deleted_snapshots_total", "Snapshots deleted.", disks, lambda disk: disk.counts.deleted),
        _of_disks("freed_bytes_total", "Bytes that deletions freed.", disks, lambda disk: disk.counts.freed_bytes),
        _of_disks("last_prune_seconds", "How long the last prune took.", disks, lambda disk: disk.last_prune_s),
        _of_disks(
            "last_longest_command_seconds",
            "Longest command of the last pivot.",
            disks,
            lambda disk: disk.last_longest_command_s,
        ),
        _one("silent_sockets", "Sockets that could not be asked.", sum(vm.is_up is False for vm in vms)),
        _one("file_problems", "Files that could not be written or read.", len(status.problems)),
        _one("rounds_total", "Rounds, of earlier watches too.", status.rounds_before + status.rounds),
        _one("last_round_seconds", "How long the last round took.", status.last_round_s),
        _one("start_timestamp_seconds", "When the watch was started.", status.started_at_s),
        _one("written_timestamp_seconds", "When this was written.", now),
        _Family("watch_info", "gauge", "The version of chainlift.", [({"version": __version__}, 1.0)]),
    ]
    return "".join(line + "\n" for family in families for line in _lines(family))


def _of_vms(name: str, text: str, vms: Iterable[VmStatus], value: Callable[[VmStatus], _Value]) -> _Family:
    return _family(name, text, [({"socket": vm.socket, "vm": vm.vm}, value(vm)) for vm in vms])


def _of_disks(name: str, text: str, disks: Iterable[DiskStatus], value: Callable[[DiskStatus], _Value]) -> _Family:
    return _family(name, text, [(_labels(disk), value(disk)) for disk in disks])


def _info(name: str, text: str, disks: Iterable[DiskStatus]) -> _Family:
    return _family(name, text, [({**_labels(disk), "image": disk.image, "node": disk.node}, 1) for disk in disks])


def _one(name: str, text: str, value: _Value) -> _Family:
    return _family(name, text, [({}, value)])


def _family(name: str, text: str, samples: Iterable[tuple[dict[str, str], _Value]]) -> _Family:
    kind = "counter" if name.endswith("_total") else "gauge"
    return _Family(name, kind, text, [(labels, float(value)) for labels, value in samples if value is not None])


def _labels(disk: DiskStatus) -> dict[str, str]:
    return {"socket": disk.socket, "vm": disk.vm, "disk": disk.disk}


def _lines(family: _Family) -> list[str]:
    if not family.samples:
        return []
    name = f"chainlift_{family.name}"
    lines = [f"# HELP {name} {_escape(family.text, quotes=False)}", f"# TYPE {name} {family.kind}"]
    for labels, value in family.samples:
        inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        number = str(int(value)) if value.is_integer() else repr(value)
        lines.append(f"{name}{{{inside}}} {number}" if inside else f"{name} {number}")
    return lines


def _escape(text: str, *, quotes: bool = True) -> str:
    # The format is UTF-8; a file name need not be.
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
