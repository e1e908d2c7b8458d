"""Who has a file open: every process of the host, and the loop devices.

One look at ``/proc/*/fd`` tells it for any number of files. Behind each link there is the open file itself, whatever
its name became and whatever mount namespace the process lives in, and ``stat`` says which one it is. The kernel's loop
driver is no process and has files open all the same: it is asked by its ioctl and in ``/sys/block``.

Who is not root sees only the files of his own processes. QEMU's locks can be seen by everybody (``/proc/locks``), and
tell then that somebody has a file, though not who.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.host.process import program_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: What tells one file from another, as ``stat`` says it; of a block device its own number.
Identity = tuple[int, ...]

_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64: Final = struct.Struct("=QQ216x")  # struct loop_info64 (linux/loop.h): lo_device, lo_inode, ...
#: Bytes that QEMU locks (block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE).
_LOCKED: Final = range(100, 264)
#: PROC_PID_INIT_INO of the kernel: the inode of the host's own process namespace.
_HOST_NAMESPACE: Final = 0xEFFFFFFC


#: How many such locks we hold, by major and minor number of the device and the inode.
own_locks: Counter[tuple[int, int, int]] = Counter()


@dataclass(frozen=True)
class Holder:
    """Somebody who has a file open."""

    #: None where it is no process, or one that we cannot see.
    pid: int | None
    #: The program's name, or what it is instead: ``loop device /dev/loop0``.
    name: str
    #: The file as the holder names it; None where that cannot be told.
    path: str | None
    #: Whether it may write to the file.
    may_write: bool

    def __str__(self) -> str:
        return self.name if self.pid is None else f"{self.name} (process {self.pid})"


@dataclass(frozen=True)
class OpenFiles:
    """The open files of all processes at one moment; see :meth:`look`."""

    _holders: dict[Identity, list[Holder]]
    #: Files that a QEMU has locked, by major and minor number of the device and the inode.
    _locked: frozenset[tuple[int, int, int]]
    #: Whether no process hid its open files from us. Without it a file that nobody seems to hold may be held.
    can_see_all: bool
    #: Whether we live in a process namespace of our own: processes outside of it are seen by nobody here.
    in_container: bool

    @classmethod
    def look(cls, *, ours: Collection[int] = ()) -> OpenFiles:
        """Look at every process of the host, once: some milliseconds where little runs.

        :param ours: processes to leave out beside our own: programs that we started ourselves.
        """
        ours = {os.getpid(), *ours}
        found: dict[Identity, list[Holder]] = defaultdict(list)
        hidden = False
        with os.scandir("/proc") as processes:
            for process in processes:
                if process.name.isdecimal() and int(process.name) not in ours:
                    hidden |= not _look_at(process.path, found)
        for identity, holder in _loop_devices():
            found[identity].append(holder)
        # With the mount option hidepid other users' processes are not even listed; process 1 is always somebody's.
        can_see_all = not hidden and os.path.exists("/proc/1")  # noqa: PTH110
        return cls(dict(found), frozenset() if can_see_all else frozenset(_qemu_locks()), can_see_all, _in_container())

    def holders(self, path: Path) -> list[Holder]:
        """Return who has a file open, writers first; our own process is left out.

        A file that is not there is held by nobody.
        """
        try:
            status = path.stat()
        except OSError:
            return []
        return self.holders_of(status)

    def holders_of(self, status: os.stat_result) -> list[Holder]:
        """Return who has the file open of which this is known, writers first."""
        found: dict[tuple[int | None, str], Holder] = {}
        for holder in self._holders.get(identity_of(status), []):
            known = found.get((holder.pid, holder.name))
            if known is None or holder.may_write:
                found[holder.pid, holder.name] = holder
        if not found and (os.major(status.st_dev), os.minor(status.st_dev), status.st_ino) in self._locked:
            return [Holder(None, "a QEMU of another user", None, may_write=False)]
        return sorted(found.values(), key=lambda holder: (not holder.may_write, holder.pid or 0, holder.name))


def identity_of(status: os.stat_result) -> Identity:
    """Return what tells one file from another, under whatever name; a block device under all its nodes."""
    if stat.S_ISBLK(status.st_mode):
        return (status.st_rdev,)
    return status.st_dev, status.st_ino


def describe_holders(holders: Collection[Holder], most: int = 3) -> str:
    """Name the first few: ``qemu-img (process 412), loop device /dev/loop0 and 2 more``."""
    names = ", ".join(map(str, list(holders)[:most]))
    return names + (f" and {len(holders) - most} more" if len(holders) > most else "")


def _look_at(process: str, found: dict[Identity, list[Holder]]) -> bool:
    """Add the files of a process; return False where it hides them. One that has ended meanwhile has none."""
    name = None
    try:
        with os.scandir(f"{process}/fd") as links:
            for link in links:
                try:
                    status = os.stat(link.path)  # noqa: PTH116 - thousands of them
                except OSError:  # closed meanwhile
                    continue
                if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                    continue
                name = name or _name_of(process)
                with suppress(OSError):
                    # The link's own permissions say how the file was opened.
                    may_write = bool(os.lstat(link.path).st_mode & stat.S_IWUSR)
                    holder = Holder(int(process.rpartition("/")[2]), name, os.readlink(link.path), may_write)  # noqa: PTH115
                    found[identity_of(status)].append(holder)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM)
    return True


def _name_of(process: str) -> str:
    try:
        name = Path(process, "comm").read_bytes().decode(errors="replace").strip()
        if name.startswith("ld-"):
            name = program_name(Path(process, "cmdline").read_bytes().decode(errors="replace").split("\0")) or name
    except OSError:
        return "a process"
    return name or "a process"


def _loop_devices() -> Iterator[tuple[Identity, Holder]]:
    """Yield the backing file of each loop device in use."""
    for directory in Path("/sys/block").glob("loop*/loop"):
        name = directory.parent.name
        try:
            path = os.fsdecode((directory / "backing_file").read_bytes().rstrip(b"\n"))
            may_write = (directory.parent / "ro").read_text().strip() == "0"
        except OSError:  # detached meanwhile
            continue
        holder = Holder(None, f"loop device /dev/{name}", path, may_write)
        identities = set()
        # The name may be another mount namespace's, the kernel's own numbers are sure; but only root may ask for them.
        with suppress(OSError):
            descriptor = os.open(f"/dev/{name}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                answer = fcntl.ioctl(descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size))
                identities.add(_LOOP_INFO64.unpack(answer))
            finally:
                os.close(descriptor)
        with suppress(OSError):
            identities.add(identity_of(os.stat(path)))  # noqa: PTH116
        for identity in identities:
            yield identity, holder


def _qemu_locks() -> Iterator[tuple[int, int, int]]:
    """Yield the files with more open-file-description locks on bytes that QEMU locks than we hold ourselves.

    ``/proc/locks`` (proc(5)) has a line for each lock, and does not say whose one of this kind is.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if len(fields) == 8 and fields[1] == "OFDLCK" and fields[6].isdecimal() and int(fields[6]) in _LOCKED:
                major, minor, inode = fields[5].split(":")
                found[int(major, 16), int(minor, 16), int(inode)] += 1
    yield from (file for file, count in found.items() if count > own_locks[file])


def _in_container() -> bool:
    try:
        return os.stat("/proc/self/ns/pid").st_ino != _HOST_NAMESPACE  # noqa: PTH116
    except OSError:
        return True
