"""Names in headers that lead nowhere after a move, written anew: all of them or none, with a way back.

What is to be written is in a journal before the first header is touched. Each header is changed by QEMU's own tool in
one write under its locks; then every chain is opened, by us and by stock QEMU, and if one does not open all names are
what they were. Whoever is killed leaves the journal: the next run goes on where it ended, and ``--undo`` goes back.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.errors import ChainliftError, ImageError, InputError, OperationError, UnknownStateError
from chainlift.host import interrupts
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.build.workspace import alone_in
from chainlift.lift.compare.stock import why_not_open
from chainlift.lift.disk import Change
from chainlift.lift.domain.moved import say_moved
from chainlift.lift.forest.scan import scan
from chainlift.lift.neighbours.locks import is_written
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.neighbours.processes import identity_of
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import led_to
from chainlift.lift.relink.journal import (
    applied_changes,
    forget_journal,
    name_in,
    new_journal,
    read_journal,
    unfinished_journal,
    write_journal,
)
from chainlift.lift.relink.plan import RelinkPlan, UnfoundError, plan_relink
from chainlift.qcow2.layout import CryptMethod
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from chainlift.lift.relink.plan import NewName
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Relinked:
    """What was written, or would be."""

    #: Which names; and those of which nothing is known.
    plan: RelinkPlan
    #: The lists that undo it: of what a run that was killed has left, and of this one; none where nothing was written.
    journals: list[Path] = field(default_factory=list)
    #: Names in the list of a run that was killed.
    finished: int = 0
    #: What an operator should know: of libvirt's definitions.
    warnings: list[str] = field(default_factory=list)


def relink(
    directories: Sequence[str | os.PathLike[str]],
    *,
    maps: Mapping[str, str] | None = None,
    dry_run: bool = False,
    partly: bool = False,
    force: bool = False,
    qemu: Qemu | None = None,
) -> Relinked:
    """Find the backing files of images that were moved, and write their names anew: all of them, or none.

    A missing file is looked for by its name; it is taken where just one file of that name can be that layer. Relative
    names stay relative. Every chain is opened by QEMU afterwards, and a list is kept that undoes it.

    >>> Path("elsewhere").mkdir()
    >>> moved = Path("layer0.qcow2").rename("elsewhere/layer0.qcow2")
    >>> done = relink(["."])
    >>> [(new.change.owner.name, new.change.new.name) for new in done.plan.new_names]
    [('layer1.qcow2', 'elsewhere/layer0.qcow2')]
    >>> [path.name for path in done.journals]
    ['chainlift-relink-1.json']

    :param directories: where the images are, and their backing files; the list is kept in the first.
    :param maps: what was renamed: a name as it stands in headers, the path or file name that it leads to, or a
        directory; each with what has that place now.
    :param dry_run: only say which names.
    :param partly: also where some are not found.
    :param force: also where a manager of virtual machines keeps a record of a chain.
    :param qemu: whose tools write headers and open the chains; None: the host's.
    :return: the names, and what undoes them.
    :raise UnfoundError: if some are not found; nothing was touched.
    :raise InputError: if an image is in use, or cannot be changed, or a map is of no use; nothing was touched.
    :raise OperationError: if a chain does not open with the new names; all are as before.
    :raise UnknownStateError: if they could not all be undone; the text names the list that does it.
    """
    if not directories:
        raise InputError("no directory is named")
    if dry_run:
        plan = plan_relink(directories, maps or {})
        return Relinked(plan, warnings=_say_definitions(plan, directories))
    qemu = qemu or find_qemu(need=["img", "storage-daemon"])
    place = Path(os.path.realpath(directories[0]))
    with alone_in([place]):
        journals, finished, warnings = [], 0, list[str]()
        if (journal := unfinished_journal(place)) is not None and (finished := _finish(journal, qemu, warnings)):
            journals.append(journal)
        plan = plan_relink(directories, maps or {})
        if plan.unresolved and not partly:
            count = len(plan.unresolved)
            what = f"{count} backing file{'s were' if count > 1 else ' was'} not found: nothing was written"
            hint = "name them with --map OLD=NEW, or write the others with --partly"
            raise UnfoundError(what, path=place, hint=hint, plan=plan)
        _check(plan.new_names, force=force)
        if plan.new_names:
            journals.append(new_journal(place))
            _carry_out(journals[-1], [], [one.change for one in plan.new_names], qemu, warnings)
    return Relinked(plan, journals, finished, warnings + _say_definitions(plan, directories))


def _say_definitions(plan: RelinkPlan, directories: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Say which of libvirt's definitions name what was moved, and what changes them."""
    found = {_led_to(one.change): one.found for one in plan.new_names}
    return say_moved(found, [node.path for node in scan(directories).nodes.values()])


def _led_to(change: Change) -> str:
    return os.path.abspath(led_to(change.owner, change.old))  # noqa: PTH100 - links in it stay


def _finish(journal: Path, qemu: Qemu, warnings: list[str]) -> int:
    """Do what a run that was killed has left undone; return how many names its list has."""
    changes = read_journal(journal)
    applied = applied_changes(changes)
    pending = [change for change in changes if change not in applied and name_in(change.owner) == change.old.name]
    if not applied and not pending:
        forget_journal(journal)
        return 0
    _carry_out(journal, applied, pending, qemu, warnings)
    return len(applied) + len(pending)


