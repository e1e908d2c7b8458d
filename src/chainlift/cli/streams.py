"""Standard input, output and error, in whatever state a process may be given them."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: The file name in an :class:`OSError` of standard output.
STDOUT: Final = "standard output"


def prepare_streams() -> None:
    """Make sure that descriptors 0 to 2 are no file of ours, that names can be printed, and that nobody needs stderr.

    Where one of the descriptors is closed, the next file that is opened would get its number, and what is printed would
    be written into it: an image, say.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # Standard output is opened for reading: printing is to fail, as it would have with the closed one.
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # A file name may be no text in the terminal's encoding.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = _over(sys.stdout, 1, _Stdout)
    sys.stderr = _over(sys.stderr, 2, _Stderr)


def _over(stream: TextIO, number: int, kind: type[_Stdout | _Stderr]) -> TextIO:
    """Return a stream like this one, over a file of this kind; the same where it is none of the process's own."""
    is_own = type(stream) is io.TextIOWrapper and stream.fileno() == number
    if not is_own or isinstance(getattr(stream.buffer, "raw", None), kind):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering) or number == 2,
    )


class _Stdout(io.FileIO):
    """Standard output, whose errors say that they are its own."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error


class _Stderr(io.FileIO):
    """Standard error; that nobody can read a warning is no reason to stop in the middle of a switch."""

    def write(self, data: Buffer, /) -> int:
        with suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def give_up(stream: TextIO) -> None:
    """Let what a stream still has go nowhere, so that the interpreter does not complain about it when it ends."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
