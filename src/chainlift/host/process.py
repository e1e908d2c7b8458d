"""Programs that we start: they die with us, and say what they took.

See :mod:`chainlift.host.supervisor` for how and why.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from chainlift.errors import MissingToolError, OperationError
from chainlift.host import interrupts
from chainlift.host.closing import Closing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Options of the dynamic loader that are followed by a value.
_LOADER_OPTIONS = frozenset({"--library-path", "--preload", "--audit", "--argv0", "--inhibit-rpath"})
_SUPERVISOR = Path(__file__).with_name("supervisor.py")


@dataclass(frozen=True)
class Finished:
    """A program that has ended, and what it took (``wait4``, hence the kernel's own figures)."""

    #: As :mod:`subprocess` has it: negative is the number of the signal that ended it.
    returncode: int
    stdout: str
    stderr: str
    wall_s: float
    cpu_user_s: float
    cpu_sys_s: float
    #: ``ru_maxrss``: the most memory that was resident at once, shared libraries included.
    peak_rss_bytes: int

    @property
    def signal(self) -> int | None:
        """The signal that ended the program, or None where it exited."""
        return -self.returncode if self.returncode < 0 else None


def describe_end(returncode: int) -> str:
    """Say how a process ended: ``exit status 1``, ``signal 11 (SIGSEGV)``."""
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"signal {-returncode} ({signal.Signals(-returncode).name})"
    except ValueError:
        return f"signal {-returncode}"


def last_lines(text: str, count: int = 3) -> str:
    """Return the last lines of ``text`` that say something, joined by `` | ``."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-count:])


def program_name(argv: Sequence[str | os.PathLike[str]]) -> str:
    """Return what a program is called; one that is started through its own loader bears the loader's name otherwise.

    Its own name is the first word that is no option of the loader (ld.so(8)) and no option's value.
    """
    words = [os.fspath(word) for word in argv]
    if words and Path(words[0]).name.startswith("ld-"):
        rest = words[1:]
        while rest and rest[0].startswith("--"):
            rest = rest[2 if rest[0] in _LOADER_OPTIONS else 1 :]
        words = rest or words
    return Path(words[0]).name if words else ""


class Process(Closing):
    """A program that runs until it ends, is killed, or we end.

    A context manager: leaving it kills what still runs. It has a session of its own, so that Ctrl-C in the terminal
    reaches us alone and we decide in which order things end.

    :param argv: the program and its arguments.
    :param environment: variables to set for the program beside our own.
    :param stdin: what the program reads: an open file, else nothing.
    :param stdout: where its output goes: an open file or ``subprocess.PIPE``; None keeps it in a temporary file.
    :param stderr: the same; what is kept is in :attr:`Finished.stderr` and :meth:`stderr_tail`.
    :param remove: a flat directory (of sockets) that goes when the program ends, however we end.
    :raise MissingToolError: if there is no such program.
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: IO[bytes] | int | None = None,
        stdout: IO[bytes] | int | None = None,
        stderr: IO[bytes] | int | None = None,
        remove: Path | None = None,
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        #: What the program is called.
        self.name = program_name(self.argv)
        # An ordinary user's PATH leaves out where Debian keeps mke2fs.
        program = shutil.which(self.argv[0], path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
        if program is None:
            raise MissingToolError(f"no program {self.argv[0]}", hint="install it or name it by its path")
        self.argv[0] = program
        if environment:
            # Set for the program only: another release's libraries must not reach the wrapper around it.
            self.argv = ["env", *(f"{name}={value}" for name, value in environment.items()), *self.argv]
        with interrupts.put_off():
            self._stdout = _temporary_file() if stdout is None else None
            self._stderr = _temporary_file() if stderr is None else None
            self._start(stdin, stdout, stderr, cwd, remove)

    def _start(
        self,
        stdin: IO[bytes] | int | None,
        stdout: IO[bytes] | int | None,
        stderr: IO[bytes] | int | None,
        cwd: str | os.PathLike[str] | None,
        remove: Path | None,
    ) -> None:
        report, report_w = os.pipe()
        lifeline_r, self._lifeline = os.pipe()
        try:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(_SUPERVISOR), str(report_w), str(lifeline_r)),
                    *(str(remove) if remove else "", *self.argv),
                ],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=self._stdout if stdout is None else stdout,
                stderr=self._stderr if stderr is None else stderr,
                pass_fds=(report_w, lifeline_r),
                cwd=cwd,
                start_new_session=True,
            )
        except BaseException:
            os.close(report)
            os.close(self._lifeline)
            raise
        finally:
            os.close(report_w)
            os.close(lifeline_r)
        self._report = os.fdopen(report, "rb")
        self._lock = threading.Lock()
        self._finished: Finished | None = None
        self._pidfd = -1
        try:
            self.pid: int = self._read_report()["pid"]
            with contextlib.suppress(ProcessLookupError):  # it may have ended already
                self._pidfd = os.pidfd_open(self.pid)
        except BaseException:  # nothing may run on without an owner
            self.close()
            raise

    @property
    def stdout(self) -> IO[bytes] | None:
        """The reading end of the program's output where it was started with ``subprocess.PIPE``."""
        return self._supervisor.stdout

    @property
    def running(self) -> bool:
        """Whether the program has not ended yet."""
        return self._finished is None and self._supervisor.poll() is None

    def stdout_so_far(self) -> str:
        """Return what the program has written to standard output, where it is kept for :attr:`Finished.stdout`."""
        return _content(self._stdout)

    def stderr_tail(self, count: int = 3) -> str:
        """Return the last lines that the program wrote to standard error, joined by `` | ``."""
        return last_lines(_content(self._stderr), count)

    def wait(self, timeout_s: float | None = None) -> Finished:
        """Wait for the program's end.

        :raise TimeoutError: if it still runs after ``timeout_s``; nothing was done to it.
        """
        with self._lock:
            if self._finished is not None:
                return self._finished
            try:
                self._supervisor.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"{self.name} still runs after {timeout_s:g} s") from None
            # The first line is still to come where nobody could read it.
            while "returncode" not in (report := self._read_report()):
                pass
            self._finished = Finished(stdout=_content(self._stdout), stderr=_content(self._stderr), **report)
            from chainlift.host.log import log_end  # a module that takes a moment, and is not needed to look at a chain

            log_end(self.name, describe_end(self._finished.returncode), self._finished.wall_s)
            return self._finished

    def _read_report(self) -> dict[str, Any]:
        """Read the next of the supervisor's two lines."""
        line = self._report.readline()
        if not line:
            raise OperationError(f"the supervisor of {self.name} was killed", hint="so was the program")
        report: dict[str, Any] = json.loads(line)
        return report

    def send_signal(self, number: signal.Signals) -> None:
        """Send the program a signal; one that has ended does not mind."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> Finished:
        """End the program at once."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        """Kill what still runs and give everything back. Safe to call twice."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
            with contextlib.suppress(OperationError):
                self.wait()
            self._supervisor.wait()
            self._report.close()
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
            for file in (self._stdout, self._stderr, self._supervisor.stdout, self._supervisor.stderr):
                if file is not None:
                    file.close()


