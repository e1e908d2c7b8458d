"""A lift, built beside an image and described, while nothing uses it.

:func:`prepare_index` and :func:`prepare_squash` leave the lift in ``IMAGE.lift/``, synced and described by its record.
Who called them switches the disk and says :meth:`Prepared.mark_used` before, or else :meth:`Prepared.discard`.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift._version import __version__
from chainlift.chain.digest import TablesDigest
from chainlift.errors import ImageError
from chainlift.lift.build.copying import Copied
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.free_space import require_room, require_room_for_copy
from chainlift.lift.build.index import build_index, least_room
from chainlift.lift.build.layers import describe_layers
from chainlift.lift.build.squash import build_squash, find_onto, layers_below, squash_cluster_size
from chainlift.lift.build.workspace import Workspace, as_errors
from chainlift.lift.disk import Change
from chainlift.lift.neighbours.carried import has_bitmaps
from chainlift.lift.neighbours.links import reached_by_link
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.record.identity import identify
from chainlift.lift.record.image_state import read_image_state
from chainlift.lift.record.liftable import require_liftable
from chainlift.lift.record.manifest import SUFFIX, Manifest, Pointer
from chainlift.lift.record.pointer import led_to, refer

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from chainlift.chain import Chain, Layer
    from chainlift.lift.build.index import BuiltIndex
    from chainlift.lift.build.squash import BuiltSquash
    from chainlift.lift.record.image_state import ImageState


@dataclass
class Prepared:
    """A lift that lies ready. The layers stay locked against writers, and the directory is held, while it is open."""

    manifest: Manifest
    workspace: Workspace
    #: The switch that is to be made.
    change: Change

    @property
    def record(self) -> Path:
        """Where its record is."""
        return self.workspace.path / (self._stem + SUFFIX)

    @property
    def _stem(self) -> str:
        return Path(self.manifest.files[-1].path).stem

    def mark_used(self) -> None:
        """Say that an image may name the lift from now on: no later run may take it for a leftover."""
        self.manifest = self.workspace.mark_used(self.record, self.manifest)

    def forget_way_back(self) -> None:
        """Say that the layers which the lift replaces are deleted."""
        self.manifest = replace(self.manifest, deleted=True)
        self.workspace.write_record(self.record, self.manifest)
        self.workspace.forget_way_back(self._stem)

    def discard(self) -> None:
        """Remove the lift again; only where nobody can have it open or name it."""
        self.workspace.remove_lift(self._stem, used=False)


@dataclass(frozen=True)
class _Work:
    """A chain that is being lifted: its layers locked against writers, the directory beside the image held."""

    state: ImageState
    chain: Chain
    sources: ClusterFiles
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
        """Write the record of what was built.

        :param files: names in the workspace; the last is what an image names.
        :param onto: index of the layer that a squash stands on.
        """
        described = describe_layers(self.chain, self.sources, built.visible_clusters, self.digests)
        count = len(described) if onto is None else sum(layer < onto for layer in self.sources.layer)
        manifest = Manifest(
            kind=kind,
            chainlift=__version__,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            image=str(self.state.image),
            original=self.state.original,
            lifted=Pointer(name=built.backing_name, format="qcow2"),
            layers=described[:count],
            below=described[count:],
            files=[identify(self.workspace.path / name) for name in files],
            extents=extents,
            virtual_size_bytes=self.chain.virtual_size,
            cluster_size_bytes=built.cluster_size,
            copied_bytes=copied.copied_bytes,
            cloned_bytes=copied.cloned_bytes,
            original_path=_original_path(self.state),
            used=False,
            supersedes=_supersedes(self.state),
        )
        self.workspace.publish(Path(files[-1]).stem, manifest)
        state = self.state
        moved = None if state.lift is None else state.lift.moved_pointer(state.image, state.current)
        return Prepared(manifest, self.workspace, Change(state.image, state.current, manifest.lifted, moved))


def _original_path(state: ImageState) -> str | None:
    reference = refer(state.image, state.original)
    if not reference.follows_header or reference.is_descriptor:
        return None
    return str(led_to(state.image, state.original))


def _supersedes(state: ImageState) -> list[str]:
    """Return the lifts that the image needs no more once it stands on the new one: this one's, and those before."""
    if state.lift is None or not state.lift.can_be_undone:
        return []
    return [str(state.lift.file), *state.lift.manifest.supersedes]


