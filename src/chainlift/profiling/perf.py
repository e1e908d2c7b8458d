"""Recording a running process with Linux perf, only while the measured work runs.

perf is attached with its events off (``--delay=-1``) and told over a FIFO when the work begins and ends
(``--control``; both perf 5.10 or newer). Stacks are unwound with DWARF call frame information where the program has it
(every distribution's does), since frame pointers are not kept in most builds.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.closing import Closing
from chainlift.host.process import Process, last_lines, run_tool
from chainlift.host.scratch import ScratchDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The most of a stack that perf copies with a sample.
STACK_BYTES = 65528
#: A chain of 1,000 layers walks some thousand frames; perf shows 127 unless told.
MAX_STACK = 8192
_READY_S = 20.0
_PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_COUNTERS = ("cpu", "cpu_core", "armv8_pmuv3_0", "armv8_pmuv3")

_FRAME = re.compile(r"^\s+([0-9a-f]+) (.*?)(?:\+0x[0-9a-f]+)? \((.*)\)$")
_SAMPLE = re.compile(r"^(?P<comm>\S.*?)\s+(?P<tid>\d+)\s+(?P<time>[\d.]+):\s+(?P<event>\S+):")
_MAPPING = re.compile(r"PERF_RECORD_MMAP2? .*: \[0x([0-9a-f]+)\(0x([0-9a-f]+)\) @ (?:0x)?([0-9a-f]+) .*\]: \S+ (/.*)$")


@dataclass(frozen=True)
class Address:
    """Where one frame of a sample was.

    :ivar file: the file that is mapped there, or ``[kernel]``, ``[vdso]``, ``[unknown]``.
    :ivar offset: byte of the file, or the address where it is no file.
    :ivar kernel_function: perf's name, for frames of the kernel only.
    """

    file: str
    offset: int
    kernel_function: str | None = None


@dataclass(frozen=True)
class PerfSample:
    """One sample: the thread's name and its stack, root first."""

    thread: str
    time_s: float
    frames: tuple[Address, ...]


