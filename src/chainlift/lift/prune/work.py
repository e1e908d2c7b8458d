"""One step of thinning a chain out: new files are built, compared and put in their places, and what goes is deleted."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

from chainlift.chain import open_chain
from chainlift.errors import ChainliftError, ImageError, QemuError, UnknownStateError
from chainlift.host import interrupts
from chainlift.lift.build.copying import Copied
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.replacement import build_replacement, is_apart
from chainlift.lift.build.workspace import remove_files
from chainlift.lift.compare.replaced import Replacement, compare_replacements
from chainlift.lift.compare.stock import why_not_open
from chainlift.lift.neighbours.carried import carry_bitmaps, has_bitmaps
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.neighbours.processes import OpenFiles
from chainlift.lift.prune.choose import files_of_layer
from chainlift.lift.prune.journal import Entries, Journal, notes_beside, set_aside, temporary
from chainlift.lift.prune.swap import Seen, new_file, put_back, swap
from chainlift.lift.record.identity import identify
from chainlift.lift.record.manifest import Pointer
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from chainlift.chain import Chain
    from chainlift.lift.build.replacement import Merge
    from chainlift.lift.disk import Disk


class Work:
    """One step.

    :param chain: open, as it is now.
    :param merges: what is merged into what, the uppermost first.
    :param search: directories in which others are looked for, besides the image's.
    :param ask_again: called right before layers are replaced; raises to refuse.
    """

    def __init__(
        self,
        disk: Disk,
        chain: Chain,
        merges: Sequence[Merge],
        journal: Journal,
        search: Sequence[Path],
        ask_again: Callable[[], None],
    ) -> None:
        self._disk = disk
        self._chain = chain
        self._merges = merges
        self._journal = journal
        self._search = search
        self._ask_again = ask_again
        self._seen: list[Seen] = []
        self._goes = [path for merge in merges for n in merge.going for path in files_of_layer(chain.layers[n])]
        self.rewritten = [Path(os.path.realpath(chain.layers[merge.into].path)) for merge in merges]
        self.copied = Copied()
        #: Layers that are deleted, and their data files.
        self.deleted: list[Path] = []
        #: Those that stay all the same, each with a phrase.
        self.left: dict[Path, str] = {}
        self.freed_bytes = 0
        #: Where others were looked for before the deletion.
        self.searched = ""

    def run(self, progress: Callable[[int], None] | None) -> None:
        """Do it.

        :raise InputError: if somebody needs a layer by now; nothing was changed.
        :raise AnswerIsNo: if a new file reads differently; nothing was changed.
        :raise OperationError: if something failed; all is as before.
        :raise OSError: the same.
        :raise UnknownStateError: if it is not known what is left.
        """
        sources = ClusterFiles(self._chain)
        files = files_of(self._chain, sources)
        if self._disk.image_is_written is not None:
            del files[self._chain.layers[0].path]
        before, planned = self._journal.entries.goes, Entries(tuple(self.rewritten))
        for path in planned.leftovers:
            if os.path.lexists(path):
                raise ImageError("exists, and is not ours", path=path, hint="move it away")
        with LayerLocks(files) as locks, self._opened_again():
            try:
                self._journal.write(Entries(tuple(self.rewritten), before))
                self._build_and_compare(locks.descriptors, progress)
                self._disk.check_again()
                self._ask_again()
                goes = tuple(identify(path) for path in self._goes)
                with interrupts.put_off():
                    self._journal.write(Entries(tuple(self.rewritten), (*before, *goes)))
                    self._replace()
                    interrupts.too_late()
                # Who looks for the note looks beside what is the image now.
                with suppress(OSError):
                    self._journal.move(self._disk.image)
            except UnknownStateError:
                raise
            except BaseException:
                # The first error is the one to tell.
                with suppress(ChainliftError, OSError):
                    self._journal.remove_leftovers()
                    self._journal.close(before)
                raise
            # All is done that was asked for, but that there is still more on disk than is needed.
            with suppress(OSError):
                self.freed_bytes += sum(map(_allocated, map(set_aside, self.rewritten)))
                self.freed_bytes -= sum(map(_allocated, self.rewritten))
            sizes = {path: _allocated(path) for path in self._goes if path.exists()}
            self.left, self.searched = _clear_away(self._disk, self._journal, self._search)
            self.deleted = [path for path in self._goes if path not in self.left]
            self.freed_bytes += sum(size for path, size in sizes.items() if path not in self.left)

    @contextmanager
    def _opened_again(self) -> Iterator[None]:
        """Read the chain anew, now that nobody may write to it: what was read before may be old.

        :raise ImageError: if it is another one by now.
        """
        with open_chain(self._disk.image) as chain:
            now, before = ([layer.file.identity for layer in each.layers] for each in (chain, self._chain))
            if now != before:
                raise ImageError("got another chain meanwhile", path=self._disk.image, hint="run it again")
            self._chain = chain
            self._seen = [Seen.at(path) for path in self.rewritten]
            yield

    def _build_and_compare(self, descriptors: Mapping[str, int], progress: Callable[[int], None] | None) -> None:
        """Write the new files, and compare each while the next ones are written, where the two read no layer both."""
        qemu, built = self._disk.qemu, self._build(descriptors, progress)
        if qemu is None or not all(is_apart(self._chain, merge) for merge in self._merges):
            done = list(built)
            if qemu is not None:
                compare_replacements(qemu, self._chain, self._merges, done, progress=progress)
            return
        files: SimpleQueue[Replacement | None] = SimpleQueue()
        is_built = Event()

        def compared(done_bytes: int) -> None:
            if progress is not None and is_built.is_set():
                progress(done_bytes)

        with ThreadPoolExecutor(1, thread_name_prefix="compare") as pool:
            job = pool.submit(
                compare_replacements, qemu, self._chain, self._merges, iter(files.get, None), progress=compared
            )
            try:
                for replacement in built:
                    files.put(replacement)
                    if job.done():
                        break
            finally:
                is_built.set()
                files.put(None)
            job.result()

    def _build(self, descriptors: Mapping[str, int], progress: Callable[[int], None] | None) -> Iterator[Replacement]:
        """Write the new files, the lowest first."""
        for merge, seen in zip(reversed(self._merges), reversed(self._seen), strict=True):
            made = temporary(seen.path)
            with new_file(seen.path) as descriptor:
                total = self.copied.copied_bytes + self.copied.cloned_bytes
                done = build_replacement(
                    self._chain, merge, descriptors, made, descriptor,
                    progress=None if progress is None else _from(progress, total),
                )  # fmt: skip
                self.copied.copied_bytes += done.copied_bytes
                self.copied.cloned_bytes += done.cloned_bytes
                layers = self._chain.layers[merge.into : merge.onto]
                if any(has_bitmaps(layer) for layer in layers):
                    carry_bitmaps(self._disk.qemu or find_qemu(need=["storage-daemon"]), layers, made)
            yield Replacement(merge, made)

    def _replace(self) -> None:
        """Put the new files in their places, the lowest first, and have all opened by their names once more."""
        made = {str(path): temporary(path) for path in self.rewritten}
        # QEMU opens by its name what a job is to write to: until it has the new files open, nobody begins one.
        with LayerLocks(made):
            swap(list(reversed(self._seen)))
            try:
                self._require_opens()
                self._disk.reopen()
            except UnknownStateError:
                raise
            except BaseException as error:
                put_back(list(reversed(self.rewritten)), error)
                raise

    def _require_opens(self) -> None:
        """Open the uppermost new layer and all under it as the headers name them, by stock QEMU."""
        top = self._chain.layers[self._merges[0].into].path
        pointer = Pointer(name=os.path.abspath(top), format="qcow2")  # noqa: PTH100
        qemu = self._disk.qemu
        if qemu is not None and (why := why_not_open(qemu, self._disk.image, pointer)) is not None:
            raise QemuError(f"does not open in its place: {why}", path=top)


def finish(disk: Disk, journal: Journal, chain: Chain, search: Sequence[Path]) -> bool:
    """Do what runs that were killed have left to be done, under this name of the image or another one.

    :param journal: the image's own.
    :param chain: of the image.
    :return: whether there was anything.
    :raise ImageError: if the note is none of ours.
    :raise OSError: if a file cannot be removed.
    """
    found = [journal] if journal.read() else []
    layers = {os.path.realpath(layer.path) for layer in chain.layers}
    others = [other for other in notes_beside(journal) if not layers.isdisjoint(map(str, other.entries.replaced))]
    for one in (*found, *others):
        _finish(disk, one, search)
    left = [file for other in others for file in other.entries.goes]
    if left:
        journal.write(Entries((), (*journal.entries.goes, *left)))
        for other in others:
            other.close()
    return bool(found or others)


def _finish(disk: Disk, journal: Journal, search: Sequence[Path]) -> None:
    open_files = OpenFiles.look()
    aside = [path for path in journal.entries.replaced if open_files.holders(set_aside(path))]
    if aside and len(journal.still_there()) == len(journal.entries.goes):
        # A QEMU has them open, and is to find them under the names that it knows.
        put_back(aside, ChainliftError("chainlift was interrupted"))
    _clear_away(disk, journal, search)


def _clear_away(disk: Disk, journal: Journal, search: Sequence[Path]) -> tuple[dict[Path, str], str]:
    """Remove what was made for a moment, and delete what goes, where nobody needs it; asked now, when all is in place.

    :return: what stays, each with a phrase, and where others were looked for.
    """
    left: dict[Path, str] = {}
    searched = ""
    try:
        journal.remove_leftovers()
        disk.follow_headers()
        files = journal.still_there()
        neighbours = Neighbourhood(journal.image, search=search)
        if files:
            left = neighbours.sort_out(files)
            searched = neighbours.searched
            # From the top down: what is left of a run that is killed here is a chain that opens.
            remove_files([path for path in files if path not in left])
        # What an image stands on is a layer of its own right: not ours to delete when that has gone.
        ours = [path for path in left if not _is_named(neighbours, path, files)]
        journal.close([file for file in journal.entries.goes if Path(file.path) in ours])
    except (ChainliftError, OSError) as error:
        left |= {path: f"not deleted: {error}" for path in journal.still_there() if path not in left}
    return left, searched


def _is_named(neighbours: Neighbourhood, path: Path, but: Sequence[Path]) -> bool:
    """Whether an image stands on a file, but for these."""
    return any(user.kind == "backing file" and user.path not in but for user in neighbours.files.users_of(path))


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _from(progress: Callable[[int], None], start: int) -> Callable[[int], None]:
    return lambda done: progress(start + done)
