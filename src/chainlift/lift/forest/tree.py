"""What a person should know of each image of a forest."""

from __future__ import annotations

import os
import shlex
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from chainlift.chain.names import plain_name
from chainlift.lift.forest.candidates import Candidate, Candidates
from chainlift.lift.forest.frees import Frees
from chainlift.lift.forest.scan import scan
from chainlift.lift.neighbours.processes import Holder, OpenFiles
from chainlift.lift.record.lifts import is_lift_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from chainlift.lift.forest.scan import Forest, Node
    from chainlift.lift.record.manifest import Pointer


@dataclass(frozen=True)
class Broken:
    """Why an image cannot be read, and what to do."""

    #: ``missing``, ``unreadable``, ``foreign``, ``loop``; ``moved``: missing, and just one file fits.
    kind: str
    #: What is wrong, a phrase.
    what: str
    #: Files of the missing one's name.
    candidates: list[Candidate]
    #: What to do: a command, or a phrase; None where nothing is known.
    advice: str | None


@dataclass(frozen=True)
class TreeEntry:
    """One image, and who stands on whom."""

    #: Absolute; the first name that was found.
    path: str
    #: ``index``: the descriptor of a lift, with all that belongs to it.
    format: Literal["qcow2", "raw", "index"]
    #: Which kind of lift it is, if any.
    lift: Literal["index", "squash"] | None
    #: The image that it stands on; None at the bottom, and where that is not there.
    stands_on: str | None
    #: What its header names; None where it names nothing.
    backing: Pointer | None
    #: Images that stand on it.
    images_above: int
    #: Of an index: the files that it points into.
    files_pointed_into: int
    #: Of its disk.
    virtual_size_bytes: int
    #: What its files take on their file systems.
    disk_bytes: int
    #: What deleting it would free; None where that cannot be told.
    frees_bytes: int | None
    #: Time of its last write, seconds since the epoch.
    modified_s: float
    #: How many its header has.
    internal_snapshots: int
    #: Whether its data are encrypted.
    encrypted: bool
    #: Whether it is in none of the directories: somebody in there stands on it.
    is_outside: bool
    #: Who has it open.
    holders: list[Holder]
    #: Whether each of them has an image open that stands on this one.
    is_held_above: bool
    #: Why it cannot be read; None where it can.
    broken: Broken | None


class Tree:
    """The images below some directories; its entries come from the bases up, each behind the one that it stands on."""

    def __init__(self, forest: Forest, frees: Frees) -> None:
        self.forest = forest
        self._frees = frees

    @property
    def unreadable(self) -> dict[str, str]:
        """Images and directories that cannot be read, by their paths, each with the reason."""
        return self.forest.unreadable

    @cached_property
    def open_files(self) -> OpenFiles:
        """Who has what open, at one moment."""
        return OpenFiles.look()

    @cached_property
    def candidates(self) -> Candidates:
        """What may be backing files that are not where headers say."""
        return Candidates(self.forest)

    def __iter__(self) -> Iterator[TreeEntry]:
        waiting = self.forest.roots()[::-1]
        while waiting:
            node = waiting.pop()
            yield self.entry(node)
            waiting += reversed(self.forest.standing_on(node))

    def entry(self, node: Node) -> TreeEntry:
        """Return what is to be known of an image."""
        holders = self._holders(node)
        above = (
            {holder.pid for one in self.forest.standing_on(node) for holder in self._holders(one)} if holders else ()
        )
        return TreeEntry(
            path=node.path,
            format=node.format,
            lift=node.lift,
            stands_on=None if node.below is None else self.forest.nodes[node.below].path,
            backing=node.pointer,
            images_above=len(self.forest.standing_on(node)),
            files_pointed_into=len(node.extents),
            virtual_size_bytes=node.virtual_size,
            disk_bytes=node.disk_bytes,
            frees_bytes=self._frees.of(node),
            modified_s=node.modified_s,
            internal_snapshots=node.internal_snapshots,
            encrypted=node.encrypted,
            is_outside=node.is_outside,
            holders=holders,
            is_held_above=all(holder.pid in above for holder in holders),
            broken=self._broken(node),
        )

    def _holders(self, node: Node) -> list[Holder]:
        try:
            return self.open_files.holders_of(os.stat(node.path))  # noqa: PTH116 - any bytes
        except OSError:  # it went meanwhile
            return []

    def _broken(self, node: Node) -> Broken | None:
        if node.trouble is None:
            return None
        if node.trouble != "missing" or node.reference is None:
            advice = "bring what it stood on back from a backup" if node.trouble == "loop" else None
            return Broken(node.trouble, node.why, [], advice)
        if is_lift_file(node.reference.path):
            advice = f"its lift was moved or is gone: chainlift restore {shlex.quote(plain_name(node.path))}"
            return Broken("missing", node.why, [], advice)
        found = self.candidates.of(node)
        fitting = [candidate for candidate in found if candidate.fits]
        places = " ".join(shlex.quote(plain_name(directory)) for directory in self.forest.directories)
        name = shlex.quote(os.path.basename(node.reference.path))  # noqa: PTH119 - any bytes
        if len(fitting) == 1:
            return Broken("moved", node.why, found, f"chainlift relink {places}")
        advice = f"if it was renamed, or one of several is the one: chainlift relink {places} --map {name}=FILE"
        return Broken("missing", node.why, found, advice)


@contextmanager
def open_tree(directories: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Iterator[Tree]:
    """Look at every qcow2 image below some directories, and at all that these stand on. Use it as a context manager.

    Only metadata are read, nothing is changed, and no QEMU is needed. What cannot be read, or leads nowhere, is told.

    >>> with open_tree(["."]) as tree:
    ...     for image in tree:
    ...         print(image.path.rpartition("/")[2], image.images_above, image.broken)
    layer0.qcow2 1 None
    layer1.qcow2 1 None
    layer2.qcow2 1 None
    layer3.qcow2 1 None
    disk.qcow2 0 None

    :param directories: where to look, one or several, and below; symbolic links to directories are not followed.
    :return: the images, while the block lasts.
    :raise ImageError: if one of the directories is none.
    """
    forest = scan(directories)
    with closing(Frees(forest)) as frees:
        yield Tree(forest, frees)
