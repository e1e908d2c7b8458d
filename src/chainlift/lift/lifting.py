"""A lift from beginning to end: built beside the image, described, and only then put in use.

Building and switching are apart. :func:`prepare_index` and :func:`prepare_squash` leave the lift in ``IMAGE.lift/``,
synced and described by its manifest, while nothing uses it; the caller then switches the header (:func:`lift_index`
does) or a running VM, and says :meth:`Prepared.settle`.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift._version import __version__
from chainlift.chain.digest import TablesDigest
from chainlift.errors import ChainliftError
from chainlift.lift.build.copying import Copied
from chainlift.lift.build.files import Sources
from chainlift.lift.build.index import build_index, least_room
from chainlift.lift.build.room import require_room, require_room_for_copy
from chainlift.lift.build.squash import build_squash, find_onto, layers_below, squash_cluster_size
from chainlift.lift.build.workspace import Workspace, as_errors
from chainlift.lift.delete import Deletion, delete_layers, finish_deletion, plan_deletion
from chainlift.lift.neighbours.locks import LayerLocks, refuse_if_open
from chainlift.lift.record.manifest import NAME, Manifest, Pointer
from chainlift.lift.record.source import describe_layers, find_source, identify, read_pointer, require_liftable
from chainlift.lift.switch import require_writable, switch_pointer
from chainlift.lift.tidy import remove_unused

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from chainlift.chain import Chain
    from chainlift.lift.build.index import BuiltIndex
    from chainlift.lift.build.squash import BuiltSquash
    from chainlift.lift.record.source import Source
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Prepared:
    """A lift that lies ready. The layers stay locked against writers, and the directory is held, while it is open."""

    manifest: Manifest
    workspace: Workspace
    #: The manifest that was there before.
    before: Manifest | None

    def discard(self) -> None:
        """Remove the lift again, where the image's header does not name it; an older lift stays as it was.

        Not for a lift that a running QEMU may have open.
        """
        pointer = read_pointer(Path(self.manifest.image))[1]
        if pointer is not None and pointer.name == self.manifest.lifted.name:
            return
        files = [Path(file.path) for file in self.manifest.files]
        if self.before is not None:
            self.workspace.write_manifest(self.before)
        else:
            files.append(self.workspace.path / NAME)
        self.workspace.remove(files)

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Discard the lift if the block fails."""
        try:
            yield
        except BaseException:
            # The first error is the one to tell.
            with suppress(ChainliftError, OSError):
                self.discard()
            raise

    def settle(self) -> None:
        """Remove what an older lift of the image left: the switch is done."""
        remove_unused(
            self.workspace, self.manifest, keep=[NAME, *(Path(file.path).name for file in self.manifest.files)]
        )


@dataclass(frozen=True)
class _Work:
    """A chain that is being lifted: its layers locked against writers, the directory beside the image held."""

    source: Source
    chain: Chain
    sources: Sources
    workspace: Workspace
    #: An open file descriptor for each file of the sources, by its path.
    descriptors: dict[str, int]
    #: What each layer's tables say, taken in while they are merged.
    digests: list[TablesDigest]

    def publish(
        self,
        kind: Literal["index", "squash"],
        built: BuiltIndex | BuiltSquash,
        files: Sequence[str],
        *,
        onto: int | None = None,
        extents: int = 0,
        copied: Copied,
    ) -> Prepared:
        """Write the manifest of what was built.

        :param files: names in the workspace.
        :param onto: index of the layer that a squash stands on.
        """
        described = describe_layers(self.chain, self.sources, built.visible_clusters, self.digests)
        count = len(described) if onto is None else sum(layer < onto for layer in self.sources.layer)
        manifest = Manifest(
            kind=kind,
            chainlift=__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            image=str(self.source.image),
            original=self.source.original,
            lifted=Pointer(name=built.backing_name, format="qcow2"),
            layers=described[:count],
            below=described[count:],
            files=[identify(self.workspace.path / name) for name in files],
            extents=extents,
            virtual_size_bytes=self.chain.virtual_size,
            cluster_size_bytes=built.cluster_size,
            copied_bytes=copied.copied_bytes,
            cloned_bytes=copied.cloned_bytes,
        )
        self.workspace.write_manifest(manifest)
        return Prepared(manifest, self.workspace, self.source.manifest)


