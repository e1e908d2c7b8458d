"""What stands in headers and leads nowhere: which file each name is to lead to, and of which nothing is known."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.chain.names import Reference, format_reference, plain_name
from chainlift.errors import ChainliftError, ImageError, InputError
from chainlift.lift.disk import Change
from chainlift.lift.forest.candidates import Candidate, Candidates
from chainlift.lift.forest.scan import scan
from chainlift.lift.neighbours.processes import identity_of
from chainlift.lift.record.lifts import is_lift_file
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import MAX_BACKING_NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chainlift.lift.forest.scan import Forest, Node


@dataclass(frozen=True)
class NewName:
    """One image whose header is to say another name."""

    #: The image, and both names.
    change: Change
    #: The file that the new name leads to.
    found: str
    #: Why it is taken to be the missing one, phrases.
    speaks_for: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class UnresolvedName:
    """One image whose backing file was not found."""

    #: Its path.
    image: str
    #: As it stands in the header.
    name: str
    #: Files of that name, those that fit first.
    candidates: list[Candidate]
    #: What to do, a phrase.
    advice: str


@dataclass(frozen=True)
class RelinkPlan:
    """What is to be written, and what nothing is known of."""

    #: The lowest image first.
    new_names: list[NewName]
    #: Images that keep the names that they have.
    unresolved: list[UnresolvedName]


def plan_relink(directories: Sequence[str | os.PathLike[str]], maps: Mapping[str, str]) -> RelinkPlan:
    """Look for every missing backing file below some directories.

    :param maps: a name as it stands in headers, the path or file name that it leads to, or a directory -> what has
        that place now.
    :raise ImageError: if one of the directories is none.
    :raise InputError: if a mapped name is named by nobody, or leads to what cannot be that layer.
    """
    forest = scan(directories)
    candidates = Candidates(forest)
    new_names: list[NewName] = []
    unresolved: list[UnresolvedName] = []
    used: set[str] = set()
    for node in sorted(forest.nodes.values(), key=lambda node: node.path):
        if node.trouble != "missing" or node.reference is None or node.pointer is None:
            continue
        mapped = _mapped(node, maps)
        if (advice := _why_unchanged(node)) is not None:
            unresolved.append(UnresolvedName(node.path, node.pointer.name, [], advice))
            continue
        if mapped is not None:
            used.add(mapped[0])
            chosen = candidates.judge(node, mapped[1])
            if not chosen.fits:
                why = "; ".join(chosen.speaks_against)
                raise InputError(f"cannot be what {node.path} names {node.pointer.name!r}: {why}", path=mapped[1])
        elif is_lift_file(node.reference.path):
            unresolved.append(
                UnresolvedName(node.path, node.pointer.name, [], "chainlift restore goes back to its layers")
            )
            continue
        else:
            found = candidates.of(node)
            fitting = [candidate for candidate in found if candidate.fits]
            if len(fitting) != 1:
                unresolved.append(UnresolvedName(node.path, node.pointer.name, found, _advice(node, fitting)))
                continue
            chosen = fitting[0]
        new_names.append(_new_name(node, chosen))
        _stand(forest, node, chosen)
    for name in maps.keys() - used:
        raise InputError("no image names it that misses it", path=name, hint="chainlift tree lists what is missing")
    return RelinkPlan(_lowest_first(forest, new_names), unresolved)


class UnfoundError(ImageError):
    """Some backing files were not found; nothing was written."""

    def __init__(self, what: str, *, path: Path, hint: str, plan: RelinkPlan) -> None:
        super().__init__(what, path=path, hint=hint)
        #: Which were not found, and which were.
        self.plan: RelinkPlan = plan


def _mapped(node: Node, maps: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the entry of a map that an image's missing file is under, and where it leads."""
    assert node.pointer is not None
    assert node.reference is not None
    path = os.path.abspath(node.reference.path)  # noqa: PTH100 - links in it stay
    for name in (node.pointer.name, node.reference.path, path, os.path.basename(path)):  # noqa: PTH119 - any bytes
        if name in maps:
            return name, maps[name]
    for old, new in maps.items():
        inside = path.removeprefix(f"{old.rstrip('/')}/")
        if inside != path and os.path.isdir(new):  # noqa: PTH112
            return old, os.path.join(new, inside)  # noqa: PTH118
    return None


def _why_unchanged(node: Node) -> str | None:
    """Say why an image's header cannot be changed, or need not be."""
    if node.encrypted:
        return "the image is encrypted, and no tool can change what it names: move the backing file back"
    try:
        open_chain(Reference(node.path, "qcow2", follows_header=False)).close()
    except ChainliftError as error:
        return f"the image itself cannot be read: {error.what}"
    return None


def _advice(node: Node, fitting: Sequence[Candidate]) -> str:
    assert node.reference is not None
    name = os.path.basename(node.reference.path)  # noqa: PTH119 - any bytes
    if fitting:
        return f"{len(fitting)} files may be it: say which with --map {name}=FILE"
    return f"if it was renamed, say so with --map {name}=FILE"


def _new_name(node: Node, found: Candidate) -> NewName:
    assert node.pointer is not None
    assert node.reference is not None
    path = os.path.abspath(found.path)  # noqa: PTH100 - links in it stay
    # Newer QEMUs want a format even where the header had none, on the way back, too.
    old = Pointer(node.pointer.name, node.pointer.format or found.format)
    if old.name.startswith("json:"):
        name = format_reference(replace(node.reference, path=path))
    elif old.name.startswith("/") or ":" in old.name.split("/", maxsplit=1)[0]:
        name = path
    else:
        # Names count from the directory of the image, wherever links to that lead.
        name = plain_name(os.path.relpath(os.path.realpath(path), os.path.realpath(os.path.dirname(node.path))))  # noqa: PTH120
    if len(os.fsencode(name)) > MAX_BACKING_NAME:
        raise InputError(f"its name in a header would have more than {MAX_BACKING_NAME} bytes", path=path)
    return NewName(Change(Path(node.path), old, Pointer(name, old.format)), path, found.speaks_for)


def _stand(forest: Forest, node: Node, found: Candidate) -> None:
    """Have the forest know of a new name, so that no other makes a loop with it."""
    other = forest.nodes.get(identity_of(os.stat(found.path)))  # noqa: PTH116 - any bytes
    if other is not None:
        node.below = other.identity


def _lowest_first(forest: Forest, new_names: Iterable[NewName]) -> list[NewName]:
    depths: dict[str, int] = {}
    for node in forest.nodes.values():
        current, depth = node, 0
        while current.below is not None:
            current, depth = forest.nodes[current.below], depth + 1
        depths[node.path] = depth
    return sorted(new_names, key=lambda one: (depths[str(one.change.owner)], str(one.change.owner)))
