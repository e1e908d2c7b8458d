"""Which images under a directory stand on given files: before anything is deleted, they are searched and named."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import Reference, parse_name
from chainlift.errors import InputError
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MAGIC = b"QFI\xfb"
#: What our own files are called while they are written: leftovers of killed runs stand on nothing.
NEW_SUFFIX = ".new"


def find_users(targets: Iterable[Path], search: Iterable[Path]) -> dict[Path, list[Path]]:
    """Find the qcow2 images below some directories that name one of these files.

    As a backing file, directly or as an extent of an index, or as an external data file.

    :param targets: files.
    :param search: directories.
    :return: for each file that is used, its users; files that nobody names are left out.
    :raise InputError: if an image below the directories cannot be read: what it names cannot be told.
    """
    wanted = {identity: path for path in targets if (identity := _identity(path)) is not None}
    users: dict[Path, list[Path]] = defaultdict(list)
    for image in _files_below(search):
        for named in _names(image):
            identity = _identity(named)
            if identity in wanted and wanted[identity] not in users.get(image, []):
                users[wanted[identity]].append(image)
    return dict(users)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _files_below(search: Iterable[Path]) -> Iterator[Path]:
    seen = set()
    for top in search:
        for directory, _, names in os.walk(top, onerror=_cannot_search):
            for name in sorted(names):
                path = Path(directory, name)
                identity = _identity(path)
                if identity is not None and identity not in seen and not name.endswith(NEW_SUFFIX):
                    seen.add(identity)
                    yield path


def _cannot_search(error: OSError) -> None:
    raise InputError(f"cannot be searched for images: {error.strerror}", path=error.filename)


def _names(image: Path) -> list[Path]:
    """Return the files that an image names; none where it is no qcow2 image."""
    if not image.is_file():
        return []
    file = ImageFile(str(image))
    try:
        if file.pread(0, 4) != _MAGIC:
            return []
        header = read_header(file)
    finally:
        file.close()
    found = []
    if header.data_file:
        name = os.fsdecode(header.data_file)
        # QEMU takes a relative one from its working directory; whoever starts it there means one of these two.
        found += [Path(name), image.parent / name]
    if header.backing_file:
        name = os.fsdecode(header.backing_file)
        found += _paths(lambda: parse_name(name, named_in=str(image), file_format=header.backing_format))
    return found


def _paths(parse: Callable[[], Reference]) -> list[Path]:
    try:
        reference: Reference | None = parse()
    except InputError:
        return []  # a network protocol, say: no file of this machine
    found = []
    while reference is not None:
        found.append(Path(reference.path))
        if reference.data_file is not None:
            found.append(Path(reference.data_file.path))
        if reference.is_descriptor and Path(reference.path).is_file():
            space = ExtentsFile(reference.path)
            found += [Path(reference.path).parent / extent.name for extent in space.extents]
            space.close()
        reference = reference.backing
    return found