def describe_failure(argv: Sequence[str | os.PathLike[str]], finished: Finished) -> str:
    """Say how a program failed, and what it said last."""
    said = last_lines(finished.stderr) or last_lines(finished.stdout)
    return f"{program_name(argv)} failed ({describe_end(finished.returncode)})" + (f": {said}" if said else "")


def run_tool(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout_s: float | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    input_bytes: bytes | None = None,
) -> Finished:
    """Run a program to its end.

    :param check: raise where it does not exit with 0.
    :param input_bytes: what it reads from standard input.
    :raise MissingToolError: if there is no such program.
    :raise OperationError: if it fails (and ``check``), or is not done after ``timeout_s`` and was killed.
    """
    with contextlib.ExitStack() as stack:
        stdin = None
        if input_bytes is not None:
            stdin = stack.enter_context(_temporary_file())
            stdin.write(input_bytes)
            stdin.seek(0)
        process = stack.enter_context(Process(argv, environment=environment, cwd=cwd, stdin=stdin))
        try:
            finished = process.wait(timeout_s)
        except TimeoutError:
            process.kill()
            raise OperationError(f"{program_name(argv)} was not done after {timeout_s:g} s and was killed") from None
    if check and finished.returncode != 0:
        raise OperationError(describe_failure(argv, finished))
    return finished


def _temporary_file() -> IO[bytes]:
    """Make a file without a name. Where Python looks for a place for such files, it tries with one that has a name."""
    with interrupts.put_off():
        return tempfile.TemporaryFile()


def _content(file: IO[bytes] | None) -> str:
    """Return all of a temporary file that a program writes to, without moving the program's position."""
    if file is None or file.closed:
        return ""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode("utf-8", "surrogateescape") if size else ""