class PerfRecorder(Closing):
    """perf attached to a process; a context manager. Nothing is recorded before :meth:`begin`.

    :param pid: the process; its threads are recorded too.
    :param output: where perf writes its data; large, to be deleted after :func:`read_samples`.
    :param frequency_hz: samples a second.
    :raise MissingToolError: if there is no perf, or this user may not use it; the hint says what to do.
    """

    def __init__(self, pid: int, output: Path, *, frequency_hz: int = 199) -> None:
        check_perf()
        self.output = output
        self._folder = ScratchDirectory()
        control, ack = self._folder.path / "control", self._folder.path / "ack"
        os.mkfifo(control)
        os.mkfifo(ack)
        # Opened for both ends, so that neither open waits for perf.
        self._control = os.open(control, os.O_RDWR | os.O_NONBLOCK)
        self._ack = os.open(ack, os.O_RDWR | os.O_NONBLOCK)
        self._perf = Process(
            [
                *("perf", "record", "-e", _sampling_event(), "-F", str(frequency_hz)),
                *("--call-graph", f"dwarf,{STACK_BYTES}"),
                # Our own processes may be seen by a user; the kernel below them only by root.
                *(() if os.geteuid() == 0 else ("--all-user",)),
                *("--delay=-1", f"--control=fifo:{control},{ack}", "--output", str(output), "-p", str(pid)),
            ]
        )
        try:
            self._tell("ping")
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Record from now on; :raise OperationError: if the process, and perf with it, has ended."""
        self._tell("enable")

    def end(self) -> None:
        """Record no longer, and write out what was recorded."""
        # perf ends by itself when the process does, at any moment.
        with contextlib.suppress(OperationError):
            self._tell("disable")
            os.write(self._control, b"stop\n")
        finished = self._perf.wait(120)
        if not self.output.exists():
            raise OperationError(f"perf recorded nothing: {last_lines(finished.stderr) or 'no reason given'}")

    def close(self) -> None:
        """End perf, recorded or not."""
        self._perf.close()
        for descriptor in (self._control, self._ack):
            if descriptor >= 0:
                os.close(descriptor)
        self._control = self._ack = -1
        self._folder.close()

    def _tell(self, command: str) -> None:
        os.write(self._control, f"{command}\n".encode())
        deadline = time.monotonic() + _READY_S
        while not select.select([self._ack], [], [], 0.05)[0]:
            if not self._perf.running:
                raise _refused(self._perf.wait().stderr)
            if time.monotonic() > deadline:
                raise OperationError("perf does not answer", hint="is it older than 5.10?")
        os.read(self._ack, 64)


def check_perf() -> None:
    """See that there is a perf that works here; :raise MissingToolError: if not."""
    if shutil.which("perf") is None:
        raise MissingToolError("there is no perf", hint="install it (Debian: linux-perf)")


def _sampling_event() -> str:
    """Return the event to sample by: the processor's cycles, or the kernel's clock where there are no counters."""
    devices = Path("/sys/bus/event_source/devices")
    return "cycles" if any((devices / name).exists() for name in _COUNTERS) else "cpu-clock"


def read_samples(data: Path) -> Iterator[PerfSample]:
    """Yield the samples of a perf data file, unwound by ``perf script``.

    Addresses come without names: naming is :mod:`chainlift.profiling.symbols`' work.
    """
    command = [
        "perf",
        "script",
        "--input",
        str(data),
        "--no-inline",
        "--show-mmap-events",
        "--max-stack",
        str(MAX_STACK),
    ]
    finished = run_tool([*command, "-F", "comm,tid,time,event,ip,sym,dso"], check=False, timeout_s=1800)
    if finished.returncode:
        raise OperationError(f"perf could not read what it recorded: {last_lines(finished.stderr)}", path=data)
    yield from parse_script(finished.stdout)


def parse_script(text: str) -> Iterator[PerfSample]:
    """Yield the samples in the output of ``perf script -F comm,tid,time,event,ip,sym,dso --show-mmap-events``."""
    mappings: dict[str, list[tuple[int, int, int]]] = {}
    head: re.Match[str] | None = None
    frames: list[Address] = []
    for line in text.splitlines():
        if not line.strip():
            if head:
                yield _sample(head, frames)
            head, frames = None, []
        elif head:
            if match := _FRAME.match(line):
                frames.append(_address(int(match[1], 16), match[2], match[3], mappings))
        elif match := _MAPPING.search(line):
            start, size, offset = (int(match[group], 16) for group in (1, 2, 3))
            mappings.setdefault(match[4], []).append((start, start + size, offset))
        else:
            head = _SAMPLE.match(line)
    if head:
        yield _sample(head, frames)


def _sample(head: re.Match[str], frames: list[Address]) -> PerfSample:
    # Where the copied part of the stack ends, perf puts an address of all ones.
    while frames and frames[-1].file == "[unknown]":
        frames.pop()
    return PerfSample(head["comm"], float(head["time"]), tuple(reversed(frames)))


def _address(value: int, name: str, dso: str, mappings: dict[str, list[tuple[int, int, int]]]) -> Address:
    if dso.startswith("[kernel") or dso.endswith(".ko") or dso == "[guest.kernel.kallsyms]" or value >> 63:
        return Address("[kernel]" if value != (1 << 64) - 1 else "[unknown]", value, name.strip() or None)
    if dso.startswith("/"):
        # perf prints offsets into the file since 5.17 or so, before that addresses in the process.
        for start, end, offset in mappings.get(dso, ()):
            if start <= value < end:
                return Address(dso, value - start + offset)
    return Address(dso.removesuffix(" (deleted)"), value)


def _refused(stderr: str) -> MissingToolError | OperationError | InputError:
    text = last_lines(stderr) or "no reason given"
    lower = stderr.lower()
    if "permission" in lower or "paranoid" in lower or "not permitted" in lower or "access to performance" in lower:
        level = _PARANOID.read_text().strip() if _PARANOID.exists() else "?"
        hint = f"run as root, or: sysctl kernel.perf_event_paranoid=1 (it is {level})"
        return MissingToolError("this user may not profile with perf", hint=hint)
    if "no such process" in lower or "couldn't create thread/cpu maps" in lower:
        return OperationError("the process ended while perf was to profile it")
    if "unknown option" in lower or "failed parsing" in lower:
        return MissingToolError(f"this perf is too old: {text}", hint="install perf 5.10 or newer")
    return OperationError(f"perf failed: {text}")
