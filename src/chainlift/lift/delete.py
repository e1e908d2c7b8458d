"""Deleting the layers that a squash replaced: after a comparison, and only those that nobody else stands on."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, OperationError
from chainlift.lift.build.workspace import sync_directory
from chainlift.lift.compare.content import first_difference
from chainlift.lift.neighbours.images import find_users
from chainlift.lift.record.source import find_source, identify, open_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chainlift.lift.lifting import Prepared
    from chainlift.lift.record.manifest import FileIdentity, Layer, Manifest


@dataclass(frozen=True)
class Kept:
    """A replaced layer that stays, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Deletion:
    """What can be deleted of the layers that a squash replaces."""

    deletable: list[Path]
    kept: list[Kept]
    #: External data files of the layers that can be deleted; they go with them.
    data_files: list[Path]


def plan_deletion(prepared: Prepared, search: Sequence[Path], progress: Callable[[int], None] | None) -> Deletion:
    """Compare the squash with the original chain, byte by byte, and search for other images that use the layers.

    :param search: directories; a layer outside all of them is kept, as its users cannot be known.
    :raise OperationError: if the bytes differ; nothing was switched or deleted.
    :raise InputError: if an image in the directories cannot be read.
    """
    manifest = prepared.manifest
    image = Path(manifest.image)
    source = find_source(image)
    with open_pointer(image, manifest.lifted) as lifted, source.open_original() as original:
        difference = first_difference(lifted, original, progress)
    if difference is not None:
        raise OperationError(f"the squash reads other bytes from offset {difference} on: not switched", path=image)
    return _sort_out(image, manifest.layers, search)


def _sort_out(image: Path, replaced: Sequence[Layer], search: Sequence[Path]) -> Deletion:
    """Divide layers that a squash replaces into those that can go and those that somebody may need."""
    layers = [_real(layer.identity) for layer in replaced]
    data_files = {_real(layer.identity): _real(layer.data_file) for layer in replaced if layer.data_file}
    users = find_users([*layers, *data_files.values()], search)
    ours = {image, *layers}
    places = [os.path.realpath(directory) for directory in search]
    kept: dict[Path, str] = {}
    for layer in layers:
        used = users.get(layer, []) + users.get(data_files.get(layer, layer), [])
        others = [user for user in used if Path(os.path.realpath(user)) not in ours]
        if others:
            kept[layer] = f"{others[0]} stands on it"
        elif not all(
            any(file.is_relative_to(place) for place in places) for file in (layer, data_files.get(layer, layer))
        ):
            kept[layer] = "it lies outside the directories that were searched"
    # What a kept layer stands on stays with it: the layers are in order, the top one first.
    for above, layer in itertools.pairwise(layers):
        if above in kept and layer not in kept:
            kept[layer] = f"{above} stands on it and is kept"
    deletable = [layer for layer in layers if layer not in kept]
    return Deletion(
        deletable=deletable,
        data_files=[data_files[layer] for layer in deletable if layer in data_files],
        kept=[Kept(str(layer), why) for layer, why in kept.items()],
    )


def delete_layers(prepared: Prepared, deletion: Deletion) -> None:
    """Delete the layers; the image is switched to the squash already.

    The manifest says first that there is no way back, so that a kill in the middle leaves no lie behind.
    """
    if not deletion.deletable:
        return
    prepared.workspace.write_manifest(replace(prepared.manifest, deleted=True))
    _delete(deletion)


def finish_deletion(image: Path, search: Sequence[Path]) -> tuple[Manifest, Deletion] | None:
    """Delete what a run that was killed while it deleted has left; the comparison was done then.

    :param search: as for :func:`plan_deletion`.
    :return: None where nothing is left to delete.
    """
    source = find_source(image)
    manifest = source.manifest
    if manifest is None or not manifest.deleted or not source.is_lifted:
        return None
    # A file that has the name since then is another one.
    left = [layer for layer in manifest.layers if _is_there(layer.identity)]
    deletion = _sort_out(source.image, left, search)
    if not deletion.deletable:
        return None
    _delete(deletion)
    return manifest, deletion


def _delete(deletion: Deletion) -> None:
    # From the top down: what is left of a run that is killed here is a chain whose layers all have what they stand on.
    files = [*deletion.data_files, *deletion.deletable]
    for path in files:
        path.unlink(missing_ok=True)
    for directory in sorted({path.parent for path in files}):
        sync_directory(directory)


def _is_there(file: FileIdentity) -> bool:
    try:
        return identify(Path(file.path)) == replace(file, metadata_sha256=None)
    except ImageError:
        return False


def _real(file: FileIdentity) -> Path:
    return Path(os.path.realpath(file.path))
