"""Block devices: what one is made of, who has it open, and zeros on it."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SYSFS: Final = Path("/sys/dev/block")
#: Zeros in a range of bytes, written by the device itself where it can (linux/fs.h).
_BLKZEROOUT: Final = 0x127F
#: What ranges of that must be aligned to, on every device.
_ALIGNMENT: Final = 4096

#: Tells a file from another: (device, inode), or (number,) of a block device; as of chainlift.qcow2.file.ImageFile.
Identity = tuple[int, ...]


def made_of(device: int) -> set[Identity]:
    """Return everything whose content changes when a block device is written to, itself among it.

    Its partitions, or the disk that it is a partition of; the devices below it (of a logical volume, or a RAID); the
    file behind a loop device; and so on down.

    :param device: its number, ``st_rdev``.
    """
    found: set[Identity] = {(number,) for number in _numbers(_place(device).glob("*/dev"))}
    _add(device, found)
    return found


def _place(device: int) -> Path:
    return _SYSFS / f"{os.major(device)}:{os.minor(device)}"


def _add(device: int, found: set[Identity]) -> None:
    found.add((device,))
    place = _place(device)
    with suppress(OSError):
        backing = os.stat((place / "loop/backing_file").read_bytes().removesuffix(b"\n"))  # noqa: PTH116 - any bytes
        if stat.S_ISBLK(backing.st_mode):
            _add(backing.st_rdev, found)
        else:
            found.add((backing.st_dev, backing.st_ino))
    if (place / "partition").exists():
        # The disk, but not the partitions beside this one.
        for number in _numbers([place.resolve().parent / "dev"]):
            _add(number, found)
    for number in _numbers(place.glob("slaves/*/dev")):
        _add(number, found)


def _numbers(files: Iterable[Path]) -> Iterator[int]:
    for file in files:
        with suppress(OSError, ValueError):
            major, minor = map(int, file.read_text().split(":"))
            yield os.makedev(major, minor)


def openers(device: int) -> list[str]:
    """Name the other processes that have a block device open, as far as ``/proc`` lets us see: ``qemu-nbd (412)``."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid() and _has_open(process, device):
            with suppress(OSError):
                found.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return sorted(found)


def _has_open(process: Path, device: int) -> bool:
    with suppress(OSError):
        for entry in (process / "fd").iterdir():
            with suppress(OSError):
                there = entry.stat()
                if stat.S_ISBLK(there.st_mode) and there.st_rdev == device:
                    return True
    return False


def write_zeros(descriptor: int, start: int, end: int) -> None:
    """Write zeros to a range of bytes of a block device.

    :param descriptor: of the device, open for writing.
    :param start: offset in bytes.
    :param end: offset in bytes, of the first that is not written.
    :raise OSError: if that fails.
    """
    first, last = -(-start // _ALIGNMENT) * _ALIGNMENT, end // _ALIGNMENT * _ALIGNMENT
    if first >= last:
        _write(descriptor, start, end)
        return
    _write(descriptor, start, first)
    fcntl.ioctl(descriptor, _BLKZEROOUT, struct.pack("=QQ", first, last - first))
    _write(descriptor, last, end)


def _write(descriptor: int, start: int, end: int) -> None:
    while start < end:
        start += os.pwrite(descriptor, bytes(end - start), start)
