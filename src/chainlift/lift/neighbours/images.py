"""Which images under some directories stand on given files, and under what other names these are reached.

Before anything is deleted, directories are searched: for images whose headers name a file, for symbolic and hard links
to it, and for the records of lifts that need it for the way back. Directories are walked as :func:`os.walk` walks them:
into mounted file systems, but not through symbolic links to directories.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn

from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import Reference, parse_name
from chainlift.errors import ImageError, InputError
from chainlift.lift.neighbours.processes import Identity, identity_of
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header
from chainlift.qcow2.layout import HEADER_V2_LENGTH, QCOW_MAGIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from chainlift.qcow2.header import Header

Kind = Literal["backing file", "extent", "data file", "symbolic link", "hard link", "lift record"]

_MAGIC: Final = QCOW_MAGIC.to_bytes(4, "big")
#: What our own files are called while they are written: leftovers of killed runs stand on nothing.
NEW_SUFFIX: Final = ".new"
#: What a layer is called while ``prune`` writes it anew, and the old one until nobody may have to go back to it.
PRUNE_SUFFIX: Final = ".prune"
OLD_SUFFIX: Final = ".old"
_LEFTOVER: Final = re.compile(
    rf"(?:index|squash)-\d+\.(?:table|vmdk|qcow2){re.escape(NEW_SUFFIX)}"
    rf"|.*{re.escape(PRUNE_SUFFIX)}(?:{re.escape(NEW_SUFFIX)}|{re.escape(OLD_SUFFIX)})",
    re.DOTALL,
)
_RECORD: Final = re.compile(r"(?:manifest|index-\d+|squash-\d+)\.json")
_MAX_RECORD_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class User:
    """Somebody who names a file."""

    #: The image, the link, or the record of a lift.
    path: Path
    kind: Kind

    def __str__(self) -> str:
        return {
            "backing file": f"{self.path} stands on it",
            "extent": f"{self.path} stands on it through an index",
            "data file": f"{self.path} has its data in it",
            "symbolic link": f"{self.path} is a symbolic link to it",
            "hard link": f"it has another name: {self.path}",
            "lift record": f"{self.path} names it for the way back of a lift",
        }[self.kind]


class Search:
    """What lies under some directories and which files it names.

    :param directories: where to look.
    :raise InputError: if a directory cannot be searched, or an image there cannot be read: what it names is not known.
    """

    def __init__(self, directories: Iterable[str | os.PathLike[str]]) -> None:
        self.directories = tuple(dict.fromkeys(os.path.realpath(directory) for directory in directories))
        #: Files and links that were looked at.
        self.files = 0
        #: qcow2 images among them.
        self.images = 0
        self._users: dict[Identity, dict[tuple[Identity, Kind], User]] = defaultdict(dict)
        self._names: dict[Identity, list[str]] = defaultdict(list)
        self._links: dict[Identity, list[str]] = defaultdict(list)
        links: list[str] = []
        for path, status in walk(self.directories, _refuse_directory):
            self.files += 1
            if stat.S_ISLNK(status.st_mode):
                links.append(path)
            else:
                self._look_at(path, status)
        # After all files, so that an image is known by its own name before it is by a link's.
        for path in links:
            with suppress(OSError):  # a link to nowhere
                status = os.stat(path)  # noqa: PTH116
                self._links[identity_of(status)].append(path)
                self._look_at(path, status, is_link=True)

    def users_of(self, path: Path) -> list[User]:
        """Return who names a file: images first, then its other names, then records of lifts.

        A file that is not there is named by nobody.
        """
        try:
            status = path.stat()
        except OSError:
            return []
        identity = identity_of(status)
        found = list(self._users[identity].values()) if identity in self._users else []
        itself = os.path.join(os.path.realpath(path.parent), path.name)  # noqa: PTH118
        others = [name for name in self._names.get(identity, []) if name not in (itself, os.path.realpath(path))]
        found += [User(Path(name), "hard link") for name in others]
        found += [User(Path(name), "symbolic link") for name in self._links.get(identity, []) if name != itself]
        return sorted(found, key=lambda user: user.kind == "lift record")

    def covers(self, path: Path) -> bool:
        """Whether a file lies in one of the directories that were searched."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(directory) for directory in self.directories)

    def _look_at(self, path: str, status: os.stat_result, *, is_link: bool = False) -> None:
        identity = identity_of(status)
        if stat.S_ISREG(status.st_mode):
            if not is_link and status.st_nlink > 1:
                self._names[identity].append(path)
            if status.st_size < HEADER_V2_LENGTH:  # too short to name anything
                return
        elif not stat.S_ISBLK(status.st_mode):
            return
        if _RECORD.fullmatch(os.path.basename(path)) and not is_link:  # noqa: PTH119
            self._add(path, identity, ((name, "lift record") for name in _named_in_record(path)))
        header = _header_of(path, status)
        if header is not None:
            self.images += not is_link
            self._add(path, identity, _named_in_header(path, header))

    def _add(self, path: str, user: Identity, names: Iterable[tuple[str, Kind]]) -> None:
        for name, kind in names:
            with suppress(OSError, ValueError):  # a file that is not there, or no name at all
                named = identity_of(os.stat(name))  # noqa: PTH116
                if named != user:
                    self._users[named].setdefault((user, kind), User(Path(path), kind))


