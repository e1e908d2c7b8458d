"""Removing lifts that nobody needs any more."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.build.workspace import Workspace, as_errors
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.record.manifest import NAME

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Tidied:
    """What was removed, and what stays."""

    #: Files that were removed.
    removed: list[Path] = field(default_factory=list)
    #: File of a lift -> why it stays.
    kept: dict[Path, str] = field(default_factory=dict)
    #: Where images were looked for that may need them; empty where nothing was to be removed.
    searched: str = ""


def require_removable(files: Iterable[Path]) -> None:
    """Refuse if we may not remove files of a lift, before anything is switched.

    :raise ImageError: naming the directory.
    """
    for directory in sorted({file.parent for file in files}):
        if directory.exists() and not os.access(directory, os.W_OK | os.X_OK):
            raise ImageError("nothing can be removed there", path=directory, hint="leave --clean out")


def remove_lifts(
    files: Sequence[Path],
    *,
    image: Path,
    overlays: Sequence[Path] = (),
    search: Sequence[Path] = (),
    held: Workspace | None = None,
    used: bool = True,
) -> Tidied:
    """Remove lifts and their records, but for those that somebody needs.

    :param files: what images name of the lifts.
    :param image: the image that stood on them; its directory is searched.
    :param overlays: images that are removed as well, and may be what needs a lift.
    :param search: more directories in which images are looked for.
    :param held: the workspace that the caller holds already.
    :param used: whether an image may have named them; the note beside forgets what was never used.
    """
    goes = {file: _parts(file) for file in dict.fromkeys(files) if file.exists()}
    places = [*search, *(file.parent.parent for file in goes)]
    goes |= {file: [file] for file in overlays if file.exists()}
    if not goes:
        return Tidied()
    neighbourhood = Neighbourhood(image, search=places)
    kept: dict[Path, str] = {}
    # What is named only by something that goes, goes too; what stays keeps what it names.
    while True:
        ours = [part for parts in goes.values() for part in parts]
        stays = {file: why for file, parts in goes.items() if (why := _why_keep(neighbourhood, parts, ours))}
        if not stays:
            break
        kept |= stays
        goes = {file: parts for file, parts in goes.items() if file not in stays}
    removed: list[Path] = []
    for file in overlays:
        if file in goes:
            file.unlink()
            removed.append(file)
    lifts = [file for file in goes if file not in removed]
    for directory in sorted({file.parent for file in lifts}):
        stems = [file.stem for file in lifts if file.parent == directory]
        if held is not None and held.path == directory:
            removed += _remove(held, stems, used=used)
        else:
            workspace = Workspace.at(directory, image)
            with as_errors(workspace), workspace.hold():
                removed += _remove(workspace, stems, used=used)
    return Tidied(removed, kept, neighbourhood.searched)


def remove_leftovers(image: Path) -> None:
    """Remove what a killed run has left in the place where this image's lifts are made."""
    workspace = Workspace(image)
    if workspace.path.is_dir():
        with as_errors(workspace), workspace.hold():
            pass  # whoever takes hold of it removes them


def _remove(workspace: Workspace, stems: Sequence[str], *, used: bool) -> list[Path]:
    removed = [path for stem in stems for path in workspace.remove_lift(stem, used=used)]
    old = workspace.path / NAME  # the one record of a directory, up to schema 2
    if old.exists() and not any(workspace.record_of(stem) == old for stem in workspace.lifts()):
        old.unlink()
        removed.append(old)
    return removed


def _parts(file: Path) -> list[Path]:
    workspace = Workspace.at(file.parent, file)
    return [*workspace.files_of(file.stem), workspace.record_of(file.stem)]


def _why_keep(neighbourhood: Neighbourhood, parts: Sequence[Path], ours: Sequence[Path]) -> str | None:
    return next((why for part in parts if (why := neighbourhood.why_keep(part, ours=ours)) is not None), None)
