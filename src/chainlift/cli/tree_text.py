"""How a forest of images looks on a terminal of 60 to 160 columns."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from chainlift.cli.fitted import shorten, wrapped
from chainlift.errors import one_line
from chainlift.lift.neighbours.processes import describe_holders
from chainlift.units import counted, format_age, format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.lift.forest.scan import Forest, Node
    from chainlift.lift.forest.tree import Tree, TreeEntry

#: Runs of up to so many snapshots are listed whole; of longer ones the ends, and what is to be said of others.
_LISTED_WHOLE: Final = 8
_ENDS: Final = 3
_SIZES: Final = 11
_AGE: Final = 8
#: Columns for names and what stands before them, at least; and for what stands before the longest.
_LEAST: Final = 42
_DEPTH: Final = 12
_CANDIDATES: Final = 3
_DRAWN: Final = ("├─ ", "└─ ", "│  ", "   ")
_PLAIN: Final = ("|- ", "`- ", "|  ", "   ")


@dataclass(frozen=True)
class _Row:
    """A line: an image, or several of a run that are not listed."""

    #: What stands before the name.
    prefix: str
    #: What stands before lines that belong to it.
    inner: str
    entries: Sequence[TreeEntry]


def lines(tree: Tree, width: int, *, every_image: bool, can_draw: bool) -> Iterator[str]:
    """Yield the lines.

    :param width: columns.
    :param every_image: list all of a long chain.
    :param can_draw: whether the terminal has box characters.
    """
    forest = tree.forest
    now = time.time()
    yield from _head(tree, width)
    if forest.nodes:
        longest = max(len(_name(node.path, forest)) for node in forest.nodes.values())
        width = min(width, max(_LEAST, longest + _DEPTH) + 2 * _SIZES + _AGE)
        room = width - 2 * _SIZES - _AGE
        yield ""
        yield click.style(f"{'image':<{room}}{'on disk':>{_SIZES}}{'frees':>{_SIZES}}{'written':>{_AGE}}", bold=True)
        for row in _rows(tree, width // 3, every_image=every_image, marks=_DRAWN if can_draw else _PLAIN):
            yield from _lines_of(row, forest, width, now)
    for path, why in sorted(forest.unreadable.items()):
        yield from wrapped(click.style("x ", fg="red", bold=True), f"{path}: {why}", width)


def _head(tree: Tree, width: int) -> Iterator[str]:
    forest = tree.forest
    nodes = forest.nodes.values()
    trees = sum(1 for node in nodes if node.below is None)
    yield from (click.style(one_line(directory), bold=True) for directory in forest.directories)
    parts = [f"{counted(len(nodes), 'image')} in {counted(trees, 'tree')}"]
    parts += [f"on disk {format_bytes(sum(node.disk_bytes for node in nodes))}"]
    shared = sum(1 for above in forest.above.values() if len(above) > 1)
    lifts = sum(1 for node in nodes if node.lift)
    broken = sum(1 for node in nodes if node.trouble)
    parts += [f"{counted(shared, 'image')} shared"] * bool(shared) + [counted(lifts, "lift")] * bool(lifts)
    parts += [f"{broken} broken"] * bool(broken) + [f"{len(forest.unreadable)} unreadable"] * bool(forest.unreadable)
    yield from wrapped("  ", ", ".join(parts), width)
    if not tree.open_files.can_see_all:
        yield click.style("  who has an image open is known of your own processes only", dim=True)


def _rows(tree: Tree, deepest: int, *, every_image: bool, marks: tuple[str, str, str, str]) -> Iterator[_Row]:
    """Yield the lines of all trees. A snapshot that stands alone on another is under it, branches are indented."""
    tee, last, bar, blank = marks
    # Where a run begins, what stands before its first line, and before all of the others.
    waiting = [(root, "", blank[1:]) for root in tree.forest.roots()[::-1]]
    while waiting:
        node, first, inner = waiting.pop()
        run = [node]
        above = tree.forest.standing_on(node)
        while len(above) == 1:
            run.append(above[0])
            above = tree.forest.standing_on(above[0])
        for number, entries in enumerate(_grouped(tree, run, every_image=every_image)):
            is_top = not above and entries[-1].path == run[-1].path
            yield _Row(
                inner if number else first, inner + (blank if is_top else bar if len(above) > 1 else blank), entries
            )
        deeper = len(inner) < deepest  # what is deeper still is not indented any more
        branches = [
            (one, inner + mark * deeper, inner + rest * deeper)
            for one, mark, rest in zip(
                above,
                [tee] * (len(above) - 1) + [last],
                [bar] * (len(above) - 1) + [blank],
                strict=False,
            )
        ]
        waiting += branches[::-1]


def _grouped(tree: Tree, run: Sequence[Node], *, every_image: bool) -> Iterator[list[TreeEntry]]:
    """Yield the images of a run, one at a time or several that have nothing special."""
    hidden: list[TreeEntry] = []
    for number, node in enumerate(run):
        entry = tree.entry(node)
        is_end = number < _ENDS or number >= len(run) - _ENDS
        if every_image or len(run) <= _LISTED_WHOLE or is_end or _notes(entry) or entry.broken:
            if hidden:
                yield hidden
                hidden = []
            yield [entry]
        else:
            hidden.append(entry)
    if hidden:
        yield hidden


def _lines_of(row: _Row, forest: Forest, width: int, now: float) -> Iterator[str]:
    room = width - 2 * _SIZES - _AGE
    entries = row.entries
    disk = sum(entry.disk_bytes for entry in entries)
    known = [entry.frees_bytes for entry in entries if entry.frees_bytes is not None]
    frees = _bytes(sum(known)) if known else "?"
    newest = max(entry.modified_s for entry in entries)
    columns = f"{_bytes(disk):>{_SIZES}}{frees:>{_SIZES}}{format_age(now - newest):>{_AGE}}"
    if len(entries) > 1:
        text = shorten(f"{row.prefix}... {counted(len(entries), 'snapshot')}", room)
        yield click.style(f"{text:<{room}}{columns}", dim=True)
        return
    entry = entries[0]
    name = one_line(_name(entry.path, forest))
    name = shorten(name, max(8, room - len(row.prefix) - 1))
    yield f"{row.prefix}{name}{' ' * max(1, room - len(row.prefix) - len(name))}{columns}"
    notes = "; ".join(_notes(entry))
    if notes:
        yield from wrapped(row.inner, notes, width, dim=True)
    if entry.broken is not None:
        yield from _broken(entry, row.inner, width)


def _broken(entry: TreeEntry, inner: str, width: int) -> Iterator[str]:
    broken = entry.broken
    assert broken is not None
    yield from wrapped(inner + click.style("x ", fg="red", bold=True), broken.what, width)
    for candidate in broken.candidates[:_CANDIDATES]:
        sign = "it may be" if candidate.fits else "it is not"
        why = candidate.speaks_for if candidate.fits else candidate.speaks_against
        yield from wrapped(f"{inner}  ", f"{sign} {candidate.path}: {'; '.join(why)}", width)
    if broken.advice is not None:
        yield from wrapped(f"{inner}  ", broken.advice, width)


def _notes(entry: TreeEntry) -> list[str]:
    notes = []
    # Who has an image open has all below it open, too.
    if entry.holders and not entry.is_held_above:
        notes.append(f"in use: {describe_holders(entry.holders)}")
    if entry.lift == "index":
        notes.append(f"an index that points into {counted(entry.files_pointed_into, 'file')}")
    elif entry.lift == "squash":
        notes.append("a squash")
    if entry.lift and not entry.images_above:
        notes.append("nobody here stands on it")
    if entry.internal_snapshots:
        notes.append(counted(entry.internal_snapshots, "internal snapshot"))
    if entry.encrypted:
        notes.append("encrypted")
    if entry.is_outside:
        notes.append("in none of the directories")
    return notes


def _name(path: str, forest: Forest) -> str:
    # Below what all of the directories have in common; anywhere else the whole path.
    common = os.path.commonpath(forest.directories).rstrip("/") + "/"
    return path.removeprefix(common) if common != "/" else path


def _bytes(count: int) -> str:
    return format_bytes(count) if count else "-"
