"""Looking at every image below some directories, and following what each stands on to its base.

Nothing is trusted and nothing ends the search: what cannot be read, or leads nowhere, is a finding. An image is known
by its file, whatever names it has; what it stands on says its header.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from chainlift.chain.linear import ExtentsFile
from chainlift.chain.names import Reference, parse_name
from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.neighbours.images import walk
from chainlift.lift.neighbours.processes import Identity, identity_of
from chainlift.lift.record.lifts import find_lift, is_lift_file
from chainlift.lift.record.manifest import Pointer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header
from chainlift.qcow2.layout import QCOW_MAGIC, SECTOR_SIZE, CryptMethod

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chainlift.qcow2.header import Header

_MAGIC: Final = QCOW_MAGIC.to_bytes(4, "big")

#: Why an image does not have what it stands on: no file has the name; the file cannot be read; the name is of no local
#: file; the image stands on itself.
Trouble = Literal["missing", "unreadable", "foreign", "loop"]


@dataclass(slots=True)
class Node:
    """One image, or what an image stands on."""

    #: The first name that was found; a name in a header is relative to its directory.
    path: str
    identity: Identity
    #: ``index``: the descriptor of a lift, with all that belongs to it.
    format: Literal["qcow2", "raw", "index"]
    #: What its files take on their file systems.
    disk_bytes: int
    #: Time of its last write, seconds since the epoch.
    modified_s: float
    virtual_size: int = 0
    internal_snapshots: int = 0
    encrypted: bool = False
    #: Whether it is in none of the directories: somebody in there stands on it.
    is_outside: bool = False
    #: What the header names.
    pointer: Pointer | None = None
    #: Where that leads; None also where it is no name of a local file.
    reference: Reference | None = None
    #: The image that it stands on.
    below: Identity | None = None
    trouble: Trouble | None = None
    #: What is wrong, a phrase.
    why: str = ""
    #: Of an index: the files that it points into.
    extents: tuple[Identity, ...] = ()

    @property
    def lift(self) -> Literal["index", "squash"] | None:
        """Which kind of lift it is, if any."""
        if self.format == "index":
            return "index"
        return "squash" if is_lift_file(self.path) else None


@dataclass
class Forest:
    """What was found."""

    #: Where images were looked for, with symbolic links resolved.
    directories: tuple[str, ...]
    nodes: dict[Identity, Node] = field(default_factory=dict)
    #: Image -> those that stand on it, in the order of their names.
    above: dict[Identity, list[Identity]] = field(default_factory=dict)
    #: Images, or directories, that cannot be read -> why.
    unreadable: dict[str, str] = field(default_factory=dict)
    #: Image -> symbolic links to it.
    links: dict[Identity, list[str]] = field(default_factory=dict)

    def roots(self) -> list[Node]:
        """Return the images that stand on nothing that is there, in the order of their names."""
        return sorted((node for node in self.nodes.values() if node.below is None), key=lambda node: node.path)

    def standing_on(self, node: Node) -> list[Node]:
        """Return the images that stand on one, in the order of their names."""
        return [self.nodes[identity] for identity in self.above.get(node.identity, ())]

    def is_above(self, node: Node, other: Node) -> bool:
        """Whether an image stands on another one, however far down, or is that one."""
        current: Identity | None = node.identity
        while current is not None:
            if current == other.identity:
                return True
            current = self.nodes[current].below
        return False


def scan(
    directories: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    images: Iterable[str | os.PathLike[str]] = (),
) -> Forest:
    """Look at every image below some directories, and at all that these stand on, wherever it is.

    :param directories: one or several.
    :param images: to be looked at, too, wherever they are; what is no image is left out.
    :raise ImageError: if one of the directories is none.
    """
    if isinstance(directories, (str, os.PathLike)):
        directories = [directories]
    tops = tuple(dict.fromkeys(os.path.realpath(os.fspath(directory)) for directory in directories))
    for directory in tops:
        if not os.path.isdir(directory):  # noqa: PTH112 - any bytes
            raise ImageError("is no directory", path=directory)
    return _Scan(Forest(tops)).run([os.fspath(image) for image in images])


class _Scan:
    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        #: Images whose pointers are still to be followed.
        self._waiting: list[Node] = []

    def run(self, images: Iterable[str]) -> Forest:
        forest = self._forest
        links: list[str] = []
        for path, status in walk(forest.directories, self._cannot_search):
            if stat.S_ISLNK(status.st_mode):
                links.append(path)
            else:
                self._look_at(path, status)
        # After all files, so that an image is known by its own name before it is by a link's.
        for path in links:
            self._look_through(path)
        for path in images:
            try:
                self._look_at(path, os.stat(path))  # noqa: PTH116
            except (OSError, ValueError) as error:
                why = error.strerror if isinstance(error, OSError) else str(error)
                forest.unreadable[path] = f"cannot be opened: {why}"
        while self._waiting:
            self._follow(self._waiting.pop())
        self._cut_loops()
        for node in sorted(forest.nodes.values(), key=lambda node: node.path):
            if node.below is not None:
                forest.above.setdefault(node.below, []).append(node.identity)
        return forest

    def _look_through(self, link: str) -> None:
        """Take in what a symbolic link leads to, or that the image that it leads to has one more name."""
        forest = self._forest
        try:
            status = os.stat(link)  # noqa: PTH116
        except OSError as error:
            if error.errno == errno.ELOOP:
                forest.unreadable[link] = "is a loop of symbolic links"
            return  # to nowhere
        if identity_of(status) in forest.nodes:
            forest.links.setdefault(identity_of(status), []).append(link)
        else:
            self._look_at(link, status)

    def _cannot_search(self, directory: str, error: OSError) -> None:
        self._forest.unreadable[directory] = f"cannot be searched: {error.strerror}"

    def _look_at(self, path: str, status: os.stat_result) -> None:
        """Take a file in if it is an image."""
        if identity_of(status) in self._forest.nodes:
            return
        if path.endswith(".vmdk") and is_lift_file(path):
            self._index(path, status)
            return
        try:
            if stat.S_ISREG(status.st_mode):
                if status.st_size < len(_MAGIC) or not _has_magic(path):
                    return
            elif not stat.S_ISBLK(status.st_mode) or not _has_magic(path):
                return
        except FileNotFoundError:
            return
        except OSError as error:
            if stat.S_ISREG(status.st_mode):
                self._forest.unreadable[path] = f"cannot be opened: {error.strerror}"
            return
        try:
            self._qcow2(path, status)
        except ImageError as error:
            self._forest.unreadable[path] = error.what

    def _qcow2(self, path: str, status: os.stat_result, *, is_outside: bool = False) -> Node:
        """Take a qcow2 image in.

        :raise ImageError: if it is none that can be read.
        """
        file = ImageFile(path)
        try:
            header = read_header(file)
        finally:
            file.close()
        node = Node(
            path,
            identity_of(status),
            "qcow2",
            status.st_blocks * 512 + _data_file_bytes(path, header),
            status.st_mtime,
            header.virtual_size,
            header.nb_snapshots,
            header.crypt_method is not CryptMethod.NONE,
            is_outside,
        )
        if header.backing_file is not None:
            node.pointer = Pointer(os.fsdecode(header.backing_file), header.backing_format)
            self._waiting.append(node)
        self._forest.nodes[node.identity] = node
        return node

    def _index(self, path: str, status: os.stat_result, *, is_outside: bool = False) -> Node | None:
        """Take the descriptor of an index in; None, and it is noted, where it cannot be read."""
        directory = os.path.dirname(path)  # noqa: PTH120 - any bytes
        try:
            space = ExtentsFile(path)
            try:
                size = read_header(space).virtual_size
            finally:
                space.close()
        except ChainliftError as error:
            self._forest.unreadable[path] = error.what
            return None
        disk_bytes, extents = status.st_blocks * 512, []
        for number, extent in enumerate(space.extents):
            with suppress(OSError):
                found = os.stat(os.path.join(directory, extent.name))  # noqa: PTH116, PTH118
                if number:  # the first one is its own
                    extents.append(identity_of(found))
                else:
                    disk_bytes += found.st_blocks * 512
        node = Node(path, identity_of(status), "index", disk_bytes, status.st_mtime, size, is_outside=is_outside)
        node.extents = tuple(extents)
        self._forest.nodes[node.identity] = node
        return node

    def _follow(self, node: Node) -> None:
        """Find what an image stands on, and take it in if it is not known yet."""
        assert node.pointer is not None
        for name in (node.path, *self._forest.links.get(node.identity, ())):
            try:
                reference = parse_name(node.pointer.name, named_in=name, file_format=node.pointer.format)
            except ChainliftError as error:
                node.trouble, node.why = "foreign", error.what
                return
            node.reference = node.reference or reference
            with suppress(OSError, ValueError):
                status = os.stat(reference.path)  # noqa: PTH116
                node.reference = reference
                self._stand(node, reference, status)
                return
        node.trouble, node.why = "missing", f"its backing file {node.pointer.name!r} is not there"

    def _stand(self, node: Node, reference: Reference, status: os.stat_result) -> None:
        identity = identity_of(status)
        below = self._forest.nodes.get(identity)
        if below is None:
            below = self._outside(reference, status)
        if below is None:
            node.trouble = "unreadable"
            node.why = f"its backing file {reference.path} cannot be read: {self._forest.unreadable[reference.path]}"
            return
        node.below = below.identity
        if below.format == "index" and below.below is None and node.pointer is not None:
            self._place_index(below, node, node.pointer)

    def _outside(self, reference: Reference, status: os.stat_result) -> Node | None:
        """Take in what is no qcow2 image, or lies in none of the directories."""
        path = reference.path
        is_outside = not self._covers(path)
        if reference.is_descriptor:
            return self._index(path, status, is_outside=is_outside)
        if path in self._forest.unreadable:
            return None
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
            self._forest.unreadable[path] = "is neither a regular file nor a block device"
            return None
        try:
            if _has_magic(path) and reference.format != "raw":
                return self._qcow2(path, status, is_outside=is_outside)
            file = ImageFile(path)
            file.close()
        except OSError as error:
            self._forest.unreadable[path] = f"cannot be opened: {error.strerror}"
            return None
        except ImageError as error:
            self._forest.unreadable[path] = error.what
            return None
        size = -(-file.size // SECTOR_SIZE) * SECTOR_SIZE
        node = Node(path, file.identity, "raw", file.allocated_bytes, status.st_mtime, size, is_outside=is_outside)
        node.identity = identity_of(status)
        self._forest.nodes[node.identity] = node
        return node

    def _place_index(self, index: Node, image: Node, pointer: Pointer) -> None:
        """Let an index stand on the uppermost of the layers that it replaces, as its record says."""
        with suppress(ChainliftError, OSError, ValueError):
            lift = find_lift(Path(image.path), pointer)
            if lift is not None and lift.manifest.layers:
                path = lift.manifest.layers[0].identity.path
                status = os.stat(path)  # noqa: PTH116
                below = self._forest.nodes.get(identity_of(status))
                if below is None:
                    below = self._outside(Reference(path, lift.manifest.layers[0].format), status)
                index.below = None if below is None else below.identity

    def _covers(self, path: str) -> bool:
        real = os.path.realpath(path)
        return any(real.startswith(f"{top.rstrip('/')}/") for top in self._forest.directories)

    def _cut_loops(self) -> None:
        """Let every image that would stand on itself stand on nothing, and say so."""
        nodes = self._forest.nodes
        done: set[Identity] = set()
        for start in list(nodes.values()):
            trail: dict[Identity, None] = {}
            node = start
            while node.identity not in done:
                if node.identity in trail:
                    last = nodes[next(reversed(trail))]
                    last.below, last.trouble = None, "loop"
                    last.why = f"its backing file {node.path} stands on it"
                    break
                trail[node.identity] = None
                if node.below is None:
                    break
                node = nodes[node.below]
            done |= trail.keys()


def _has_magic(path: str) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, len(_MAGIC), 0) == _MAGIC
    finally:
        os.close(descriptor)


def _data_file_bytes(image: str, header: Header) -> int:
    if not header.data_file:
        return 0
    # QEMU takes a relative name from its working directory; mostly that means the file beside the image.
    path = os.path.join(os.path.dirname(image), os.fsdecode(header.data_file))  # noqa: PTH118, PTH120
    with suppress(OSError, ValueError):
        return os.stat(path).st_blocks * 512  # noqa: PTH116
    return 0
