"""Which VM it is behind a socket, and what somebody wants of its disks.

The mark that ``restore`` leaves (:mod:`chainlift.lift.record.mark`) is on a file. Snapshots that are taken afterwards
put other files over it, and it is still the same disk; a linked clone over that file is another one. So a mark further
down counts only for the VM that it was made for, the uppermost that counts decides, and what an index hides does not
count: QEMU's graph says what there is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.errors import QemuCrashed, QemuError
from chainlift.lift.record.mark import Mark, read_mark

if TYPE_CHECKING:
    from chainlift.lift.live.graph import BlockGraph
    from chainlift.lift.live.qmp import Qmp
    from chainlift.lift.live.seen_process import SeenProcess

_NO_UUID = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True)
class Vm:
    """A VM, or a storage daemon."""

    #: As it was started with ``-name``; None where QEMU does not tell.
    name: str | None
    #: Its UUID, else its name, else this very process; None where nothing can be told.
    identity: str | None


def ask_vm(monitor: Qmp, process: SeenProcess) -> Vm:
    """Ask a QEMU which VM it is.

    :raise QemuCrashed: if it ends.
    """
    name = _ask(monitor, "query-name").get("name") or None
    uuid = _ask(monitor, "query-uuid").get("UUID") or _NO_UUID
    if uuid != _NO_UUID:
        return Vm(name, f"uuid {uuid}")
    return Vm(name, f"name {name}" if name is not None else _process_key(process))


def nearest_mark(graph: BlockGraph, node: str, vm: Vm, directory: Path) -> tuple[Mark, int] | None:
    """Return the mark that counts for a disk, and how many layers above it have none.

    :param node: of the active layer.
    :param directory: the state directory.
    """
    for depth, layer in enumerate(graph.backing_chain(node)):
        file = graph.protocol_file(layer)
        mark = None if file is None else read_mark(Path(file), directory)
        if mark is not None and (depth == 0 or mark.vm is None or mark.vm == vm.identity):
            return mark, depth
    return None


def _ask(monitor: Qmp, command: str) -> dict[str, Any]:
    """Return what a command answers, nothing where QEMU does not have it: a storage daemon."""
    try:
        answer: dict[str, Any] = monitor.execute(command)
    except QemuCrashed:
        raise
    except QemuError:
        return {}
    return answer


def _process_key(process: SeenProcess) -> str | None:
    with suppress(OSError, IndexError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The name in parentheses may have anything in it; the start's time is the 22nd field (proc(5)).
        fields = Path(f"/proc/{process.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return f"process {process.pid} {fields[19]} {boot}"
    return None
