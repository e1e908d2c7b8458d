"""A watch that runs in a thread, and VMs that have names."""

from __future__ import annotations

import contextlib
import json
import time
from threading import Thread
from typing import TYPE_CHECKING

from chainlift.lift.watching.service import Settings, Watch
from chainlift.lift.watching.visit import Rules
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def wait_for(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def rules(state: Path, *, max_length: int = 5, timeout_s: float | None = None, **more) -> Rules:
    state.mkdir(exist_ok=True)
    qemu = find_qemu(need=["storage-daemon"])
    return Rules(
        max_length, more.pop("copy_budget_bytes", None), timeout_s, state, more.pop("qemu", qemu),
        policy=more.pop("policy", None),
    )  # fmt: skip


@contextlib.contextmanager
def watching(settings: Settings) -> Iterator[Watch]:
    """Run a watch beside the block, and stop it at its end; an error of its own is raised here."""
    watch = Watch(settings)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            watch.run()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop("the test is over")
        thread.join()
        if failed:
            raise failed[0]


@contextlib.contextmanager
def machine(directory: Path, image: Path, *, name: str, options: tuple[str, ...] = ()) -> Iterator[Monitor]:
    """Run a VM that stands still, with a disk ``vda`` and a free socket ``DIRECTORY/qmp``; its other monitor."""
    directory.mkdir(exist_ok=True)
    file = {"driver": "file", "node-name": "vda-file", "filename": str(image)}
    argv = find_qemu().command(
        "system",
        *("-S", "-M", "q35", "-nodefaults", "-display", "none", "-m", "16", "-name", name, *options),
        *("-blockdev", json.dumps(file)),
        *("-blockdev", json.dumps({"driver": "qcow2", "node-name": "vda", "file": "vda-file"})),
        *("-device", "virtio-blk-pci,drive=vda,id=disk0"),
        *("-qmp", f"unix:{directory}/qmp,server=on,wait=off", "-qmp", f"unix:{directory}/own,server=on,wait=off"),
    )
    with QemuProcess(argv) as process, Monitor.connect(directory / "own", process) as monitor:
        yield monitor
