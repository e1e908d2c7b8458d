"""Writing so that it is there after a power failure."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def sync_path(path: Path) -> None:
    """Write a file's dirty pages back, or make the names in a directory durable.

    :raise OSError: if it cannot be done.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however little one ``write()`` takes.

    :raise OSError: if it cannot be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def write_atomically(path: Path, text: str, *, sync: bool = True) -> None:
    """Replace ``path`` by a file with this text: whoever reads it reads all of the old or all of the new one.

    :param sync: also after a power failure.
    :raise OSError: if it cannot be written; nothing is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.write(text)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
