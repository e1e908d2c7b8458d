"""QEMU at work without a guest: opened, held before its first request, and then let go."""

from __future__ import annotations

import os
import re
import select
import termios
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from chainlift.errors import MissingToolError, QemuCrashed, QemuError
from chainlift.host.process import describe_end
from chainlift.host.scratch import ScratchDirectory
from chainlift.qemu.memory import read_resident_set
from chainlift.qemu.process import QemuProcess, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chainlift.qemu.binary import Qemu

#: Workload -> size of a request and distance between two, in bytes.
READS: dict[str, tuple[int, int]] = {
    "read-4k": (4096, 260 << 10),
    "read-64k": (64 << 10, 64 << 10),
    "read-4m": (4 << 20, 4 << 20),
}


@dataclass(frozen=True)
class Working:
    """A process that has opened a chain and does nothing yet."""

    process: QemuProcess
    #: Make it begin.
    go: Callable[[], None]
    #: Wait so many seconds, or until it is done.
    wait: Callable[[float], None]


@dataclass(frozen=True)
class Held(Working):
    """One that can be held again when it has done its work, before it ends."""

    #: Called after ``go``: wait until all requests are answered and it is held again; False where it ended before.
    until_done: Callable[[], bool]
    #: What it has written to standard output so far.
    said: Callable[[], str]


@contextmanager
def reading(
    qemu: Qemu,
    image: Path | str,
    read: tuple[int, int],
    *,
    start: int = 0,
    write: bool = False,
    requests: int = 1 << 30,
    depth: int = 1,
    cache: str = "writeback",
    aio: str = "threads",
    open_timeout_s: float | None = None,
    options: Sequence[str] = (),
) -> Iterator[Held]:
    """Give a ``qemu-img bench`` that has opened the chain and is held before its first request.

    It says that it begins ("Sending ...") when the chain is open, before its clock starts, and that it is done ("Run
    completed ...") before it closes the chain (``img_bench()`` in qemu-img.c). Its standard output is a terminal whose
    output is stopped, so it stands in that ``write`` until it is let go: between the two lies all of the requests, and
    nothing of opening and closing.

    :param read: size of a request and distance between two, in bytes.
    :param start: offset of the first read, bytes.
    :param write: write there, and not read.
    :param depth: requests in flight.
    :param options: more options of ``qemu-img bench``.
    :raise TimeoutError: if the chain is not open after ``open_timeout_s``.
    :raise QemuError: if the chain does not open.
    :raise QemuCrashed: if QEMU dies of opening it.
    """
    size, step = read
    argv = qemu.command(
        *("img", "bench", "-f", "qcow2", "-t", cache, "-i", aio, "-d", str(depth), "-c", str(requests)),
        *options,
        *("-s", str(size), "-S", str(step), "-o", str(start)),
        *(("-w", str(image)) if write else (str(image),)),
    )
    with (
        _StoppedTerminal() as terminal,
        QemuProcess(argv, environment=qemu.environment, stdout=terminal.its) as process,
    ):
        if not terminal.wait_for_writer(process, open_timeout_s):
            finished = process.wait()
            text = re.sub(r"\s+", " ", finished.stderr).strip()
            if finished.returncode < 0:
                raise QemuCrashed(
                    f"QEMU ended: {describe_end(finished.returncode)}: {text}", returncode=finished.returncode
                )
            raise QemuError(f"qemu-img bench failed: {text or describe_end(finished.returncode)}", path=image)

        def until_done() -> bool:
            terminal.stop_after_a_line(process)
            return terminal.wait_for_line(process, b"Run completed")

        yield Held(process, terminal.start, lambda seconds: _wait(process, seconds), until_done, terminal.said)


@contextmanager
def streaming(qemu: Qemu, image: Path, folder: Path, *, cache: str = "writeback") -> Iterator[Working]:
    """Give a storage daemon with an empty overlay over the image, ready to stream everything into it.

    :param qemu: whose daemon it is.
    :param image: is only read.
    :param folder: for the overlay and the sockets.
    :param cache: mode, as ``qemu-img -t`` names it.
    """
    from chainlift.qemu.monitor import Monitor

    overlay = folder / "overlay.qcow2"
    create = ("create", "-q", "-f", "qcow2", "-b", str(image.absolute()), "-F", "qcow2", str(overlay))
    run_tool(qemu.command("img", *create), environment=qemu.environment)
    direct = "on" if cache in ("none", "directsync") else "off"
    # The address of a UNIX socket is at most 107 bytes long; `folder` may be anywhere.
    scratch = ScratchDirectory()
    socket = scratch.path / "monitor"
    argv = qemu.command(
        *("storage-daemon", "--chardev", f"socket,id=monitor,path={socket},server=on,wait=off"),
        *("--monitor", "chardev=monitor"),
        # Commas in an option's value are doubled.
        "--blockdev",
        f"driver=file,node-name=file,cache.direct={direct},filename={str(overlay).replace(',', ',,')}",
        *("--blockdev", "driver=qcow2,node-name=active,file=file"),
    )
    with (
        scratch,
        QemuProcess(argv, environment=qemu.environment, remove=scratch.path) as process,
        Monitor.connect(socket, process) as monitor,
    ):

        def wait(seconds: float) -> None:
            try:
                event = monitor.wait_event("BLOCK_JOB_COMPLETED", timeout_s=seconds)
            except TimeoutError:
                return
            if problem := event.data.get("error"):
                raise QemuError(f"block-stream failed: {problem}", path=image)

        yield Working(process, lambda: _start(monitor.execute), wait)


