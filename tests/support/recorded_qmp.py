"""Answers of QMP as QEMU gave them, for tests that take no QEMU; ``python -m tests.support.recorded_qmp`` records anew.

The machine that is recorded never runs. It has three disks: ``disk0`` on a chain of three layers over a base, under a
throttle filter, served by an iothread; ``drive1`` with the options and names of old, on SCSI; and ``disk2``, which an
export and a block job use. Then, as in the middle of a pivot, ``disk0`` stands on a squash, and only the hold keeps its
old chain open; but one layer of it has a name of its own, and another is used by a node of somebody else.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.errors import QemuError
from chainlift.lift.live.disks import list_disks, list_iothreads
from chainlift.lift.live.graph import query_graph
from chainlift.lift.live.seen_process import SeenProcess
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

RECORDED = Path(__file__).parents[1] / "lift/live/recorded"
#: Where the images lie in what was recorded.
IMAGES = "/images"
HOLD, NEW = "chainlift-1a2b3c4d-hold", "chainlift-1a2b3c4d-1"


class RecordedQmp:
    """Answers as was recorded.

    :param answers: as in a file: command, arguments, and what came; where the same was asked more than once, the last
        answer is given for ever.
    :param accepts: commands that change QEMU, and succeed.
    :param refuses: nodes that ``blockdev-del`` of them fails for.
    """

    def __init__(
        self, answers: list[Mapping[str, Any]], accepts: Collection[str] = (), refuses: Collection[str] = ()
    ) -> None:
        self._answers: dict[str, list[Mapping[str, Any]]] = {}
        for item in answers:
            self._answers.setdefault(_key(item["command"], item["arguments"]), []).append(item)
        self._accepts, self._refuses = accepts, refuses
        #: The commands of :attr:`accepts` that were given.
        self.changes: list[tuple[str, Mapping[str, object]]] = []

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float = 0,
        **keywords: object,
    ) -> Any:
        given = {**(arguments or {}), **keywords}
        if command in self._accepts:
            if given.get("node-name") in self._refuses:
                raise QemuError(f"Failed to find node with node-name='{given['node-name']}'")
            self.changes.append((command, given))
            return {}
        there = self._answers[_key(command, given)]
        answer = there.pop(0) if len(there) > 1 else there[0]
        if "error" in answer:
            raise QemuError(answer["error"])
        return answer["return"]


def recorded(release: str, state: str) -> list[Mapping[str, Any]]:
    """Return the answers of a release, ``7.2``, in a state: ``disks`` or ``held``."""
    return json.loads((RECORDED / f"{release}.json").read_text())[state]


RELEASES = sorted((path.stem for path in RECORDED.glob("*.json")), key=lambda name: [*map(int, name.split("."))])


class _Recorder:
    """Passes commands on and keeps what came."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self.answers: list[dict[str, Any]] = []

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, **keywords: object) -> Any:
        item: dict[str, Any] = {"command": command, "arguments": {**(arguments or {}), **keywords}}
        self.answers.append(item)
        try:
            item["return"] = self._monitor.execute(command, item["arguments"])
        except QemuError as error:
            item["error"] = str(error)
            raise
        return item["return"]


def record(spec: str) -> Path:
    """Record what a QEMU answers; return the file."""
    qemu = find_qemu(spec, need=("system",))
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        states = {}
        with (
            QemuProcess(qemu.command("system", *_machine(directory)), environment=qemu.environment) as process,
            Monitor.connect(directory / "qmp", process) as monitor,
        ):
            monitor.execute("nbd-server-start", addr={"type": "unix", "data": {"path": f"{directory}/nbd"}})
            monitor.execute("block-export-add", type="nbd", id="exp0", node_name="disk2", name="disk")
            monitor.execute("block-stream", {"job-id": "job0", "device": "disk2", "speed": 1})
            recorder = _Recorder(monitor)
            list_disks(recorder, query_graph(recorder), SeenProcess(None, None))
            list_iothreads(recorder)
            states["disks"] = recorder.answers
            _pivot(monitor, directory)
            recorder = _Recorder(monitor)
            recorder.execute("x-debug-query-block-graph")
            states["held"] = recorder.answers
        text = json.dumps(states, indent=1).replace(name, IMAGES)
    path = RECORDED / f"{'.'.join(map(str, qemu.version[:2]))}.json"
    path.write_text(text + "\n")
    return path


def _machine(directory: Path) -> list[str]:
    for disk, length in (("a", 3), ("b", 1), ("c", 2), ("squash", 0)):
        for number in range(length + 1):
            write_image(
                directory / f"{disk}{number}.qcow2",
                virtual_size=1 << 20,
                clusters=[number],
                backing_file=f"{disk}{number - 1}.qcow2" if number else None,
                backing_format="qcow2" if number else None,
            )

    def qcow2(node: str, file: str, **options: object) -> list[str]:
        protocol = {"driver": "file", "node-name": f"{node}-file", "filename": f"{directory}/{file}"}
        image = {"driver": "qcow2", "node-name": node, "file": f"{node}-file", **options}
        return ["-blockdev", json.dumps(protocol), "-blockdev", json.dumps(image)]

    return [
        *("-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32"),
        *("-qmp", f"unix:{directory}/qmp,server=on,wait=off", "-object", "iothread,id=io0"),
        *("-object", "throttle-group,id=group0"),
        *qcow2("layer1", "a1.qcow2", **{"read-only": True}),
        *qcow2("layer2", "a2.qcow2", **{"read-only": True, "backing": "layer1"}),
        *qcow2("disk0", "a3.qcow2", backing="layer2", discard="unmap"),
        *("-blockdev", '{"driver":"throttle","node-name":"limited","throttle-group":"group0","file":"disk0"}'),
        *("-device", "virtio-blk-pci,id=vb0,drive=limited,iothread=io0"),
        *("-drive", f"id=drive1,if=none,file={directory}/b1.qcow2,format=qcow2,cache=none,detect-zeroes=on"),
        *("-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-hd,id=sd0,drive=drive1"),
        *qcow2("disk2", "c2.qcow2"),
    ]


def _pivot(monitor: Monitor, directory: Path) -> None:
    """Put disk0 on the squash, with its old chain under the hold, and somebody else's node over the base."""
    squash = {"driver": "file", "filename": f"{directory}/squash0.qcow2"}
    graph = query_graph(monitor)
    monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": NEW, "read-only": True, "file": squash})
    monitor.execute("blockdev-add", {"driver": "raw", "node-name": HOLD, "read-only": True, "file": "layer2"})
    base = graph.backing_chain("disk0")[-1]
    monitor.execute("blockdev-add", {"driver": "raw", "node-name": "somebody", "read-only": True, "file": base})
    disk = {"driver": "qcow2", "node-name": "disk0", "file": "disk0-file", "discard": "unmap", "backing": NEW}
    monitor.execute("blockdev-reopen", {"options": [disk]})


def _key(command: str, arguments: Mapping[str, object]) -> str:
    return json.dumps([command, {name.replace("_", "-"): value for name, value in arguments.items()}], sort_keys=True)


if __name__ == "__main__":
    for spec in sys.argv[1:] or ("host", "debian:trixie", "debian:trixie-backports"):
        sys.stdout.write(f"{record(spec)}\n")
