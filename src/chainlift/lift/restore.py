"""Restore: back to the backing file that an image named before its lift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ImageError
from chainlift.lift.build.workspace import Workspace, as_errors
from chainlift.lift.neighbours.images import find_users
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.record.manifest import Manifest, Pointer
from chainlift.lift.record.source import find_source
from chainlift.lift.switch import require_writable, switch_pointer
from chainlift.lift.tidy import remove_unused
from chainlift.lift.verify import require_lift

if TYPE_CHECKING:
    import os

    from chainlift.qemu.binary import Qemu


def restore_lift(image: str | os.PathLike[str], qemu: Qemu, *, clean: bool = False) -> Manifest:
    """Make an image name its original backing file again.

    :param clean: remove the lift's files afterwards.
    :raise ImageError: if the image was not lifted, or the layers were deleted, or (with ``clean``) another image stands
        on the lift's files; then nothing was touched.
    """
    source = find_source(image)
    manifest = require_lift(source)
    workspace = Workspace(source.image)
    refuse_if_open(source.image)
    require_writable(source.image)
    if manifest.deleted:
        raise ImageError(
            "its original layers were deleted when it was squashed", path=source.image, hint="there is no way back"
        )
    if clean:
        refuse_if_used(source.image, manifest)
    with as_errors(workspace), workspace.hold():
        if source.current.name != manifest.original.name:
            switch_pointer(qemu, source.image, original_pointer(manifest))
        if clean:
            remove_unused(workspace, manifest, keep=[])
    return manifest


def original_pointer(manifest: Manifest) -> Pointer:
    """Return what the image is to name; newer QEMUs want a format even where the header had none."""
    pointer = manifest.original
    if pointer.format is None:
        return Pointer(name=pointer.name, format=manifest.layers[0].format)
    return pointer


def refuse_if_used(image: Path, manifest: Manifest) -> None:
    """Refuse if another image in the image's directory stands on a file of its lift.

    :raise ImageError: naming that image.
    """
    files = [Path(file.path) for file in manifest.files]
    for file, users in find_users(files, [image.parent]).items():
        others = [user for user in users if user != image]
        if others:
            raise ImageError(
                f"{others[0]} stands on it", path=file, hint="restore that image first, or leave --clean out"
            )
