"""``prune`` and ``drop``: snapshots go, and nothing that stays reads other bytes.

What is seen of the layers that go is merged into the next layer above that stays. That one is written anew beside
itself, compared through stock QEMU, and takes its own place in one rename: its data and what it stands on change at
once, and whoever names it reads the same before and after. Only then, when all who may need them have been asked once
more, the layers that go are deleted.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.errors import ImageError, InputError, OperationError
from chainlift.host import interrupts
from chainlift.host.log import logged_verb
from chainlift.lift.build.replacement import Merge, measure_merge
from chainlift.lift.build.workspace import alone_in, failed
from chainlift.lift.neighbours.processes import identity_of
from chainlift.lift.prune.choose import Choice, Fate, files_of_layer, layer_time_s, require_prunable
from chainlift.lift.prune.journal import Journal
from chainlift.lift.prune.means import Means, as_many_as_fit
from chainlift.lift.prune.work import Work, finish
from chainlift.lift.record.pointer import index_descriptor
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chainlift.chain import Chain
    from chainlift.lift.disk import Disk
    from chainlift.lift.prune.retention import Retention


@dataclass
class Pruned:
    """What was done, or would be."""

    #: The disk's active layer, by the name that it has afterwards.
    image: Path
    #: What becomes of each layer, the image first, the base last.
    fates: list[Fate]
    #: Layers that are deleted (or would be), and their data files; the uppermost first.
    deleted: list[Path] = field(default_factory=list)
    #: Layers that nobody stands on any more and that stay all the same, each with a phrase.
    left: dict[Path, str] = field(default_factory=dict)
    #: Layers that are written anew.
    rewritten: list[Path] = field(default_factory=list)
    #: What was copied into them.
    copied_bytes: int = 0
    #: Shared by the file system instead.
    cloned_bytes: int = 0
    #: What the file system gets back, as its files are counted; with shared blocks it may be less.
    freed_bytes: int = 0
    #: How long it has taken; of a dry run an estimate, None where the copy rate could not be measured.
    seconds: float | None = None
    #: Where others were looked for who may need the layers.
    searched: str = ""


@logged_verb
def prune(
    disk: Disk,
    retention: Retention,
    *,
    keep: Sequence[str | os.PathLike[str]] = (),
    only: str | None = None,
    search: Sequence[Path] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Pruned:
    """Delete every snapshot of a disk's chain that no rule keeps. The image and its base always stay.

    >>> with open_disk("disk.qcow2") as disk:
    ...     done = prune(disk, Retention(last=1), dry_run=True)
    >>> [path.name for path in done.deleted]
    ['layer2.qcow2', 'layer1.qcow2']

    :param disk: from :func:`~chainlift.lift.open.open_disk`.
    :param retention: the rules.
    :param keep: layers that stay in any case, by their paths or the names of their files.
    :param only: a pattern for names of files, as a shell has them: the rules are for these, and all others stay.
    :param search: directories in which other images are looked for, besides the image's; a layer elsewhere stays.
    :param force: also where a manager keeps its own record of the chain.
    :param dry_run: only say what would be done.
    :param progress: called with the bytes copied so far, then with those compared, for each layer that is written anew.
    :return: what became of each layer.
    :raise InputError: if nothing is to be kept, a layer is none of the chain, or the chain must not be changed; nothing
        was touched.
    :raise AnswerIsNo: if what was written reads differently; nothing was changed.
    :raise OperationError: if something failed; everything reads as before, and the text says what had been deleted.
    :raise UnknownStateError: if it is not known what is left; the text says what is known, and what to do.
    """
    if retention.keeps_nothing and not keep:
        raise InputError("nothing says what is to be kept", path=disk.image, hint="--keep-last 24, say")

    def wanted(chain: Chain) -> dict[int, str]:
        return _kept(chain, retention, only) | {chain.find_layer(name): "asked for" for name in keep}

    return _thin_out(disk, wanted, search=search, force=force, dry_run=dry_run, strict=False, progress=progress)


def unwanted(chain: Chain, retention: Retention, only: str | None = None) -> list[Path]:
    """Return the layers that :func:`prune` would delete of a running disk's chain if nobody needed them.

    The newest below the active layer is not one of them. Only headers are read.
    """
    kept = _kept(chain, retention, only)
    return [Path(chain.layers[number].path) for number in range(2, len(chain.layers) - 1) if number not in kept]


def _kept(chain: Chain, retention: Retention, only: str | None) -> dict[int, str]:
    """Return the layers that rules keep, or are not for, each with the reason."""
    inner = range(1, len(chain.layers) - 1)
    names = {number: os.path.basename(chain.layers[number].path) for number in inner}  # noqa: PTH119
    candidates = [number for number in inner if only is None or fnmatchcase(names[number], only)]
    kept = retention.kept([layer_time_s(chain.layers[number]) for number in candidates])
    found = {number: f"its name is not {only}" for number in inner if number not in candidates}
    return found | {candidates[number]: why for number, why in kept.items()}


@logged_verb
def drop(
    disk: Disk,
    layers: Sequence[str | os.PathLike[str]],
    *,
    search: Sequence[Path] = (),
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Pruned:
    """Delete these snapshots of a disk's chain; all of them or none.

    >>> with open_disk("disk.qcow2") as disk:
    ...     done = drop(disk, ["layer2.qcow2"])
    >>> [path.name for path in done.deleted], [path.name for path in done.rewritten]
    (['layer2.qcow2'], ['layer3.qcow2'])

    :param layers: by their paths, or by the names of their files.
    :raise InputError: if one is none of the chain, is the image or the base, or cannot go; nothing was touched.

    The other parameters and errors are those of :func:`prune`.
    """
    if not layers:
        raise InputError("nothing is to be deleted", path=disk.image)

    def wanted(chain: Chain) -> dict[int, str]:
        chosen = {chain.find_layer(name) for name in layers}
        for number, what in ((0, "the image itself"), (len(chain.layers) - 1, "the base of the chain")):
            if number in chosen:
                raise InputError(f"is {what}, which always stays", path=chain.layers[number].path)
        return {number: "not named" for number in range(1, len(chain.layers) - 1) if number not in chosen}

    return _thin_out(disk, wanted, search=search, force=force, dry_run=dry_run, strict=True, progress=progress)


def _thin_out(
    disk: Disk,
    wanted: Callable[[Chain], dict[int, str]],
    *,
    search: Sequence[Path],
    force: bool,
    dry_run: bool,
    strict: bool,
    progress: Callable[[int], None] | None,
) -> Pruned:
    began = time.monotonic()
    journal = Journal(Path(os.path.realpath(disk.image)))
    with ExitStack() as stack:
        stack.enter_context(_as_errors(disk))
        chain = stack.enter_context(open_chain(disk.image))
        if not dry_run:
            stack.enter_context(alone_in(Path(os.path.realpath(layer.path)).parent for layer in chain.layers[:-1]))
            if finish(disk, journal, chain, search) or not _is_as_opened(chain):
                chain = stack.enter_context(open_chain(disk.image))
        disk.check()
        _refuse_index(disk)
        ask = partial(
            Choice, search=search, ours=disk.holders, our_disk=disk.known_to_libvirt_as,
            image_is_written=disk.image_is_written, force=force,
        )  # fmt: skip
        require_prunable(chain)
        choice = ask(chain, wanted(chain))
        if strict:
            _refuse_kept_back(choice.fates)
        done = Pruned(disk.image, choice.fates, searched=choice.searched)
        if dry_run:
            _foretell(done, chain, choice.merges)
            return done
        going = {os.path.realpath(fate.path) for fate in choice.fates if fate.goes}
        while _step(disk, chain, ask, going, journal, search, done, progress):
            # What was begun is done: who wants to end us may do so before the next step.
            interrupts.resume()
            interrupts.between_steps()
            chain.close()
            chain = stack.enter_context(open_chain(disk.image))
        done.image = disk.image
        done.seconds = time.monotonic() - began
    return done


def _step(
    disk: Disk,
    chain: Chain,
    ask: Callable[[Chain, dict[int, str]], Choice],
    going: set[str],
    journal: Journal,
    search: Sequence[Path],
    done: Pruned,
    progress: Callable[[int], None] | None,
) -> bool:
    """Replace as many layers as there is room for new files, and delete what goes with them.

    :return: whether any are left to be replaced.
    """
    last = len(chain.layers) - 1
    files = [os.path.realpath(layer.path) for layer in chain.layers]
    stays = [number for number, file in enumerate(files) if number in (0, last) or file not in going]
    wanted = [Merge(one, other) for one, other in pairwise(stays) if other > one + 1]
    merges = as_many_as_fit(chain, wanted)
    if not merges:
        return False
    goes = {number for merge in merges for number in merge.going}
    kept = {number: "kept" for number in range(1, last) if number not in goes}
    work = Work(disk, chain, merges, journal, search, lambda: _still(ask(chain, kept), merges))
    try:
        work.run(progress)
    except OperationError as error:
        if done.deleted:
            error.what += f"; {counted(len(done.deleted), 'file')} had been deleted before, and all reads the same"
        raise
    done.deleted += work.deleted
    done.left |= work.left
    done.rewritten += work.rewritten
    done.copied_bytes += work.copied.copied_bytes
    done.cloned_bytes += work.copied.cloned_bytes
    done.freed_bytes += work.freed_bytes
    done.searched = work.searched or done.searched
    return len(merges) < len(wanted)


def _still(choice: Choice, merges: Sequence[Merge]) -> None:
    """Refuse to go on where somebody came meanwhile who needs a layer.

    :raise ImageError: naming it.
    """
    for fate in choice.fates:
        if fate.is_kept_back:
            raise ImageError(f"is needed by now: {fate.why}", path=fate.path, hint="run it again, and it is kept")
    assert choice.merges == list(merges)


def _foretell(done: Pruned, chain: Chain, merges: Sequence[Merge]) -> None:
    if not merges:
        done.seconds = 0.0
        return
    means = Means.of(chain)
    for merge in merges:
        layer, size = chain.layers[merge.into], measure_merge(chain, merge)
        done.rewritten.append(Path(os.path.realpath(layer.path)))
        if means.clones:
            done.cloned_bytes += size.copied_bytes
        else:
            done.copied_bytes += size.copied_bytes
        done.freed_bytes += layer.file.allocated_bytes - size.copied_bytes - size.table_bytes
        for number in merge.going:
            done.deleted += files_of_layer(chain.layers[number])
            done.freed_bytes += done.fates[number].on_disk_bytes
    done.seconds = means.seconds(done.copied_bytes)


def _refuse_kept_back(fates: Sequence[Fate]) -> None:
    for fate in fates:
        if fate.is_kept_back:
            raise ImageError(f"cannot go: {fate.why}", path=fate.path, hint="nothing was changed")


def _refuse_index(disk: Disk) -> None:
    """Refuse a disk that stands on an index, whoever knows of it: it points into the layers' files."""
    for standing in disk.standing():
        if standing.pointer is not None and index_descriptor(standing.pointer.name) is not None:
            raise ImageError(
                "stands on an index, which points into the layers under it",
                path=standing.image,
                hint="take it out first: chainlift restore",
            )


def _is_as_opened(chain: Chain) -> bool:
    """Whether the names of a chain still lead to the files that are open: it was opened before anything was held."""
    for layer in chain.layers:
        try:
            if identity_of(os.stat(layer.path)) != layer.file.identity:  # noqa: PTH116
                return False
        except OSError:
            return False
    return True


@contextmanager
def _as_errors(disk: Disk) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise failed(error, disk.image) from error
