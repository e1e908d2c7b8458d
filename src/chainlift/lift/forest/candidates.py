"""Files that may be a backing file which is not where a header says: what speaks for each, and against it.

A file is looked for by its name. That alone proves nothing, so it also has to be able to be that layer: of the format
that the header says, of a size that fits, and, where the record of a lift knows the layer, with the same tables. A
file of another name is never proposed.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from chainlift.chain.digest import digest_tables
from chainlift.chain.opening import probe_format
from chainlift.errors import ChainliftError, ImageError
from chainlift.lift.neighbours.images import walk
from chainlift.lift.neighbours.processes import Identity, identity_of
from chainlift.lift.record.lifts import is_lift_file
from chainlift.lift.record.manifest import SUFFIX, read_manifest
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import Image, read_header
from chainlift.qcow2.layout import SECTOR_SIZE
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chainlift.lift.forest.scan import Forest, Node
    from chainlift.lift.record.manifest import Layer, Tables


@dataclass(frozen=True)
class Candidate:
    """A file that may be the one that is missing."""

    #: As it was found.
    path: str
    #: What it is; None where it cannot be read.
    format: Literal["qcow2", "raw"] | None
    #: Phrases.
    speaks_for: list[str] = field(default_factory=list)
    #: Phrases; a file against which something speaks is not taken.
    speaks_against: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.speaks_against


class Candidates:
    """Finds candidates for what the images of a forest miss.

    :param forest: where they are looked for.
    """

    def __init__(self, forest: Forest) -> None:
        self._forest = forest
        wanted = {_name_of(node) for node in missing(forest)}
        #: File name -> files of it.
        self._files: dict[str, list[str]] = {}
        self._known = _Known()
        for path, status in walk(forest.directories, lambda *_: None) if wanted else ():
            name = os.path.basename(path)  # noqa: PTH119 - any bytes
            if name in wanted and stat.S_ISREG(status.st_mode):
                self._files.setdefault(name, []).append(path)
            elif name.endswith(SUFFIX) and os.path.basename(os.path.dirname(path)).endswith(".lift"):  # noqa: PTH119, PTH120
                self._known.add(path)

    def of(self, node: Node) -> list[Candidate]:
        """Return what may be the backing file of an image: files of its name, those that fit first.

        :param node: an image whose backing file is missing.
        """
        # A file with several names is one file.
        paths = {identity_of(os.stat(path)): path for path in reversed(self._files.get(_name_of(node), []))}  # noqa: PTH116
        found = [self.judge(node, path) for path in paths.values()]
        return sorted(found, key=lambda candidate: (not candidate.fits, candidate.path))

    def judge(self, node: Node, path: str) -> Candidate:
        """Say what speaks for and against a file as the backing file of an image, whatever its name."""
        assert node.reference is not None
        speaks_for: list[str] = []
        against: list[str] = []
        try:
            found, size, identity = _look(path)
        except (ChainliftError, OSError) as error:
            why = error.what if isinstance(error, ChainliftError) else str(error.strerror)
            return Candidate(path, None, [], [f"it cannot be read: {why}"])
        other = self._forest.nodes.get(identity)
        if other is not None and self._forest.is_above(other, node):
            what = "it is the image itself" if other is node else "it stands on the image itself"
            return Candidate(path, found, [], [what])
        said = node.reference.format
        if said in ("raw", "file", "host_device"):
            said = "raw"
        if said is not None and said != found:
            against.append(f"it is {found}, and the header says {said}")
        else:
            speaks_for.append(f"it is {found}" + ("" if said is None else ", as the header says"))
        ours, above = format_bytes(size), format_bytes(node.virtual_size)
        if size == node.virtual_size:
            speaks_for.append(f"its disk has {ours}, too")
        elif size > node.virtual_size:
            against.append(f"its disk has {ours} ({size} bytes), more than the {above} of the image")
        else:
            speaks_for.append(f"its disk has {ours}, not more than the {above} of the image")
        self._known.judge(os.path.basename(node.reference.path), path, identity, speaks_for, against)  # noqa: PTH119
        return Candidate(path, found, speaks_for, against)


class _Known:
    """What the records of lifts know of layers, by their file names."""

    def __init__(self) -> None:
        self._layers: dict[str, list[Layer]] = {}

    def add(self, record: str) -> None:
        from pathlib import Path

        try:
            manifest = read_manifest(Path(record))
        except ChainliftError:
            return
        for layer in (*manifest.layers, *manifest.below):
            self._layers.setdefault(os.path.basename(layer.identity.path), []).append(layer)  # noqa: PTH119

    def judge(self, name: str, path: str, identity: Identity, speaks_for: list[str], against: list[str]) -> None:
        """Compare a file with what is known of the layer of that name."""
        known = self._layers.get(name, [])
        if any((layer.identity.device, layer.identity.inode) == identity for layer in known):
            speaks_for.append("it is the very file that a lift was made of")
            return
        tables = {layer.tables for layer in known if layer.tables is not None}
        if not tables:
            return
        if any(_has_tables(path, one) for one in tables):
            speaks_for.append("its tables are those that a lift was made of")
        else:
            against.append("its tables are not those of the layer of that name that a lift was made of")


def missing(forest: Forest) -> Iterable[Node]:
    """Return the images whose backing files are not there and may have been moved."""
    return [
        node
        for node in forest.nodes.values()
        if node.trouble == "missing" and node.reference is not None and not is_lift_file(node.reference.path)
    ]


def _name_of(node: Node) -> str:
    assert node.reference is not None
    return os.path.basename(node.reference.path)  # noqa: PTH119 - any bytes


def _look(path: str) -> tuple[Literal["qcow2", "raw"], int, Identity]:
    """Return a file's format, the size of its disk and what tells it from others.

    :raise ImageError: if it cannot be read, or has another format.
    """
    identity = identity_of(os.stat(path))  # noqa: PTH116
    file = ImageFile(path)
    try:
        found = probe_format(file.pread(0, 4096))
        if found == "qcow2":
            return "qcow2", read_header(file).virtual_size, identity
        if found == "raw":
            return "raw", -(-file.size // SECTOR_SIZE) * SECTOR_SIZE, identity
    finally:
        file.close()
    raise ImageError(f"it is {found}", path=path)


def _has_tables(path: str, known: Tables) -> bool:
    file = ImageFile(path)
    try:
        image = Image(file, read_header(file))
        return digest_tables(image, known.span_bytes) == known.sha256
    except ChainliftError:
        return False
    finally:
        file.close()
