"""QEMU at work without a guest: opened, stopped before its first request, and then let go."""

from __future__ import annotations

import os
import re
import select
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import QemuCrashed, QemuError
from chainlift.host.process import describe_end
from chainlift.qemu.process import QemuProcess, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.qemu.binary import Qemu

#: Workload -> size of a request and distance between two, in bytes.
READS: dict[str, tuple[int, int]] = {
    "read-4k": (4096, 260 << 10),
    "read-64k": (64 << 10, 64 << 10),
    "read-4m": (4 << 20, 4 << 20),
}

#: A process that is ready, what makes it begin, and what waits so many seconds or until it is done.
Working = tuple[QemuProcess, "Callable[[], None]", "Callable[[float], None]"]


@contextmanager
def reading(
    qemu: Qemu,
    image: Path,
    read: tuple[int, int],
    *,
    requests: int = 1 << 30,
    cache: str = "writeback",
    aio: str = "threads",
    open_timeout_s: float | None = None,
) -> Iterator[Working]:
    """Give a ``qemu-img bench`` that has opened the chain and is stopped before its first request.

    :param read: size of a request and distance between two, in bytes.
    :raise TimeoutError: if the chain is not open after ``open_timeout_s``.
    :raise QemuError: if the chain does not open.
    :raise QemuCrashed: if QEMU dies of opening it.
    """
    size, step = read
    argv = qemu.command(
        *("img", "bench", "-f", "qcow2", "-t", cache, "-i", aio, "-d", "1", "-c", str(requests)),
        *("-s", str(size), "-S", str(step), str(image)),
    )
    # On a terminal it says that the chain is open at once; in a pipe that line comes with the last one.
    terminal, end = os.openpty()
    try:
        with os.fdopen(end, "wb") as stdout:
            process = QemuProcess(argv, environment=qemu.environment, stdout=stdout)
        with process:
            _wait_for(terminal, b"Sending", process, open_timeout_s)
            process.send_signal(signal.SIGSTOP)
            yield process, lambda: process.send_signal(signal.SIGCONT), lambda seconds: _wait(process, seconds)
    finally:
        os.close(terminal)


@contextmanager
def streaming(qemu: Qemu, image: Path, folder: Path, *, cache: str = "writeback") -> Iterator[Working]:
    """Give a storage daemon with an empty overlay over the image, ready to stream everything into it."""
    from chainlift.qemu.monitor import Monitor

    overlay = folder / "overlay.qcow2"
    create = ("create", "-q", "-f", "qcow2", "-b", str(image.absolute()), "-F", "qcow2", str(overlay))
    run_tool(qemu.command("img", *create), environment=qemu.environment)
    direct = "on" if cache in ("none", "directsync") else "off"
    # The address of a UNIX socket is at most 107 bytes long; `folder` may be anywhere.
    sockets = Path(tempfile.mkdtemp(prefix="chainlift-"))
    socket = sockets / "monitor"
    argv = qemu.command(
        *("storage-daemon", "--chardev", f"socket,id=monitor,path={socket},server=on,wait=off"),
        *("--monitor", "chardev=monitor"),
        # Commas in an option's value are doubled.
        "--blockdev",
        f"driver=file,node-name=file,cache.direct={direct},filename={str(overlay).replace(',', ',,')}",
        *("--blockdev", "driver=qcow2,node-name=active,file=file"),
    )
    with (
        QemuProcess(argv, environment=qemu.environment, remove=sockets) as process,
        Monitor.connect(socket, process) as monitor,
    ):

        def wait(seconds: float) -> None:
            try:
                event = monitor.wait_event("BLOCK_JOB_COMPLETED", timeout_s=seconds)
            except TimeoutError:
                return
            if problem := event.data.get("error"):
                raise QemuError(f"block-stream failed: {problem}", path=image)

        yield process, lambda: _start(monitor.execute), wait


def _start(execute: Callable[..., object]) -> None:
    execute("block-stream", device="active", job_id="stream")


def _wait(process: QemuProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.running and time.monotonic() < deadline:
        time.sleep(0.02)


def _wait_for(terminal: int, word: bytes, process: QemuProcess, timeout_s: float | None) -> None:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    said = b""
    while word not in said:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([terminal], [], [], left)[0]:
            raise TimeoutError(f"the chain is not open after {timeout_s:g} s")
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # a terminal whose other side is closed
            chunk = b""
        if not chunk:
            finished = process.wait(10)
            text = re.sub(r"\s+", " ", said.decode("utf-8", "replace") + finished.stderr).strip()
            if finished.returncode < 0:
                raise QemuCrashed(
                    f"QEMU ended: {describe_end(finished.returncode)}: {text}", returncode=finished.returncode
                )
            raise QemuError(f"qemu-img bench failed: {text}")
        said += chunk
