"""Taking an image and all that it stands on out of the host's page cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.study.l2_cache import described

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def files_of(image: Path) -> set[Path]:
    """Return an image's own file and those that it stands on; of an index, all that lie beside its descriptor.

    :raise ImageError: if one is no qcow2 image.
    """
    found: set[Path] = set()
    for name in _filenames(described(image)):
        path = Path(name)
        found.add(path)
        if path.suffix == ".vmdk":
            found.update(other for other in path.parent.iterdir() if other.is_file())
    return found


def drop(paths: Iterable[Path]) -> None:
    """Let the kernel forget what it has of these files.

    What is not written yet is written first: the kernel keeps that (POSIX_FADV_DONTNEED, posix_fadvise(2)).
    """
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _filenames(options: dict[str, Any]) -> Iterator[str]:
    for key, value in options.items():
        if key == "filename":
            yield value
        elif isinstance(value, dict):
            yield from _filenames(value)
