"""Deleting the layers that a squash replaced: after a comparison of every byte, and only those that nobody needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.build.workspace import Workspace, as_errors, remove_files
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.record.identity import identify
from chainlift.lift.record.lifts import find_lift
from chainlift.lift.record.manifest import SUFFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.lift.prepare import Prepared
    from chainlift.lift.record.manifest import FileIdentity, Layer, Manifest, Pointer


@dataclass(frozen=True)
class Kept:
    """A replaced layer that stays, and why."""

    #: Its file.
    path: str
    #: A phrase.
    why: str


@dataclass(frozen=True)
class Deletion:
    """What can be deleted of the layers that a squash replaces."""

    #: Layers that nobody needs.
    deletable: list[Path]
    #: Layers that stay.
    kept: list[Kept]
    #: External data files of the layers that can be deleted; they go with them.
    data_files: list[Path]
    #: Where images were looked for that may need the layers, and who else was asked.
    searched: str


def plan_deletion(image: Path, manifest: Manifest, search: Sequence[Path]) -> Deletion:
    """Find out which layers that a squash replaces nobody needs; the image stands on the squash already.

    :param search: directories besides the image's; a layer outside all of them is kept, as its users cannot be known.
    :raise InputError: if an image in the directories cannot be read.
    """
    return _sort_out(image, manifest, manifest.layers, search)


def _sort_out(image: Path, manifest: Manifest, replaced: Sequence[Layer], search: Sequence[Path]) -> Deletion:
    """Divide layers that a squash replaces into those that can go and those that somebody may need."""
    layers = [_real(layer.identity) for layer in replaced]
    data_files = {_real(layer.identity): _real(layer.data_file) for layer in replaced if layer.data_file}
    neighbourhood = Neighbourhood(image, search=search)
    # The squash's own record names the layers for the way back, which goes with them.
    record = Path(manifest.files[-1].path).with_suffix(SUFFIX)
    kept = neighbourhood.sort_out([*layers, *data_files.values()], ours=[record])
    for layer, data_file in data_files.items():
        if data_file in kept:
            kept.setdefault(layer, f"its data file is kept: {kept[data_file]}")
    deletable = [layer for layer in layers if layer not in kept]
    return Deletion(
        deletable=deletable,
        data_files=[data_files[layer] for layer in deletable if layer in data_files],
        kept=[Kept(str(layer), kept[layer]) for layer in layers if layer in kept],
        searched=neighbourhood.searched,
    )


def delete_layers(prepared: Prepared, deletion: Deletion) -> None:
    """Delete the layers; the image is switched to the squash already.

    The record says first that there is no way back, so that a kill in the middle leaves no lie behind.
    """
    if not deletion.deletable:
        return
    prepared.forget_way_back()
    _delete(deletion)


def finish_deletion(image: Path, current: Pointer | None, search: Sequence[Path]) -> tuple[Manifest, Deletion] | None:
    """Delete what a run that was killed while it deleted has left; the comparison was done then.

    :param current: what the image stands on.
    :param search: as for :func:`plan_deletion`.
    :return: None where nothing is left to delete.
    """
    lift = None if current is None else find_lift(image, current)
    if lift is None or not lift.manifest.deleted:
        return None
    # A file that has the name since then is another one.
    left = [layer for layer in lift.manifest.layers if _is_there(layer.identity)]
    if not left:
        return None
    deletion = _sort_out(image, lift.manifest, left, search)
    if not deletion.deletable:
        return None
    workspace = Workspace.at(lift.file.parent, image)
    with as_errors(workspace), workspace.hold():
        workspace.forget_way_back(lift.file.stem)  # it may be what was not done any more
        _delete(deletion)
    return lift.manifest, deletion


def _delete(deletion: Deletion) -> None:
    # From the top down: what is left of a run that is killed here is a chain whose layers all have what they stand on.
    remove_files([*deletion.data_files, *deletion.deletable])


def _is_there(file: FileIdentity) -> bool:
    try:
        return identify(Path(file.path)) == replace(file, metadata_sha256=None)
    except ImageError:
        return False


def _real(file: FileIdentity) -> Path:
    return Path(os.path.realpath(file.path))
