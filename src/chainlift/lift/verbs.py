"""What can be done to a disk: each verb once, whoever holds the disk.

A verb checks, prepares, compares, checks again, switches and settles. Before the switch the record says that the lift
may be used; whatever fails before that leaves nothing behind, and after it what is in use is asked of the disk.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import AnswerIsNo, ChainliftError, ImageError, InputError
from chainlift.host import interrupts
from chainlift.host.log import logged_verb
from chainlift.lift.build.workspace import Workspace
from chainlift.lift.delete import Deletion, Kept, delete_layers, finish_deletion, plan_deletion
from chainlift.lift.find import FoundLift, find_lifts, merged
from chainlift.lift.neighbours.carried import carry_bitmaps, has_bitmaps
from chainlift.lift.prepare import prepare_index, prepare_squash
from chainlift.lift.record.lifts import find_lift
from chainlift.lift.record.manifest import SUFFIX
from chainlift.lift.record.pointer import open_pointer
from chainlift.lift.tidy import Tidied, remove_leftovers, remove_lifts, require_removable
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from chainlift.chain import Chain
    from chainlift.lift.disk import Change, Disk
    from chainlift.lift.prepare import Prepared
    from chainlift.lift.record.manifest import Manifest, Pointer

#: How much an index under a running VM may copy to have few extents.
GENTLE_COPY_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Lifted:
    """What a lift did."""

    #: The lift's record.
    manifest: Manifest
    #: Layers that were deleted and kept, where that was asked for.
    deletion: Deletion | None = None
    #: Lifts that this one replaces: removed where that was asked for, else kept.
    tidied: Tidied = field(default_factory=Tidied)


@dataclass(frozen=True)
class Restored:
    """What restoring did, or would do."""

    #: The lifts that were taken out, the uppermost first.
    found: list[FoundLift]
    #: What became of their files.
    tidied: Tidied = field(default_factory=Tidied)
    #: What an operator should know.
    warnings: list[str] = field(default_factory=list)


@logged_verb
def index(
    disk: Disk,
    *,
    copy_budget_bytes: int | None = None,
    most_extents: int | None = None,
    drop_bitmaps: bool = False,
    content: bool = False,
    clean: bool = False,
    parent: Path | None = None,
    search: Sequence[Path] = (),
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Lifted:
    """Build the index of everything under a disk's active layer, and switch the disk to it.

    >>> with open_disk("disk.qcow2") as disk:
    ...     done = index(disk)
    >>> done.manifest.kind, done.manifest.extents
    ('index', 5)

    :param disk: from :func:`~chainlift.lift.open.open_disk`.
    :param copy_budget_bytes: how much of the smallest layers may be copied, so that fewer extents remain. None: nothing
        or, where somebody waits for the switch, what it takes to have few, up to 1 GiB.
    :param most_extents: copy no more than it takes to be left with so many.
    :param drop_bitmaps: go on although layers have persistent bitmaps, which cannot be reached any more afterwards.
    :param content: compare everything before the switch, not only a sample.
    :param clean: remove the lifts that this one replaces, where nobody else needs them.
    :param parent: the directory in which ``IMAGE.lift/`` is made; None: the image's.
    :param search: directories in which other images are looked for, besides the image's.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far, then with those compared.
    :return: the lift's record, and what became of lifts that it replaces. The disk stands on the index.
    :raise InputError: if the disk cannot be lifted; nothing was touched.
    :raise AnswerIsNo: if the comparison differs; nothing was switched, and what was built is removed.
    :raise OperationError: if something failed; everything is as before.
    :raise UnknownStateError: if it is not known what is left; the text says what is known, and what to do.
    """
    disk.check(for_index=True)
    if copy_budget_bytes is None:
        most_extents = disk.most_extents if most_extents is None else most_extents
        copy_budget_bytes = 0 if most_extents is None else GENTLE_COPY_BYTES
    prepare = prepare_index(
        disk.image,
        current=_current(disk),
        parent=parent,
        drop_bitmaps=drop_bitmaps,
        copy_budget_bytes=copy_budget_bytes,
        most_extents=most_extents,
        rate_bytes_per_s=rate_bytes_per_s,
        progress=progress,
    )
    with _in_use(disk, prepare, content=content, progress=progress) as prepared:
        return Lifted(prepared.manifest, tidied=_settle(disk, prepared, clean=clean, search=search))


@logged_verb
def squash(
    disk: Disk,
    *,
    onto: str | os.PathLike[str] | None = None,
    drop_bitmaps: bool = False,
    delete_layers_in: Sequence[Path] | None = None,
    content: bool = False,
    clean: bool = False,
    parent: Path | None = None,
    search: Sequence[Path] = (),
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Lifted:
    """Write everything between a disk's active layer and a layer below as one layer, and switch the disk to it.

    Persistent bitmaps of the layers that are replaced are carried over, where who holds the disk will find them there.

    >>> with open_disk("disk.qcow2") as disk:
    ...     done = squash(disk)
    >>> done.manifest.kind, len(done.manifest.layers), done.deletion
    ('squash', 3, None)

    :param onto: path of the layer that the new one stands on; None: the base.
    :param drop_bitmaps: go on without those that cannot be carried over.
    :param delete_layers_in: delete the replaced layers, after a comparison of every byte, where nobody needs them;
        these directories are searched for other images. Or what a run that was killed has left of them.
    :return: the lift's record, what was deleted and kept of the layers, and what became of lifts that it replaces. The
        disk stands on the squash.

    The other parameters and errors are those of :func:`index`.
    """
    disk.check()
    if delete_layers_in is not None and (finished := finish_deletion(disk.image, _current(disk), delete_layers_in)):
        return Lifted(*finished)
    deletes = delete_layers_in is not None
    with disk.set_aside():
        prepare = prepare_squash(
            disk.image,
            current=_current(disk),
            parent=parent,
            absolute_names=disk.needs_absolute_names,
            onto=onto,
            drop_bitmaps=drop_bitmaps or disk.keeps_bitmaps,
            finish=None if drop_bitmaps else partial(_carry_bitmaps, disk),
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        with _in_use(disk, prepare, content=content or deletes, rate=rate_bytes_per_s, progress=progress) as prepared:
            # Lifts that point into layers that are deleted would be of no use to anybody.
            tidied = _settle(disk, prepared, clean=clean or deletes, search=[*search, *(delete_layers_in or ())])
            deletion = None
            if delete_layers_in is not None:
                deletion = _delete(disk, prepared, delete_layers_in)
            return Lifted(prepared.manifest, deletion, tidied)


@logged_verb
def restore(
    disk: Disk,
    *,
    only: Collection[str] = (),
    clean: bool = False,
    dry_run: bool = False,
    content: bool = False,
    search: Sequence[Path] = (),
    progress: Callable[[int], None] | None = None,
) -> Restored:
    """Take lifts out of a disk's chain, wherever they are: every image names what it named before again.

    >>> with open_disk("disk.qcow2") as disk:
    ...     lifted = index(disk)
    ...     done = restore(disk, clean=True)
    >>> [(found.lift.manifest.kind, found.change.new.name) for found in done.found]
    [('index', 'layer3.qcow2')]

    :param disk: from :func:`~chainlift.lift.open.open_disk`.
    :param only: these lifts, each named by its file or by the image that stands on it; empty: all.
    :param clean: remove their files, too, where nobody else needs them.
    :param dry_run: only say which.
    :param content: compare everything before the switch, not only a sample.
    :param search: directories in which other images are looked for, besides the image's.
    :param progress: called with the bytes compared so far.
    :return: the lifts, and what became of their files. What failed after the switch is told there, and changes nothing.
    :raise ImageError: if the disk stands on no lift, or there is no way back; nothing was touched.
    :raise InputError: if one of ``only`` is no lift of the chain, or the disk must not be switched; nothing was
        touched.
    :raise AnswerIsNo: if the original chain reads differently; nothing was switched.
    :raise OperationError: if something failed; everything is as before.
    :raise UnknownStateError: if it is not known what is left; the text says what is known, and what to do.
    """
    found = find_lifts(disk)
    if not found:
        if clean and not dry_run and (tidied := _remove_left(disk, search)) != Tidied():
            return Restored([], tidied)
        raise _not_lifted(disk)
    if only:
        found = _chosen(found, only)
    if dry_run:
        return Restored(found)
    disk.check()
    if clean:
        require_removable(entry.lift.file for entry in found)
    changes = merged(found)
    _check_index_below(disk, changes)
    uncertain = {entry.change.owner for entry in found if not entry.is_certain}
    try:
        for change in changes:
            disk.compare([change], content=content or change.owner in uncertain, progress=progress)
    except AnswerIsNo as error:
        hint = "a layer was changed or replaced since; chainlift verify says which"
        raise AnswerIsNo(error.what, path=error.path, hint=hint) from error
    disk.check()
    with interrupts.put_off(), disk.left_alone() as warnings:
        disk.switch(changes)
        interrupts.too_late()
    tidied = Tidied(kept=dict.fromkeys(disk.superseded(), "it was not asked for"))
    if clean:
        # What fails from here on is told, and changes nothing of the switch.
        files = [file for entry in found for file in (entry.lift.file, *map(Path, entry.lift.manifest.supersedes))]
        tidied = _remove(files, disk, search)
    return Restored(found, tidied, warnings)


def _current(disk: Disk) -> Pointer | None:
    standing = disk.standing()
    return standing[0].pointer if standing else None


@contextmanager
def _in_use(
    disk: Disk,
    prepare: AbstractContextManager[Prepared],
    *,
    content: bool,
    rate: int | None = None,
    progress: Callable[[int], None] | None,
) -> Iterator[Prepared]:
    """Build a lift and switch the disk to it; the block runs while the layers and the directory are still held."""
    with prepare as prepared:
        changes = [prepared.change]
        disk.compare(changes, content=content, progress=progress)
        # Building may have taken minutes: what was allowed before must still be.
        is_index = prepared.manifest.kind == "index"
        disk.check(for_index=is_index)
        if not is_index:
            _check_index_below(disk, changes, hidden_by=prepared.manifest)
        try:
            with interrupts.put_off():
                prepared.mark_used()
                disk.switch(changes, rate_bytes_per_s=rate)
                interrupts.too_late()
        except BaseException:
            if not _may_have_switched(disk, changes):
                # The first error is the one to tell.
                with suppress(ChainliftError, OSError):
                    prepared.discard()
            raise
        disk.lifted_again()
        yield prepared


def _check_index_below(disk: Disk, changes: Sequence[Change], *, hidden_by: Manifest | None = None) -> None:
    """Check as for an index where one would come to be below the disk: of a layer that a lift hides so far.

    :param hidden_by: the squash that the disk is to be switched to; None: to its own layers.
    :raise InputError: naming the layer.
    """
    for change in changes:
        if not _indexed_below(change.owner, change.new) or _indexed_below(change.owner, change.readable):
            continue
        try:
            disk.check(for_index=True)
        except InputError as error:
            indexed = _indexed_below(change.owner, change.new if hidden_by is None else hidden_by.original)
            hint = f"take the index below it out first: chainlift restore {indexed}"
            raise type(error)(error.what, path=error.path, hint=hint) from error


def _indexed_below(image: Path, pointer: Pointer) -> str | None:
    """Return the uppermost image of a chain that stands on an index, None if none does."""
    with open_pointer(image, pointer) as chain:
        for above, layer in zip((str(image), *(layer.path for layer in chain.layers)), chain.layers, strict=False):
            if layer.extents:
                return above
    return None


def _may_have_switched(disk: Disk, changes: Sequence[Change]) -> bool:
    try:
        return disk.has_switched(changes)
    except Exception:  # noqa: BLE001 - whatever it is: nobody could tell us
        return True


def _settle(disk: Disk, prepared: Prepared, *, clean: bool, search: Sequence[Path]) -> Tidied:
    files = [Path(name) for name in prepared.manifest.supersedes]
    if not clean:
        there = [*files, *disk.superseded()]
        return Tidied(kept={path: "it was not asked for" for path in there if path.exists()})
    return _remove(files, disk, search, held=prepared.workspace)


def _remove(files: Sequence[Path], disk: Disk, search: Sequence[Path], *, held: Workspace | None = None) -> Tidied:
    """Remove lifts after a switch, which has been made whatever happens here: what fails is told of the file."""
    try:
        return remove_lifts(files, image=disk.image, overlays=disk.superseded(), search=search, held=held)
    except (ChainliftError, OSError) as error:
        there = [file for file in files if file.exists() or file.with_suffix(SUFFIX).exists()]
        return Tidied(kept=dict.fromkeys(there, f"not removed: {error}"))


def _delete(disk: Disk, prepared: Prepared, search: Sequence[Path]) -> Deletion:
    """Delete the layers that a squash has replaced; the switch has been made whatever happens here."""
    try:
        deletion = plan_deletion(disk.image, prepared.manifest, search)
        delete_layers(prepared, deletion)
    except (ChainliftError, OSError) as error:
        layers = [layer.identity.path for layer in prepared.manifest.layers]
        kept = [Kept(path, f"not deleted: {error}") for path in layers if Path(path).exists()]
        return Deletion([], kept, [], "")
    return deletion


def _carry_bitmaps(disk: Disk, chain: Chain, onto: int, target: Path) -> None:
    layers = [layer for layer in chain.layers[:onto] if layer.image is not None and layer.extents == 0]
    if disk.keeps_bitmaps and any(has_bitmaps(layer) for layer in layers):
        carry_bitmaps(disk.qemu or find_qemu(need=["storage-daemon"]), layers, target)


def _remove_left(disk: Disk, search: Sequence[Path]) -> Tidied:
    """Remove lifts that lie beside an image which stands on none of them, where nobody needs them."""
    workspace = Workspace(disk.image)
    if not workspace.path.is_dir():
        return Tidied()
    named = [workspace.named_file(stem) for stem in workspace.lifts()]
    files = [file for file in named if file is not None]
    require_removable(files)
    before = list(workspace.path.iterdir()) or [workspace.path]
    tidied = _remove(files, disk, search)
    remove_leftovers(disk.image)
    return replace(tidied, removed=[path for path in before if not path.exists()])


def _not_lifted(disk: Disk) -> ImageError:
    pointer = _current(disk)
    lift = None if pointer is None else find_lift(disk.image, pointer)
    if lift is not None and not lift.manifest.deleted:
        return ImageError(
            "is not lifted any more: its squash was written to since, and is a layer like any other",
            path=disk.image,
            hint="what was merged into it is in none of the layers that it was made of",
        )
    if lift is not None:
        return ImageError(
            "its original layers were deleted when it was squashed", path=disk.image, hint="there is no way back"
        )
    return ImageError("is not lifted", path=disk.image, hint="there is nothing to restore")


def _chosen(found: Sequence[FoundLift], only: Collection[str]) -> list[FoundLift]:
    chosen = []
    wanted = {os.path.realpath(name): name for name in only}
    for entry in found:
        names = {os.path.realpath(entry.lift.file), os.path.realpath(entry.change.owner)}
        if names & wanted.keys():
            chosen.append(entry)
            for name in names:
                wanted.pop(name, None)
    if wanted:
        known = ", ".join(str(entry.lift.file) for entry in found)
        raise InputError("is no lift of this chain", path=next(iter(wanted.values())), hint=f"there are: {known}")
    return chosen