@contextmanager
def _working_on(
    image: str | os.PathLike[str], check: Callable[[Path, Chain, Sources, dict[str, int]], None]
) -> Iterator[_Work]:
    """Open the chain under an image for a lift.

    :param check: called with the directory, the chain, its files and their descriptors before anything is made; raises
        to refuse.
    """
    source = find_source(image)
    workspace = Workspace(source.image)
    with as_errors(workspace), source.open_original() as chain:
        require_liftable(chain)
        sources = Sources(chain)
        with LayerLocks(files_of(chain, sources)) as locks:
            check(source.image.parent, chain, sources, locks.descriptors)
            with workspace.hold():
                digests = [TablesDigest() for _ in chain.layers]
                yield _Work(source, chain, sources, workspace, locks.descriptors, digests)


def _check_index(directory: Path, chain: Chain, sources: Sources, descriptors: dict[str, int]) -> None:  # noqa: ARG001
    require_room(directory, least_room(chain))


def _check_squash(
    onto: str | os.PathLike[str] | None,
    directory: Path,
    chain: Chain,
    sources: Sources,
    descriptors: dict[str, int],
) -> None:
    below = layers_below(chain, find_onto(chain, onto))
    require_room_for_copy(directory, chain, sources, descriptors, squash_cluster_size(chain), below=below)


@contextmanager
def prepare_index(
    image: str | os.PathLike[str],
    *,
    copy_budget_bytes: int = 0,
    most_extents: int | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prepared]:
    """Build the index of everything under the image.

    :param copy_budget_bytes: how much of the smallest layers may be copied, so that fewer extents remain.
    :param most_extents: copy no more than it takes to be left with so many; None copies what the budget allows.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if the image or its chain cannot be lifted; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    with _working_on(image, _check_index) as work:
        built = build_index(
            work.chain,
            work.sources,
            work.descriptors,
            work.workspace,
            digests=work.digests,
            copy_budget_bytes=copy_budget_bytes,
            most_extents=most_extents,
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        copied = Copied(copied_bytes=built.copied_bytes)
        yield work.publish("index", built, [built.table, built.descriptor], extents=built.extents, copied=copied)


def lift_index(
    image: str | os.PathLike[str],
    qemu: Qemu,
    *,
    copy_budget_bytes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Build the index of everything under an image that no QEMU has open, and switch the image to it.

    :raise ImageError: as :func:`prepare_index`, or if a QEMU has the image open.
    """
    refuse_if_open(Path(image))
    require_writable(Path(image))
    with prepare_index(image, copy_budget_bytes=copy_budget_bytes, progress=progress) as prepared:
        with prepared.undone_on_error():
            switch_pointer(qemu, Path(prepared.manifest.image), prepared.manifest.lifted)
        prepared.settle()
        return prepared.manifest


@contextmanager
def prepare_squash(
    image: str | os.PathLike[str],
    *,
    onto: str | os.PathLike[str] | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prepared]:
    """Write everything between the image and a layer below it as one layer.

    :param onto: path of the layer that the new one stands on; None: the base.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if the image or its chain cannot be lifted; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    with _working_on(image, partial(_check_squash, onto)) as work:
        number = find_onto(work.chain, onto)
        built = build_squash(
            work.chain,
            work.sources,
            work.descriptors,
            work.workspace,
            number,
            digests=work.digests,
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        yield work.publish("squash", built, [built.name], onto=number, copied=built.copied)


def lift_squash(
    image: str | os.PathLike[str],
    qemu: Qemu,
    *,
    onto: str | os.PathLike[str] | None = None,
    delete_in: Sequence[Path] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Manifest, Deletion | None]:
    """Squash everything between an image that no QEMU has open and a layer below it, and switch the image to that.

    :param delete_in: delete the replaced layers, after a comparison, where no image in these directories uses them; or
        what a run that was killed has left of them.
    :return: the manifest, and what was deleted and kept.
    :raise ImageError: as :func:`prepare_squash`, or if a QEMU has the image open.
    """
    refuse_if_open(Path(image))
    require_writable(Path(image))
    if delete_in is not None and (finished := finish_deletion(Path(image), delete_in)) is not None:
        return finished
    with prepare_squash(image, onto=onto, progress=progress) as prepared:
        with prepared.undone_on_error():
            deletion = None if delete_in is None else plan_deletion(prepared, delete_in, progress)
            switch_pointer(qemu, Path(prepared.manifest.image), prepared.manifest.lifted)
        prepared.settle()
        if deletion is not None:
            delete_layers(prepared, deletion)
        return prepared.manifest, deletion


def files_of(chain: Chain, sources: Sources) -> dict[str, Path]:
    """Return every file of a chain by the name that the chain has for it."""
    names = [*(layer.file.path for layer in chain.layers), *(source.path for source in sources.files)]
    return {name: Path(name) for name in names}