@contextmanager
def _working_on(
    image: str | os.PathLike[str],
    check: Callable[[Path, Chain, ClusterFiles, dict[str, int]], None],
    *,
    current: Pointer | None,
    parent: Path | None,
) -> Iterator[_Work]:
    """Open the chain under an image for a lift.

    :param check: called with the directory, the chain, its files and their descriptors before anything is made; raises
        to refuse.
    :param current: what the image stands on, where that is known better than by its header.
    :param parent: the directory in which ``IMAGE.lift/`` is made; None: the image's.
    """
    state = read_image_state(image, current)
    workspace = Workspace(state.image, parent)
    workspace.require_place()
    with as_errors(workspace), state.open_original() as chain:
        require_liftable(chain)
        sources = ClusterFiles(chain)
        with LayerLocks(files_of(chain, sources)) as locks:
            check(workspace.path.parent, chain, sources, locks.descriptors)
            with workspace.hold():
                digests = [TablesDigest() for _ in chain.layers]
                before = set(workspace.lifts())
                try:
                    yield _Work(state, chain, sources, workspace, locks.descriptors, digests)
                except BaseException:
                    # Of what was begun here and not published nothing stays; the first error is the one to tell.
                    with suppress(OSError, ImageError):
                        workspace.remove_unused(set(workspace.lifts()) - before)
                    raise


@contextmanager
def prepare_index(
    image: str | os.PathLike[str],
    *,
    current: Pointer | None = None,
    parent: Path | None = None,
    drop_bitmaps: bool = False,
    copy_budget_bytes: int = 0,
    most_extents: int | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prepared]:
    """Build the index of everything under the image.

    :param current: what the image stands on, where that is known better than by its header.
    :param parent: the directory in which ``IMAGE.lift/`` is made; None: the image's.
    :param drop_bitmaps: go on although layers have persistent bitmaps, which cannot be reached through an index.
    :param copy_budget_bytes: how much of the smallest layers may be copied, so that fewer extents remain.
    :param most_extents: copy no more than it takes to be left with so many; None copies what the budget allows.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if the image or its chain cannot be lifted; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    with _working_on(image, partial(_check_index, drop_bitmaps), current=current, parent=parent) as work:
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


@contextmanager
def prepare_squash(
    image: str | os.PathLike[str],
    *,
    current: Pointer | None = None,
    parent: Path | None = None,
    absolute_names: bool = False,
    drop_bitmaps: bool = True,
    onto: str | os.PathLike[str] | None = None,
    finish: Callable[[Chain, int, Path], None] | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prepared]:
    """Write everything between the image and a layer below it as one layer.

    :param current: what the image stands on, where that is known better than by its header.
    :param parent: the directory in which ``IMAGE.lift/`` is made; None: the image's.
    :param absolute_names: wanted in any case; they are written, too, where the image is reached by links.
    :param drop_bitmaps: False refuses layers with persistent bitmaps.
    :param onto: path of the layer that the new one stands on; None: the base.
    :param finish: called with the chain, the number of the layer that stays and the new file, before it is described.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if the image or its chain cannot be lifted; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    with _working_on(image, partial(_check_squash, onto, drop_bitmaps), current=current, parent=parent) as work:
        number = find_onto(work.chain, onto)
        path = work.state.image
        absolute = absolute_names or parent is not None or work.state.original.name.startswith("/")
        built = build_squash(
            work.chain,
            work.sources,
            work.descriptors,
            work.workspace,
            number,
            absolute_names=absolute or reached_by_link(path) is not None,
            digests=work.digests,
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        if finish is not None:
            finish(work.chain, number, work.workspace.path / built.name)
        yield work.publish("squash", built, [built.name], onto=number, copied=built.copied)


def _check_index(
    drop_bitmaps: bool,  # noqa: FBT001
    directory: Path,
    chain: Chain,
    sources: ClusterFiles,  # noqa: ARG001
    descriptors: dict[str, int],  # noqa: ARG001
) -> None:
    if not drop_bitmaps:
        _refuse_bitmaps(chain.layers)
    require_room(directory, least_room(chain))


def _refuse_bitmaps(layers: Sequence[Layer]) -> None:
    for layer in layers:
        if has_bitmaps(layer):
            raise ImageError(
                "has persistent bitmaps, which backups would not find any more",
                path=layer.path,
                hint="a squash of a disk that libvirt does not run carries them over; --drop-bitmaps goes on without",
            )


def _check_squash(
    onto: str | os.PathLike[str] | None,
    drop_bitmaps: bool,  # noqa: FBT001
    directory: Path,
    chain: Chain,
    sources: ClusterFiles,
    descriptors: dict[str, int],
) -> None:
    number = find_onto(chain, onto)
    if not drop_bitmaps:
        _refuse_bitmaps(chain.layers[:number])
    below = layers_below(chain, number)
    require_room_for_copy(directory, chain, sources, descriptors, squash_cluster_size(chain), below=below)
