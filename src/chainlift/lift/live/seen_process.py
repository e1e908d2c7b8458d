"""The process behind a QMP socket, as far as ``/proc`` lets us see: which files it has open, how it was started.

A file name that QEMU tells says nothing about the file: it may have been replaced since QEMU opened it. The open files
of the process cannot lie. And options of a node that QMP does not tell (``l2-cache-size``) stand in its command line.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.lift.target import unflatten

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: qcow2's runtime options (qapi/block-core.json, BlockdevOptionsQcow2) that ``query-named-block-nodes`` does not tell,
#: and ``blockdev-reopen`` therefore sets to their defaults unless they are given again; with the type that QMP wants.
QCOW2_OPTIONS: Final[Mapping[str, type]] = {
    "lazy-refcounts": bool,
    "pass-discard-request": bool,
    "pass-discard-snapshot": bool,
    "pass-discard-other": bool,
    "discard-no-unref": bool,
    "overlap-check": str,
    "cache-size": int,
    "l2-cache-size": int,
    "l2-cache-entry-size": int,
    "refcount-cache-size": int,
    "cache-clean-interval": int,
    "discard": str,
}
_SUFFIXES: Final = {"k": 10, "m": 20, "g": 30, "t": 40}


@dataclass(frozen=True)
class SeenProcess:
    """The QEMU process, or as much of it as can be seen."""

    #: None where it is not a process that we can see (another machine or PID namespace).
    pid: int | None
    #: (device, inode) of every file that it has open; None where we may not look.
    open_files: frozenset[tuple[int, int]] | None
    #: Its command line; empty where we may not look.
    command_line: Sequence[str] = field(default=())
    #: Its working directory; the current one's where we may not look.
    directory: Path = field(default=Path())

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended; False where it could never be seen."""
        return self.pid is not None and not Path(f"/proc/{self.pid}").exists()

    def has_open(self, path: Path) -> bool | None:
        """Whether it has the file of this name open now; None if that cannot be told.

        A file that it had not opened yet when it was looked at (of a snapshot that somebody took since) is looked for
        once more.
        """
        if self.open_files is None:
            return None
        found = path.stat()
        identity = (found.st_dev, found.st_ino)
        if identity in self.open_files or self.pid is None:
            return identity in self.open_files
        now = read_process(self.pid).open_files
        return None if now is None else identity in now

    def node_options(self, node: str) -> dict[str, object] | None:
        """Return the qcow2 options that this node was given on the command line; None if it is not named there."""
        for option, value in zip(self.command_line, self.command_line[1:], strict=False):
            if option.lstrip("-") in ("blockdev", "drive"):
                given = _find(node, _parse(value))
                if given is not None:
                    return _qcow2_options(given)
        return None

    def named_nodes(self) -> list[Mapping[str, Any]]:
        """Return the options of every node that ``-blockdev`` names on the command line; of nested ones inside them."""
        words = zip(self.command_line, self.command_line[1:], strict=False)
        given = [unflatten(_parse(value)) for option, value in words if option in ("-blockdev", "--blockdev")]
        return [options for options in given if "node-name" in options]

    def export_options(self, identifier: str) -> dict[str, object] | None:
        """Return the options of this export on a storage daemon's command line; None if it is not there."""
        for option, value in zip(self.command_line, self.command_line[1:], strict=False):
            if option == "--export" and (given := _parse(value)).get("id") == identifier:
                return given
        return None


def read_process(pid: int) -> SeenProcess:
    """Read what ``/proc`` tells of a process."""
    there = Path("/proc") / str(pid)
    files: frozenset[tuple[int, int]] | None = None
    words: list[str] = []
    directory = Path()
    with suppress(OSError):
        directory = (there / "cwd").readlink()
    with suppress(OSError):
        words = (there / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
    with suppress(OSError):
        found = set()
        for entry in (there / "fd").iterdir():
            with suppress(OSError):
                status = entry.stat()
                found.add((status.st_dev, status.st_ino))
        files = frozenset(found)
    return SeenProcess(pid, files, tuple(words), directory)


def _parse(value: str) -> dict[str, object]:
    """Read an option's value: JSON, or QEMU's ``key=value,key=value`` with ``,,`` for a comma."""
    if value.lstrip().startswith("{"):
        with suppress(ValueError):
            parsed = json.loads(value)
            return parsed if isinstance(parsed, dict) else {}
        return {}
    pairs = (item.partition("=") for item in value.replace(",,", "\0").split(","))
    return {key: text.replace("\0", ",") for key, equals, text in pairs if equals}


def _find(node: str, options: Mapping[str, object]) -> Mapping[str, object] | None:
    if options.get("node-name") == node:
        return options
    for value in options.values():
        if isinstance(value, dict) and (found := _find(node, value)) is not None:
            return found
    return None


def _qcow2_options(given: Mapping[str, object]) -> dict[str, object]:
    options: dict[str, object] = {}
    for name, kind in QCOW2_OPTIONS.items():
        value = given.get(name)
        if isinstance(value, str) and kind is not str:
            value = value in ("on", "yes", "true") if kind is bool else _size(value)
        if value is not None:
            options[name] = value
    return options


def _size(text: str) -> int | None:
    shift = _SUFFIXES.get(text[-1:].lower(), 0)
    number = text[:-1] if shift else text
    with suppress(ValueError):
        return int(float(number) * (1 << shift)) if "." in number else int(number) << shift
    return None