def walk(
    directories: Iterable[str], cannot_search: Callable[[str, OSError], None]
) -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file, link and device below some directories, each directory once, but leftovers of killed runs.

    :param cannot_search: called for a directory that cannot be searched; what is below it is left out if it returns.
    """
    seen = set()
    for top in directories:
        stack = [top]
        while stack:
            directory = stack.pop()
            try:
                status = os.stat(directory)  # noqa: PTH116
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(directory) as content:
                    entries = sorted(content, key=lambda entry: entry.name)
            except OSError as error:
                if not isinstance(error, FileNotFoundError) or directory == top:  # else it went meanwhile
                    cannot_search(directory, error)
                continue
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(entry.path)
                    elif not _LEFTOVER.fullmatch(entry.name):
                        yield entry.path, entry.stat(follow_symlinks=False)


def find_users(targets: Iterable[Path], search: Iterable[Path]) -> dict[Path, list[Path]]:
    """Find the qcow2 images below some directories that name one of these files.

    As a backing file, directly or as an extent of an index, or as an external data file.

    :param targets: files.
    :param search: directories.
    :return: for each file that is used, its users; files that nobody names are left out.
    :raise InputError: if an image below the directories cannot be read: what it names cannot be told.
    """
    found = Search(search)
    kinds = ("backing file", "extent", "data file")
    users = {
        path: list(dict.fromkeys(user.path for user in found.users_of(path) if user.kind in kinds)) for path in targets
    }
    return {path: images for path, images in users.items() if images}


def named_by(image: Path) -> list[Path]:
    """Return the files that an image's header names and that are there; none for what is no qcow2 image.

    :raise ImageError: if it cannot be read.
    """
    header = _header_of(str(image), image.stat())
    named = [] if header is None else [Path(name) for name, _ in _named_in_header(str(image), header)]
    return [path for path in dict.fromkeys(named) if path.exists()]


def opened_without_header(path: Path, search: Search) -> list[Path]:
    """Return the images that stand on a file but not on what its header names.

    Such an image has a ``json:`` name with a backing file of its own, or with none: it reads what the file itself has,
    and other bytes once more is written into the file, even where the file reads the same.
    """
    named = [user.path for user in search.users_of(path) if user.kind == "backing file"]
    return [image for image in dict.fromkeys(named) if _leaves_header_out(image, path)]


def _leaves_header_out(image: Path, path: Path) -> bool:
    header = _header_of(str(image), image.stat())
    if header is None or not header.backing_file:
        return False
    try:
        reference: Reference | None = parse_name(os.fsdecode(header.backing_file), named_in=str(image))
    except InputError:
        return False
    while reference is not None:
        if not reference.follows_header:
            for place in _places(reference.path, str(image)):
                with suppress(OSError):
                    if path.samefile(place):
                        return True
        reference = reference.backing
    return False


def _refuse_directory(directory: str, error: OSError) -> NoReturn:
    raise InputError(f"cannot be searched for images: {error.strerror}", path=directory) from error


def _header_of(path: str, status: os.stat_result) -> Header | None:
    """Return the header of a qcow2 image; None for what is none, or went meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            head = os.pread(descriptor, HEADER_V2_LENGTH, 0)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A device without a medium holds no image, nor does one that root may not open.
        if stat.S_ISBLK(status.st_mode) and (error.errno not in (errno.EACCES, errno.EPERM) or os.geteuid() == 0):
            return None
        raise ImageError(f"cannot be looked at: {error.strerror}", path=path) from error
    if len(head) < HEADER_V2_LENGTH or not head.startswith(_MAGIC):
        return None
    file = ImageFile(path)
    try:
        return read_header(file)
    finally:
        file.close()


