"""An initramfs: a cpio archive in the "newc" form (Linux, driver-api/early-userspace/buffer-format.rst).

Written here rather than by cpio(1), since it needs device nodes and owners without being root. Not compressed: under
emulation the kernel copies faster than it unpacks.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path, PurePosixPath
    from typing import BinaryIO

_TRAILER = "TRAILER!!!"


class Initramfs:
    """The files of an initramfs, in the order in which they were added; parents come by themselves.

    Everything belongs to root and has no time stamp, so that the same files always make the same archive.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, int]] = {}

    def directory(self, path: str | PurePosixPath) -> Self:
        """Add a directory."""
        return self._add(path, stat.S_IFDIR | 0o755, b"")

    def file(self, path: str | PurePosixPath, data: bytes, *, executable: bool = False) -> Self:
        """Add a regular file.

        :param path: below the root.
        :param data: its content.
        :param executable: its mode is 755 instead of 644.
        """
        return self._add(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    def symlink(self, path: str | PurePosixPath, target: str) -> Self:
        """Add a symbolic link to ``target``."""
        return self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str | PurePosixPath, major: int, minor: int) -> Self:
        """Add a character device.

        :param path: below the root.
        :param major: the device's number.
        :param minor: the device's number.
        """
        return self._add(path, stat.S_IFCHR | 0o600, b"", (major << 8) | minor)

    def __contains__(self, path: str) -> bool:
        return path.strip("/") in self._entries

    def write(self, path: Path) -> int:
        """Write the archive and return its size in bytes."""
        with path.open("wb") as out:
            for inode, (name, (mode, data, device)) in enumerate(self._entries.items(), start=1):
                _write_entry(out, inode, name, mode, data, device)
            _write_entry(out, 0, _TRAILER, 0, b"", 0)
            return out.tell()

    def _add(self, path: str | PurePosixPath, mode: int, data: bytes, device: int = 0) -> Self:
        name = str(path).strip("/")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._entries:
            self.directory(parent)
        self._entries[name] = (mode, data, device)
        return self


def _write_entry(out: BinaryIO, inode: int, name: str, mode: int, data: bytes, device: int) -> None:
    raw_name = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, device >> 8, device & 0xFF, len(raw_name), 0)
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + raw_name)
    out.write(bytes(-out.tell() % 4))
    out.write(data)
    out.write(bytes(-out.tell() % 4))