def _start(execute: Callable[..., object]) -> None:
    execute("block-stream", device="active", job_id="stream")


def _wait(process: QemuProcess, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while process.running and time.monotonic() < deadline:
        time.sleep(0.02)


def require_terminal() -> None:
    """See that this host gives a pseudo-terminal: :func:`reading` holds QEMU by one.

    :raise MissingToolError: if there is none, as in a chroot without ``/dev/pts``.
    """
    for descriptor in _open_terminal():
        os.close(descriptor)


def _open_terminal() -> tuple[int, int]:
    try:
        return os.openpty()
    except OSError as error:
        raise MissingToolError(
            f"no pseudo-terminal can be had here ({error.strerror or error})",
            hint="mount one in this chroot or container: mount -t devpts devpts /dev/pts",
        ) from None


class _StoppedTerminal:
    """A terminal that holds whoever writes to it. A pipe would not do: stdio writes to one when its buffer is full."""

    def __init__(self) -> None:
        self._ours, self.its = _open_terminal()
        self._said = b""
        termios.tcflow(self.its, termios.TCOOFF)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.its)
        os.close(self._ours)

    def start(self) -> None:
        """Let what is written through."""
        termios.tcflow(self.its, termios.TCOON)

    def stop_after_a_line(self, process: QemuProcess) -> None:
        """Let one line through and hold the next; where the next comes at once, it gets through.

        The line is through when its writer goes on. It comes to us by a thread of the kernel's, which may have to wait
        for a CPU until all is done.
        """
        while b"\n" not in self._said and process.running and _is_on_stdout(process.pid):
            self._read(0.001)
        termios.tcflow(self.its, termios.TCOOFF)

    def wait_for_writer(self, process: QemuProcess, timeout_s: float | None = None) -> bool:
        """Wait until a process stands in a system call on its standard output; False where it ends instead.

        :raise TimeoutError: after ``timeout_s``.
        :raise QemuError: if the kernel does not tell us.
        """
        began = time.monotonic()
        while not _is_on_stdout(process.pid):
            if not process.running:
                return False
            waited = time.monotonic() - began
            if timeout_s is not None and waited > timeout_s:
                raise TimeoutError(f"the chain is not open after {timeout_s:g} s")
            time.sleep(min(0.05, 0.001 + waited / 50))
        return True

    def wait_for_line(self, process: QemuProcess, begins: bytes) -> bool:
        """Wait until a process is held in writing a line that begins so; False where it ends instead.

        Lines before it are let through: a process that is not let run may still stand in the call that wrote the last
        one, and looks held by it.

        :raise QemuError: if the kernel does not tell us.
        """
        waited = 0.001
        while True:
            line = _written_to_stdout(process.pid)
            if line is not None and line.startswith(begins):
                return True
            if line is None and not process.running:
                return False
            if line is not None:
                termios.tcflow(self.its, termios.TCOON)
                self._read(0)
                termios.tcflow(self.its, termios.TCOOFF)
            time.sleep(waited)
            waited = min(0.02, waited * 1.1)

    def said(self) -> str:
        """Return all that was written so far."""
        while self._read(0):
            pass
        return self._said.decode("utf-8", "replace")

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._ours], [], [], timeout_s)[0]:
            return b""
        chunk = os.read(self._ours, 4096)
        self._said += chunk
        return chunk


def _is_on_stdout(pid: int) -> bool:
    """Whether the system call that a process waits in is one on its standard output."""
    return _written_to_stdout(pid) is not None


def _written_to_stdout(pid: int) -> bytes | None:
    """Return what a process waits to have written to its standard output; None if it waits for something else."""
    try:
        # proc(5): the call's number and its arguments, or "running".
        words = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
        if words[1:2] != ["0x1"]:
            return None
        address, count = int(words[2], 16), min(int(words[3], 16), 4096)
        with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(count)
    except (FileNotFoundError, ProcessLookupError):
        return None
    except PermissionError as error:
        if read_resident_set(pid) is None:
            return None  # it has ended: newer kernels tell of a process without memory to root alone
        raise QemuError(
            "may not see what QEMU waits for (/proc/PID/syscall)",
            hint="see the sysctl kernel.yama.ptrace_scope: 0 or 1 will do",
        ) from error
    except OSError:
        return None  # it ends just now, and its memory is gone
