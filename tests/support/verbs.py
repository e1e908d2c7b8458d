"""Chainlift's verbs as a person runs them, each in a process of its own, without a new Python for each.

A server has imported everything once and forks for every verb: what a verb leaves behind in its process (limits, a
priority, threads) is gone with it, and a verb that dies of a signal or never ends is told as such.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a verb ended with that is no exit status: a traceback, a signal, or that it took too long.
TRACEBACK, KILLED, TOO_LONG = 70, 71, 72


#: What verbs import when they need it.
_LIBRARIES = ("rich.console", "rich.progress", "rich.table")


@dataclass(frozen=True)
class Said:
    """How a verb ended."""

    arguments: tuple[str, ...]
    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on standard error."""
        return self.err.strip().rpartition("\n")[2]

    @property
    def command(self) -> str:
        return shlex.join(["chainlift", *self.arguments])

    def __str__(self) -> str:
        return f"$ {self.command}\n{self.out}{self.err}[exit {self.status}]"


class Verbs:
    """The server; call it like the command: ``verbs("index", image)``.

    :param most_files: how many files a verb may have open.
    """

    def __init__(self, *, most_files: int = 4096) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="chainlift-verbs-")
        self._process = subprocess.Popen(
            ["prlimit", f"--nofile={most_files}", sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self,
        *arguments: object,
        cwd: Path | None = None,
        umask: int = 0o022,
        user: int | None = None,
        timeout_s: float = 120.0,
    ) -> Said:
        """Run a verb.

        :param cwd: the directory in which it runs; None: where we are.
        :param user: run it as this user, with no other rights.
        """
        if user is not None and not _others_can_enter():
            from tests.support.need import missing

            missing("reachable")
        texts = tuple(os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in arguments)
        request = {
            "arguments": texts,
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ),
            "umask": umask,
            "user": user,
            "timeout_s": timeout_s,
            "place": self._place.name,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server of verbs has ended"
        place = Path(self._place.name)
        out, err = ((place / name).read_text(errors="replace") for name in ("out", "err"))
        return Said(texts, json.loads(answer), out, err)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(120)
        self._place.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _others_can_enter() -> bool:
    """Whether users who have no rights of ours can read this clone, and what it was installed into."""
    places = [Path(__file__), Path(sys.executable)]
    return all(parent.stat().st_mode & 0o001 for place in places for parent in place.parents)


def _import_everything() -> None:
    """Import all that a verb may: who becomes another user may not be able to read it any more."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    for room in ("cli", "lift", "chain", "qcow2", "qemu"):
        package = importlib.import_module(f"chainlift.{room}")
        for module in pkgutil.walk_packages(package.__path__, f"chainlift.{room}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)


def _serve() -> None:
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        print(_wait(child, request["timeout_s"]), flush=True)  # noqa: T201 - the answer


def _wait(child: int, timeout_s: float) -> int:
    descriptor = os.pidfd_open(child)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    in_time = poll.poll(timeout_s * 1000)
    os.close(descriptor)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return TOO_LONG if not in_time else KILLED if status < 0 else status


def _run(request: dict[str, Any]) -> NoReturn:
    """Be one verb; never returns."""
    status = TRACEBACK
    try:
        _redirect(request)
        os.environ.update(request["environment"])
        os.umask(request["umask"])
        # Before another user's rights are taken: the clone may lie in root's home.
        os.chdir(request["cwd"])
        if request["user"] is not None:
            os.setgroups([])
            os.setgid(request["user"])
            os.setuid(request["user"])
        status = _call(request["arguments"])
    except BaseException:  # noqa: BLE001 - told as what it is
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect(request: dict[str, Any]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "out"), (2, "err")):
        target = os.open(f"{request['place']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(target, number)
        os.close(target)


def _call(arguments: Sequence[str]) -> int:
    from chainlift.cli.main import main

    try:
        main(list(arguments))
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1


if __name__ == "__main__":
    _serve()
