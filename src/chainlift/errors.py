"""The errors of chainlift, one tree.

Every error that a person can cause or meet is one line: what is wrong, in which file, what to do.
The class decides the exit status; ``chainlift.cli.main`` is the only place that turns one into the other::

    ChainliftError                 (not raised itself)
    ├── AnswerIsNo           1     a comparison differs, a verify fails
    ├── InputError           2     bad use or bad input; nothing was touched
    │   ├── ImageError             an image is malformed, unsupported or in use
    │   ├── PolicyError            a chain leads where it may not
    │   ├── PlanError              a study's plan does not hold
    │   └── MissingToolError       a program or package that is needed is not there
    ├── OperationError       3     an operation failed; everything is as before
    │   ├── QemuError              a QEMU program said no
    │   │   └── QemuCrashed        a QEMU process ended by itself
    │   └── GuestError             a guest did not do what it was asked
    └── UnknownStateError    4     an operation failed, and it is not known what it has left
"""

from __future__ import annotations

from os import fspath
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from os import PathLike


def one_line(text: str) -> str:
    """Return ``text`` with every control character made visible, so that a hostile name stays on its line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class ChainliftError(Exception):
    """Root of the tree.

    :param what: what is wrong, a phrase without a full stop.
    :param path: the file it is wrong in.
    :param hint: what to do about it, a phrase.
    """

    #: That of the command; says what is so after it.
    exit_status: ClassVar[int] = 3

    def __init__(self, what: str, *, path: str | PathLike[str] | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.path = None if path is None else fspath(path)
        self.hint = hint

    def __str__(self) -> str:
        text = self.what if self.path is None else f"{self.path}: {self.what}"
        if self.hint:
            text += f"; {self.hint}"
        return one_line(text)


class AnswerIsNo(ChainliftError):  # noqa: N818 - it is an answer, not a failure
    """The work was done and its answer is no."""

    exit_status = 1


class InputError(ChainliftError):
    """Bad use or bad input; nothing was touched."""

    exit_status = 2


class ImageError(InputError):
    """An image is malformed, uses what is not supported, or is in use."""


class PolicyError(InputError):
    """A chain leads where the policy does not allow: a network protocol, a FIFO, another directory, a loop."""


class PlanError(InputError):
    """A study's plan does not hold; the text names the key and what is allowed."""


class MissingToolError(InputError):
    """A program or package is not there; the hint says what to install."""


class OperationError(ChainliftError):
    """An operation failed and everything is as before."""

    exit_status = 3


class QemuError(OperationError):
    """A QEMU program refused or failed."""


class QemuCrashed(QemuError):  # noqa: N818 - an event that a study records as a result
    """A QEMU process ended by itself.

    :param returncode: as :mod:`subprocess` has it: negative is the signal's number.
    """

    def __init__(
        self,
        what: str,
        *,
        returncode: int,
        path: str | PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what, path=path, hint=hint)
        self.returncode = returncode

    @property
    def signal(self) -> int | None:
        """The signal that ended the process, or None where it exited."""
        return -self.returncode if self.returncode < 0 else None


class GuestError(OperationError):
    """A guest did not come up, went away or refused a command."""


class UnknownStateError(ChainliftError):
    """An operation failed, and so did its undoing, or nobody answers who could tell what is left.

    It is no :class:`OperationError`: nobody who undoes his own part after one of those may do so here.

    :param what: what failed and what is known: which header or node was changed, or may have been.
    :param path: the image whose pointer it is about.
    :param hint: what to do; never left out.
    """

    exit_status = 4

    def __init__(self, what: str, *, path: str | PathLike[str] | None = None, hint: str) -> None:
        super().__init__(what, path=path, hint=hint)
