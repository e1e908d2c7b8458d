"""A lift from beginning to end: built beside the image, described, and only then put in use.

Building and switching are apart. :func:`prepare_index` and :func:`prepare_squash` leave the lift in ``IMAGE.lift/``,
synced and described by its manifest, while nothing uses it; the caller then switches the header (:func:`lift_index`
does) or a running VM, and says :meth:`Prepared.settle`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift._version import __version__
from chainlift.lift.files import Sources
from chainlift.lift.index import build_index
from chainlift.lift.locks import LayerLocks, refuse_if_open
from chainlift.lift.manifest import NAME, Manifest, Pointer
from chainlift.lift.source import describe_layers, find_source, identify, require_liftable
from chainlift.lift.switch import switch_pointer
from chainlift.lift.workspace import Workspace, as_errors

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from chainlift.chain import Chain
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Prepared:
    """A lift that lies ready. The layers stay locked against writers, and the directory is held, while it is open."""

    manifest: Manifest
    workspace: Workspace

    def settle(self) -> None:
        """Remove what an older lift of the image left: the switch is done."""
        names = {Path(file.path).name for file in self.manifest.files}
        self.workspace.remove_all_but({NAME, *names})


@contextmanager
def prepare_index(
    image: str | os.PathLike[str],
    *,
    copy_budget_bytes: int = 0,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Prepared]:
    """Build the index of everything under the image.

    :param copy_budget_bytes: how much of the smallest layers may be copied, so that fewer extents remain.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :raise ImageError: if the image or its chain cannot be lifted; nothing is left behind.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    source = find_source(image)
    workspace = Workspace(source.image)
    with as_errors(workspace), source.open_original() as chain:
        require_liftable(chain)
        sources = Sources(chain)
        with LayerLocks(_files(chain, sources)) as locks, workspace.hold():
            built = build_index(
                chain,
                sources,
                locks.descriptors,
                workspace,
                copy_budget_bytes=copy_budget_bytes,
                rate_bytes_per_s=rate_bytes_per_s,
                progress=progress,
            )
            manifest = Manifest(
                kind="index",
                chainlift=__version__,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                image=str(source.image),
                original=source.original,
                lifted=Pointer(name=built.backing_name, format="qcow2"),
                layers=describe_layers(chain, sources, built.visible_clusters),
                files=[identify(workspace.path / name) for name in (built.table, built.descriptor)],
                extents=built.extents,
                virtual_size_bytes=chain.virtual_size,
                cluster_size_bytes=built.cluster_size,
                copied_bytes=built.copied_bytes,
            )
            workspace.write_manifest(manifest)
            yield Prepared(manifest, workspace)


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
    with prepare_index(image, copy_budget_bytes=copy_budget_bytes, progress=progress) as prepared:
        switch_pointer(qemu, Path(prepared.manifest.image), prepared.manifest.lifted)
        prepared.settle()
        return prepared.manifest


def _files(chain: Chain, sources: Sources) -> dict[str, Path]:
    """Return every file of a chain by the name that the chain has for it."""
    names = [*(layer.file.path for layer in chain.layers), *(source.path for source in sources.files)]
    return {name: Path(name) for name in names}