def _named_in_header(image: str, header: Header) -> Iterator[tuple[str, Kind]]:
    if header.data_file:
        # QEMU takes a relative name from its working directory; whoever starts it there means one of these two.
        for name in _places(os.fsdecode(header.data_file), image):
            yield name, "data file"
    if header.backing_file:
        name = os.fsdecode(header.backing_file)
        try:
            reference: Reference | None = parse_name(name, named_in=image, file_format=header.backing_format)
        except InputError:
            # A network protocol, or options that we do not know: every local file that it may mean is meant.
            for path in _file_names(name):
                for place in _places(path, image):
                    yield place, "backing file"
            return
        while reference is not None:
            yield from _named_by(reference, image)
            reference = reference.backing


def _named_by(reference: Reference, image: str) -> Iterator[tuple[str, Kind]]:
    for path in _places(reference.path, image):
        yield path, "backing file"
        if reference.is_descriptor and os.path.isfile(path):  # noqa: PTH113
            space = ExtentsFile(path)
            for extent in space.extents:
                yield os.path.join(os.path.dirname(path), extent.name), "extent"  # noqa: PTH118, PTH120
            space.close()
    if reference.data_file is not None:
        for path in _places(reference.data_file.path, image):
            yield path, "data file"


def _places(name: str, image: str) -> list[str]:
    """Return where a name may lead that is relative to a working directory which we do not know."""
    beside = os.path.join(os.path.dirname(image), name)  # noqa: PTH118, PTH120 - absolute names stay as they are
    return [name] if beside == name else [name, beside]


def _file_names(name: str) -> Iterator[str]:
    if name.startswith("json:"):
        with suppress(ValueError, RecursionError):
            for text in _strings(json.loads(name.removeprefix("json:")), key=""):
                yield text.removeprefix("file:")
        return
    while ":" in name:  # filters stand before a name: "blkdebug:rules:disk.qcow2"
        name = name.partition(":")[2]
        yield name


def _strings(value: Any, key: str) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield each string of a node's description that may be a file's name."""
    if isinstance(value, dict):
        for inner, content in value.items():
            yield from _strings(content, inner)
    elif isinstance(value, list):
        for content in value:
            yield from _strings(content, key)
    elif isinstance(value, str) and (key.endswith("filename") or "/" in value):
        yield value


def _named_in_record(path: str) -> list[str]:
    """Return the files that a lift's record names for the way back.

    None where the layers were deleted already, where nothing of the lift is left or nobody uses it, or where it is no
    record of a lift: then there is no way back.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            record = json.loads(file.read(_MAX_RECORD_BYTES))
    except PermissionError as error:
        raise ImageError(f"cannot be read: {error.strerror}", path=path) from error
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(record, dict) or record.get("kind") not in ("index", "squash"):
        return []
    if record.get("deleted") or record.get("used") is False:
        return []
    directory = os.path.dirname(path)  # noqa: PTH120
    beside = os.path.dirname(directory)  # noqa: PTH120
    files = [os.path.join(directory, os.path.basename(name)) for name in _paths(record.get("files"))]  # noqa: PTH118, PTH119
    if not any(map(os.path.exists, files)):
        return []
    # Absolute; where image, layers and lift were moved together they lie beside it now.
    names = [
        name if os.path.exists(name) else os.path.join(beside, os.path.basename(name))  # noqa: PTH110, PTH118, PTH119
        for name in (*_paths(record.get("layers")), *_paths(record.get("below")))
    ]
    original = record.get("original")
    if isinstance(original, dict) and isinstance(original.get("name"), str):
        with suppress(InputError):
            reference: Reference | None = parse_name(original["name"], named_in=os.path.join(beside, "image"))  # noqa: PTH118
            while reference is not None:
                names.append(reference.path)
                reference = reference.backing
    return names


def _paths(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Yield what is called ``path``, however deep."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for inner in value.values():
            yield from _paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner)
