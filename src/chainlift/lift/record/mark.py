"""Whether a disk is to be left alone by who lifts by himself: a mark on its active layer's file.

It is an extended attribute, so that it belongs to the file and not to its name: it goes along when the image is
renamed, another image that gets the name has none, and it ends with the file. It names the inode, so that a copy (``cp
-a``) is not marked. Where there can be none (a block device, a file system without them, or with no room for one),
``marks.json`` in the state directory does instead, by name and inode, or by the device.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.host.durable import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The extended attribute of a marked file.
ATTRIBUTE: Final = "user.chainlift.mark"
_DEFAULT: Final = Path("/var/lib/chainlift")
_FILE: Final = "marks.json"


@dataclass(frozen=True)
class Mark:
    """What somebody wants of a disk."""

    #: Whether it is to be left alone; False: he wants it lifted again.
    is_paused: bool
    #: When he said so, seconds since the epoch.
    at_s: float
    #: ``restored`` or ``asked``.
    why: str
    #: Whose disk it was then, see :mod:`chainlift.lift.live.whose`; None where that is not known.
    vm: str | None = None


def state_directory() -> Path:
    """Return where ``watch`` keeps what it must not forget: ``$STATE_DIRECTORY`` (systemd's), or /var/lib/chainlift."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else _DEFAULT


def read_mark(image: Path, directory: Path) -> Mark | None:
    """Return an image's mark, None where there is none or it cannot be read.

    :param directory: the state directory.
    """
    try:
        status = image.stat()
        try:
            data = json.loads(os.getxattr(image, ATTRIBUTE))
        except OSError:
            data = _read_file(directory / _FILE).get(_key(image, status))
        if data is None or data["inode"] != _inode(status):
            return None
        vm = data["vm"]
        return Mark(bool(data["is_paused"]), float(data["at_s"]), str(data["why"]), None if vm is None else str(vm))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_mark(image: Path, mark: Mark | None, directory: Path) -> None:
    """Mark an image, or take its mark away.

    :param directory: the state directory.
    :raise OSError: if it cannot be kept anywhere.
    """
    status = image.stat()
    data = None if mark is None else {**asdict(mark), "inode": _inode(status)}
    try:
        if data is None:
            os.removexattr(image, ATTRIBUTE)
            if not (directory / _FILE).exists():
                return
        else:
            os.setxattr(image, ATTRIBUTE, json.dumps(data).encode())
            return
    except OSError:
        # None there, no room for one, or no such thing as attributes.
        if data is None and not (directory / _FILE).exists():
            return
    with locked(directory):
        marks = _read_file(directory / _FILE)
        marks.pop(_key(image, status), None)
        if data is not None:
            marks[_key(image, status)] = data
        write_atomically(directory / _FILE, json.dumps(marks, indent=1) + "\n")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep everybody else from changing what people have said, in the state directory, for so long.

    :raise OSError: if there is no such directory.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _inode(status: os.stat_result) -> int:
    """Return a file's number; of a device node, which is made anew at every boot, none."""
    return 0 if stat.S_ISBLK(status.st_mode) else status.st_ino


def _key(image: Path, status: os.stat_result) -> str:
    if not stat.S_ISBLK(status.st_mode):
        return os.path.realpath(image)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    try:
        # The numbers of LVM's volumes change, this does not.
        return "device " + Path(f"/sys/dev/block/{number}/dm/uuid").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return f"device {number}"
