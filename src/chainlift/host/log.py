"""The log: what was done to files, and which programs and commands were run, told to the logger ``chainlift``.

Whoever talks to a program logs each command when it has been answered, with its time: one that changes something at
``INFO``, a question at ``DEBUG``. Changes of files are not logged by those who make them, of which one would be
forgotten: Python's own audit events (PEP 578) say of each file that it is opened for writing, renamed, linked or
removed, whoever does it (:func:`log_changes`).
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
import threading
import time
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from chainlift.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_F = TypeVar("_F", bound="Callable[..., Any]")

#: Everything is said to it or to one below it; it says nothing where nobody listens.
LOGGER: Final = logging.getLogger("chainlift")
LOGGER.addHandler(logging.NullHandler())

_FILES: Final = LOGGER.getChild("files")
_PROGRAMS: Final = LOGGER.getChild("programs")
_VERBS: Final = LOGGER.getChild("verbs")

#: Of one line; the options of a chain of 300 layers have 60 KiB.
_MOST_CHARACTERS: Final = 2_000
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
#: Not a file of anybody.
_ELSEWHERE: Final = ("/dev/", "/proc/", "/sys/")
#: Modules that Python has compiled.
_CACHE: Final = "/__pycache__/"
#: Begins most programs (:mod:`chainlift.host.supervisor`): so many words before the program's own.
_SUPERVISOR: Final = "/host/supervisor.py"
_SUPERVISOR_WORDS: Final = 7
#: QMP commands that only ask.
_QUESTIONS: Final = ("query-", "x-debug-query-", "qom-list", "qom-get", "qmp_capabilities", "guest-get", "guest-ping")


def shortened(text: str) -> str:
    """Return a text that fits into a line of the log."""
    line = one_line(text)
    return line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]}... ({len(line)} characters)"


@contextmanager
def logged_command(
    logger: logging.Logger, command: str, arguments: object = None, *, only_asks: bool | None = None
) -> Iterator[None]:
    """Log a command when the block is done: its time, and the error that it ended with.

    :param command: a QMP or virsh command.
    :param arguments: of it, for people.
    :param only_asks: whether it changes nothing; None: as the name of a QMP command says.
    """
    only_asks = command.startswith(_QUESTIONS) if only_asks is None else only_asks
    level = logging.DEBUG if only_asks else logging.INFO
    if not logger.isEnabledFor(level):
        yield
        return
    began = time.perf_counter()
    end = ""
    try:
        yield
    except BaseException as error:
        end = f": {str(error) or type(error).__name__}"
        raise
    finally:
        took_s = time.perf_counter() - began
        words = f"{command} {arguments}" if arguments else command
        logger.log(level, "%s (%.4f s)%s", shortened(words), took_s, shortened(end))


def logged_verb(function: _F) -> _F:
    """Have a verb log, when it ends, what it was done to, how long it took, and the error that it ended with.

    :param function: its first parameter is ``disk``, which knows its ``image``.
    """

    @wraps(function)
    def logged(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the verb's own
        disk = arguments[0] if arguments else options["disk"]
        what = f"{disk.image}{' (dry run)' if options.get('dry_run') else ''}"
        with logged_command(_VERBS, function.__name__, what, only_asks=False):
            return function(*arguments, **options)

    return cast("_F", logged)


def log_end(name: str, how: str, wall_s: float) -> None:
    """Log that a program has ended.

    :param name: of the program.
    :param how: it ended, a phrase.
    :param wall_s: seconds that it ran.
    """
    _PROGRAMS.info("%s ended: %s (%.4f s)", name, how, wall_s)


class _Changes:
    """Turns audit events into lines; there is one, and no way to take its hook away again."""

    is_hooked = False

    def __init__(self) -> None:
        # What a handler does to its own file is not logged: that would never end.
        self._inside = threading.local()

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        say = _EVENTS.get(event)
        if say is None or getattr(self._inside, "yes", False):
            return
        self._inside.yes = True
        try:
            said = say(*arguments)
            if said is not None:
                logger = _PROGRAMS if event == "subprocess.Popen" else _FILES
                logger.info("%s", shortened(said))
        except Exception:  # noqa: BLE001 - an audit hook that raises would stop what it only looks at
            LOGGER.debug("an audit event %s was not understood", event)
        finally:
            self._inside.yes = False


def log_changes() -> None:
    """Log every change that this process makes to the file system, and every program that it starts, from now on.

    They are told to the loggers ``chainlift.files`` and ``chainlift.programs``, at ``INFO``; what is said to QEMU and
    libvirt is told to others below ``chainlift`` in any case. For the process's whole life: audit hooks stay. A
    library's user calls it or does not; the command does when a log was asked for.

    >>> logging.basicConfig(filename="chainlift.log", level=logging.INFO)
    >>> log_changes()
    >>> Path("disk.old").symlink_to("disk.qcow2")
    >>> print(Path("chainlift.log").read_text(), end="")
    INFO:chainlift.files:symbolic link disk.qcow2 to disk.old
    """
    if not _Changes.is_hooked:
        _Changes.is_hooked = True
        sys.addaudithook(_Changes().hook)


def _open(path: object, mode: object, flags: int) -> str | None:  # noqa: ARG001 - an audit event has it
    if isinstance(path, int) or not flags & _WRITES:
        return None
    name = _name(path)
    # A directory is opened so for a file without a name (O_TMPFILE).
    if name.startswith(_ELSEWHERE) or _CACHE in name or os.path.isdir(name):  # noqa: PTH112 - called for each event
        return None
    return f"open {name} for writing"


def _remove(path: object, directory: int = -1) -> str | None:
    """Say that a file is removed; one that is not there was only to be gone."""
    name = _name(path, directory)
    return f"remove {name}" if os.path.lexists(name) else None


def _remove_directory(path: object, directory: int = -1) -> str | None:
    """Say that a directory is removed; with something in it, it stays."""
    name = _name(path, directory)
    try:
        with os.scandir(name) as entries:
            return None if next(entries, None) else f"remove directory {name}"
    except OSError:
        return None


def _two(verb: str) -> Callable[..., str | None]:
    def say(source: object, target: object, source_fd: int = -1, target_fd: int = -1) -> str | None:
        if _CACHE in _name(target):
            return None
        return f"{verb} {_name(source, source_fd)} to {_name(target, target_fd)}"

    return say


def _mode(path: object, mode: int, directory: int = -1) -> str:
    return f"chmod {mode:o} {_name(path, directory)}"


def _owner(path: object, user: int, group: int, directory: int = -1) -> str:
    return f"chown {user}:{group} {_name(path, directory)}"


def _program(executable: object, arguments: object, *_: object) -> str:  # noqa: ARG001 - it is in the arguments
    words = [_name(word) for word in (arguments if isinstance(arguments, list | tuple) else [arguments])]
    if any(word.endswith(_SUPERVISOR) for word in words[:_SUPERVISOR_WORDS]):
        words = words[_SUPERVISOR_WORDS:]
    return f"run {shlex.join(words)}"


def _name(path: object, directory: int = -1) -> str:
    """Return a path for people: of a descriptor what it leads to, and of a name in a directory all of it."""
    if isinstance(path, int):
        return _led_to(path)
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return f"{_led_to(directory)}/{text}" if directory >= 0 and not text.startswith("/") else text


def _led_to(descriptor: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - called for each event
    except OSError:
        return f"descriptor {descriptor}"


_EVENTS: Final[dict[str, Callable[..., str | None]]] = {
    "open": _open,
    "os.rename": _two("rename"),
    "os.link": _two("link"),
    "os.symlink": _two("symbolic link"),
    "os.remove": _remove,
    "os.rmdir": _remove_directory,
    "os.mkdir": lambda path, mode, directory=-1: f"make directory {_name(path, directory)} ({mode:o})",
    "os.truncate": lambda path, length: f"truncate {_name(path)} to {length} bytes",
    "os.chmod": _mode,
    "os.chown": _owner,
    "os.setxattr": lambda path, attribute, *_: f"set {_name(attribute)} of {_name(path)}",
    "subprocess.Popen": _program,
}
