"""One virsh that is asked many things: another process for each takes ten times as long as most of the answers."""

from __future__ import annotations

import os
import secrets
import selectors
import subprocess
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from chainlift.host import interrupts

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_BYTES: Final = 1 << 20
#: It ends when its standard input does.
_END_S: Final = 10.0


class VirshShell:
    """A virsh that reads commands, for questions alone: of its commands' statuses it tells nothing.

    So an answer counts where virsh has said nothing on its standard error. Whatever else happens, a connection that was
    cut and made again among it, there is no answer, and who asked does so in a process of its own.

    :param command: virsh and its options.
    :param environment: of the process.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        with interrupts.put_off():
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches us alone
            )
            self._end = weakref.finalize(self, _end, self._process)

    def ask(self, words: Sequence[str | os.PathLike[str]], timeout_s: float) -> str | None:
        """Return what a command prints; None where that is not sure, and the shell must not be used again.

        :param timeout_s: how long it may take; then virsh is killed.
        :raise TimeoutError: if it takes longer.
        """
        line = " ".join(quoted(os.fspath(word)) for word in words)
        if not (line.isascii() and line.isprintable()):  # readline would take some of it for keys
            return None
        # readline says again what it reads. What virsh's echo says is not written so in the line.
        begin, end = secrets.token_hex(16), secrets.token_hex(16)
        typed = f"echo {_in_two(begin)}; {line}; echo {_in_two(end)}\n"
        try:
            answer = self._answer(os.fsencode(typed), end.encode(), time.monotonic() + timeout_s)
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._process.kill()
                raise
            return None
        _, found, text = (answer or b"").rpartition(begin.encode())
        return text.decode("utf-8", "surrogateescape") if found else None

    def close(self) -> None:
        """End it."""
        self._end()

    def _answer(self, line: bytes, end: bytes, deadline: float) -> bytes | None:
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        assert stderr is not None
        stdin.write(line)
        stdin.flush()
        said, more = bytearray(), b""
        # Not select(2): beside a long chain there are more open files than it can tell.
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while said.find(end, max(0, len(said) - len(more) - len(end))) < 0:
                ready = [key.fileobj for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
                if not ready:
                    raise TimeoutError
                # Errors come before the echo that follows them.
                if stderr in ready:
                    return None
                more = os.read(stdout.fileno(), _READ_BYTES)
                if not more:
                    return None
                said += more
            if any(key.fileobj is stderr for key, _ in selector.select(0)):
                return None
        return bytes(said.partition(end)[0])


def _in_two(mark: str) -> str:
    """Return a word as virsh's shell reads it, written otherwise."""
    half = len(mark) // 2
    return quoted(mark[:half]) + quoted(mark[half:])


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def quoted(text: str) -> str:
    """Return a word for virsh's shell, which quotes as a POSIX shell does."""
    return "'" + text.replace("'", "'\\''") + "'"
