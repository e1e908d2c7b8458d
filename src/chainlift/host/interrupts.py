"""SIGINT, SIGTERM and SIGHUP: none is lost, and none comes where it would break what is being put back.

Python raises an interrupt wherever it happens to be. In a finalizer or a weak reference's callback it is printed and
forgotten, a module that loads turns it into something else, and in the middle of undoing or closing it leaves half of
that undone. So a signal is noted, and raised as :class:`Interrupted` where it may come; where it may not, a timer tries
again until the command's end has seen it. It may not come

* while a module loads, in ``__del__``, ``__enter__`` or ``__exit__``, or in the callback of a weak reference;
* while an exception is handled: somebody undoes something, for this interrupt or for another reason;
* in a block that puts it off (:func:`put_off`), but between its steps (:func:`between_steps`);
* after the point of no return (:func:`too_late`): what was begun is finished then.

Nothing here does anything before :func:`install`, which the command calls and a library's user does not.
"""

from __future__ import annotations

import signal
import sys
from _thread import get_ident
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: How often a signal that could not be raised is tried again.
_AGAIN_S: Final = 0.02
#: Functions in which, or below which, an interrupt would be lost or leave something half closed.
_CLOSING: Final = frozenset({"__del__", "__exit__"})
_WEAK: Final = ("weakref.py", "_weakrefset.py")


class Interrupted(KeyboardInterrupt):
    """A signal that ends us. Its text says no more than that: nobody has failed."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.number = number


class _State:
    """What is known of signals in this process; they are handled in its main thread alone."""

    is_installed = False
    main_thread = 0
    #: The first one that came.
    pending: int | None = None
    put_off = 0
    is_too_late = False


_state = _State()


def install() -> None:
    """Handle the signals that end a process; one that is ignored (``nohup``, a shell's background job) stays so."""
    _state.is_installed, _state.main_thread = True, get_ident()
    for number in _SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _come)
    signal.signal(signal.SIGALRM, _come_again)
    sys.unraisablehook = _say_unless_interrupted


def end() -> int | None:
    """Hear no signals any more; return the number of one that has come. What follows is only the process's end."""
    if _state.is_installed:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 0)
    return _state.pending


def pending() -> int | None:
    """Return the number of the signal that has come, None if none has."""
    return _state.pending


@contextmanager
def put_off() -> Iterator[None]:
    """Let no interrupt come in this block, but at :func:`between_steps`; afterwards it comes soon."""
    if get_ident() != _state.main_thread:  # nothing comes there
        yield
        return
    _state.put_off += 1
    try:
        yield
    finally:
        _state.put_off -= 1


def is_put_off() -> bool:
    """Whether a block that puts interrupts off is being run."""
    return _state.put_off > 0 or get_ident() != _state.main_thread


def between_steps() -> None:
    """Let an interrupt come that was put off: here everything that was done can be undone.

    :raise Interrupted: if one has come.
    """
    if _state.pending is None or _state.is_too_late or get_ident() != _state.main_thread:
        return
    if sys.exc_info()[1] is None:
        _raise()


def too_late() -> None:
    """Let no interrupt come any more: what was asked for is done, and only what is left over is still cleared away."""
    if get_ident() == _state.main_thread:
        _state.is_too_late = True


def resume() -> None:
    """Let interrupts come again, for who has more to do than one thing."""
    _state.is_too_late = False


def _come(number: int, frame: FrameType | None) -> None:
    if _state.pending is None:
        _state.pending = number
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
    _come_again(number, frame)


def _come_again(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    if _state.pending is None or _state.put_off or _state.is_too_late or sys.exc_info()[1] is not None:
        return
    if not _is_fragile(frame):
        _raise()


def _raise() -> NoReturn:
    assert _state.pending is not None
    raise Interrupted(_state.pending)


def _is_fragile(frame: FrameType | None) -> bool:
    """Whether what is being run would lose an exception, or cannot be left in the middle."""
    if frame is not None and frame.f_code.co_name == "__enter__":
        return True
    while frame is not None:
        code = frame.f_code
        if code.co_name in _CLOSING or code.co_filename.startswith("<frozen importlib"):
            return True
        if code.co_filename.endswith(_WEAK):
            return True
        frame = frame.f_back
    return False


def _say_unless_interrupted(unraisable: sys.UnraisableHookArgs) -> None:
    # Lost in C code that calls Python: the timer brings it again.
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