def _carry_out(
    journal: Path, applied: Sequence[Change], pending: Sequence[Change], qemu: Qemu, warnings: list[str]
) -> None:
    """Write names, and look whether every chain opens; if not, write the old ones.

    :param applied: what a run that was killed has written.
    :param warnings: takes what an operator should know.
    """
    changes = [*applied, *pending]
    disk = DiskAtRest(changes[0].owner, qemu, force=True)
    with interrupts.put_off():
        try:
            write_journal(journal, changes, "begun")
            disk.switch(pending)
        except UnknownStateError:
            raise
        except BaseException:
            if not applied:
                forget_journal(journal)
            raise
        try:
            _require_open(qemu, changes)
        except BaseException:
            _undo(disk, changes, journal)
            raise
        interrupts.too_late()  # and stays so: whoever is told that he interrupted takes it that nothing was written
        warnings += disk.left
        write_journal(journal, changes, "done")


def undo_relink(journal: str | os.PathLike[str], *, qemu: Qemu | None = None) -> list[Change]:
    """Write the names that headers had before a :func:`relink`: all of them, or none.

    >>> moved = Path("layer0.qcow2").rename("base.qcow2")
    >>> done = relink(["."], maps={"layer0.qcow2": "base.qcow2"})
    >>> [(change.owner.name, change.new.name, change.old.name) for change in undo_relink(done.journals[0])]
    [('layer1.qcow2', 'base.qcow2', 'layer0.qcow2')]

    :param journal: the list that it has kept.
    :param qemu: whose tools write headers; None: the host's.
    :return: what was changed back: each with the name that is there again as ``old``.
    :raise InputError: if it is no journal, or an image names something else meanwhile; nothing was touched.
    :raise OperationError: if a header could not be changed; all are as they were before.
    """
    journal = Path(journal)
    qemu = qemu or find_qemu(need=["img"])
    with alone_in([journal.absolute().parent]), interrupts.put_off():
        changes = read_journal(journal)
        applied = applied_changes(changes)
        for change in changes:
            if change not in applied and name_in(change.owner) != change.old.name:
                raise InputError("names something else since then", path=change.owner, hint="look at it first")
        if applied:
            DiskAtRest(applied[0].owner, qemu, force=True).switch(_backwards(applied))
        interrupts.too_late()
        write_journal(journal, changes, "undone")
    return applied


def _check(new_names: Iterable[NewName], *, force: bool) -> None:
    """Refuse what must not be changed, or stood on; who has an image open is asked by the switch.

    :raise ImageError: naming it.
    """
    for one in new_names:
        manager = None if force else manager_of(one.change.owner)
        if manager is not None:
            hint = f"{manager.advice}; --force writes the name all the same"
            raise ImageError(str(manager), path=one.change.owner, hint=hint)
        if is_written(Path(one.found)):
            raise ImageError(
                f"is open for writing, so {one.change.owner} cannot stand on it", path=one.found, hint="stop it first"
            )


def _require_open(qemu: Qemu, changes: Sequence[Change]) -> None:
    """Open every chain that begins with an image that was changed.

    :raise OperationError: if one does not open.
    """
    below: set[str] = set()
    for change in reversed(changes):  # the uppermost first: below it the others are opened, too
        if os.path.realpath(change.owner) in below:
            continue
        try:
            with open_chain(os.fspath(change.owner)) as chain:
                below |= {os.path.realpath(layer.path) for layer in chain.layers}
                is_plain = all(
                    layer.image is None or layer.image.header.crypt_method is CryptMethod.NONE for layer in chain.layers
                )
        except ChainliftError as error:
            if _ends_elsewhere(change.owner):
                continue
            what = f"does not open with the new name: {error}; all names are as before"
            raise OperationError(what, path=change.owner) from error
        if is_plain:
            top = Pointer(os.path.abspath(change.owner), "qcow2")  # noqa: PTH100 - links in it stay
            why = why_not_open(qemu, change.owner, top)
            if why is not None:
                what = f"is not opened by QEMU with the new name: {why}; all names are as before"
                raise OperationError(what, path=change.owner)


def _ends_elsewhere(image: Path) -> bool:
    """Whether a chain ends further down in what nobody has found, or in what is no file here."""
    forest = scan([image.parent])
    start = node = forest.nodes[identity_of(image.stat())]
    while node.below is not None:
        node = forest.nodes[node.below]
    return node is not start and node.trouble in ("missing", "foreign")


def _undo(disk: DiskAtRest, changes: Sequence[Change], journal: Path) -> None:
    try:
        disk.switch(_backwards(changes))
    except ChainliftError as error:
        raise UnknownStateError(
            f"a chain does not open with the new names, and they could not be undone ({error})",
            path=changes[0].owner,
            hint=f"chainlift relink --undo {journal}",
        ) from error
    forget_journal(journal)


def _backwards(changes: Sequence[Change]) -> list[Change]:
    return [Change(change.owner, change.new, change.old) for change in reversed(changes)]
