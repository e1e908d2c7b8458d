"""Removing what chainlift made and nobody stands on any more."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from chainlift.lift.build.workspace import Workspace, read_lift
from chainlift.lift.neighbours.images import find_users
from chainlift.lift.record.manifest import NAME, Manifest

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path


def remove_unused(workspace: Workspace, manifest: Manifest, *, keep: Collection[str]) -> None:
    """Remove what chainlift made in a lift's directory, but for what somebody may still stand on.

    That is what the manifest's layers are (a squash whose layers were deleted is a layer of the next lift), and what
    another image in the directory beside it names.

    :param keep: names that stay in any case.
    """
    made = workspace.made_here()
    if all(path.name in keep for path in made):
        return
    stands_on = {os.path.realpath(layer.identity.path) for layer in (*manifest.layers, *manifest.below)}
    stays = {path for path in made if path.name in keep or os.path.realpath(path) in stands_on}
    goes = [path for path in made if path not in stays and path.name != NAME]
    if goes:
        used = find_users(goes, [workspace.image.parent])
        # What is named only by something that goes, goes too.
        while named := {path for path in goes if any(user not in goes for user in used.get(path, []))}:
            stays |= named
            goes = [path for path in goes if path not in named]
    # The manifest goes last, and only with everything else: as long as a file is here, it says what it is.
    if NAME not in keep and not stays:
        goes += [path for path in made if path.name == NAME]
    workspace.remove(goes)


def remove_needless(image: Path) -> None:
    """Remove what was made for an image that stands alone now."""
    manifest = read_lift(image)
    if manifest is not None:
        with Workspace(image).hold() as workspace:
            remove_unused(workspace, manifest, keep=[])
