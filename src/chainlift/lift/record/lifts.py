"""The lift that a pointer leads to. Names of images and directories play no part: what a header names decides."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ChainliftError, ImageError, InputError
from chainlift.lift.record.manifest import NAME, SUFFIX, Manifest, Pointer, read_manifest
from chainlift.lift.record.note import read_note
from chainlift.lift.record.pointer import backing_name, index_descriptor, led_to

if TYPE_CHECKING:
    from chainlift.lift.record.manifest import FileIdentity

LIFT_SUFFIX: Final = ".lift"


@dataclass(frozen=True)
class Lift:
    """A lift that an image stands on."""

    #: What the pointer leads to: the descriptor of an index, or a squash.
    file: Path
    #: What it says of itself.
    manifest: Manifest
    #: Where the record is.
    record: Path

    def moved_pointer(self, image: Path, pointer: Pointer) -> Pointer | None:
        """Return a name for the lift where it is now, if a pointer leads to where it was."""
        if led_to(image, pointer) == self.file:
            return None
        name = backing_name(self.file) if self.manifest.kind == "index" else str(self.file)
        return Pointer(name=name, format="qcow2")

    @property
    def is_as_built(self) -> bool:
        """Whether it is what was built: QEMU and libvirt may merge into a squash, as into any layer.

        Nobody can write to an index; a copy may have another time.
        """
        if self.manifest.kind != "squash" or not self.manifest.files:
            return True
        built = self.manifest.files[-1]
        try:
            now = self.file.stat()
        except OSError:
            return True  # whoever opens it says so
        return (now.st_size, now.st_mtime_ns) == (built.size_bytes, built.mtime_ns)

    @property
    def was_written_to(self) -> bool:
        """Whether somebody has written to this very file: the layers that it was made of do not have that."""
        return not self.is_as_built and is_file(self.file, self.manifest.files[-1])

    @property
    def can_be_undone(self) -> bool:
        """Whether there is a way back.

        Where its layers were deleted, or it was written to, a squash is a layer like any other.
        """
        return not self.manifest.deleted and not self.was_written_to


def lift_directory(image: Path) -> Path:
    """Return where a lift of this image is made, if nothing else is asked for."""
    return image.with_name(image.name + LIFT_SUFFIX)


def find_lift(image: Path, pointer: Pointer) -> Lift | None:
    """Return the lift that a pointer of an image leads to, or None where it leads to anything else.

    Where the file is not there, the record may still be: an image and the directory of its lift were moved together.
    It is taken only if it says of itself that it belongs to this very pointer.

    :raise ImageError: if it leads to an index whose record is gone; the text says how to get back.
    """
    try:
        file = led_to(image, pointer)
    except InputError:
        return None
    candidates = [file]
    if file.parent.name.endswith(LIFT_SUFFIX) and not file.exists():
        candidates.append(image.parent / file.parent.name / file.name)
    for candidate in candidates:
        found = _record_of(candidate)
        if found is not None and (candidate == file or _is_of(found[1], pointer)):
            return Lift(candidate, found[1], found[0])
    if index_descriptor(pointer.name) is not None or (_looks_like_ours(file) and not file.exists()):
        raise lost(image, file)
    return None


def lost(image: Path, file: Path) -> ImageError:
    """Return the error for an image that stands on a lift whose record is gone, with what is known of the way back."""
    what = "stands on a lift that is gone" if not file.exists() else "stands on a lift whose record is gone"
    for directory in dict.fromkeys((file.parent, image.parent / file.parent.name)):
        try:
            way = read_note(directory).get(file.name)
        except ImageError:
            continue
        if way is not None and not way.deleted:
            form = way.original.format or "qcow2"
            name = way.original.name
            if way.original_path is not None and not _leads_there(image, way.original, Path(way.original_path)):
                name = way.original_path
            command = f"qemu-img rebase -u -F {form} -b {shlex.quote(name)} {shlex.quote(str(image))}"
            return ImageError(f"{what} ({file})", path=image, hint=f"what it named before: {command}")
    hint = "name the original backing file with qemu-img rebase -u"
    return ImageError(f"{what} ({file})", path=image, hint=hint)


def original_pointer(image: Path, lift: Lift) -> tuple[Pointer, bool]:
    """Return what an image is to name when the lift that it stands on is taken out.

    That is the original name, wherever it still leads to the layer that the lift was made of, or where layers and lift
    were copied or moved together; else, for an image that was moved or copied away from its layers, that layer's
    absolute name.

    :return: the pointer, and whether it leads to just that layer; if not (everything was moved or copied together),
        only a comparison of every byte can tell.
    :raise ImageError: if neither is there.
    """
    manifest = lift.manifest
    pointer = manifest.original
    if pointer.format is None and manifest.layers:  # newer QEMUs want one even where the header had none
        pointer = Pointer(name=pointer.name, format=manifest.layers[0].format)
    try:
        here = led_to(image, pointer)
    except InputError:
        return pointer, False
    layer = manifest.layers[0].identity if manifest.layers else None
    known = manifest.original_path or (layer.path if layer is not None else None)
    if layer is None or known is None or index_descriptor(pointer.name) is not None:
        return pointer, False
    if is_file(here, layer):
        return pointer, True
    is_copy = bool(manifest.files) and not is_file(lift.file, manifest.files[-1])
    if is_file(Path(known), layer) and not (is_copy and here.exists()):
        return Pointer(name=known, format=pointer.format), True
    if here.exists():
        return pointer, False
    raise ImageError("is gone", path=here, hint=f"{image} cannot be taken off its lift without it")


def is_file(path: Path, identity: FileIdentity) -> bool:
    """Whether a name leads to the very file that was recorded, whatever was written to it since."""
    try:
        status = path.stat()
    except OSError:
        return False
    return (status.st_dev, status.st_ino) == (identity.device, identity.inode)


def _record_of(file: Path) -> tuple[Path, Manifest] | None:
    """Return the record beside a lift's file, if it speaks of this file."""
    for path in (file.with_suffix(SUFFIX), file.with_name(NAME)) if file.name else ():
        if not os.path.lexists(path):
            continue
        try:
            manifest = read_manifest(path)
        except ImageError:
            # Beside somebody's qcow2 image somebody's file may end in .json.
            if _looks_like_ours(file):
                raise
            continue
        if any(Path(known.path).name == file.name for known in manifest.files):
            return path, manifest
    return None


def is_lift_file(path: str) -> bool:
    """Whether a file has the name and the place that a lift's have: a hint for people, by which nothing is decided."""
    return _looks_like_ours(Path(path))


def _looks_like_ours(file: Path) -> bool:
    stem, _, number = file.stem.rpartition("-")
    ours = (stem, file.suffix) in (("index", ".vmdk"), ("squash", ".qcow2")) and number.isdecimal()
    return ours and file.parent.name.endswith(LIFT_SUFFIX)


def _is_of(manifest: Manifest, pointer: Pointer) -> bool:
    """Whether a record belongs to this pointer; QEMU may have written the same name in its own way."""
    now, then = pointer.name, manifest.lifted.name
    return now == then or ((found := index_descriptor(now)) is not None and found == index_descriptor(then))


def _leads_there(image: Path, pointer: Pointer, path: Path) -> bool:
    try:
        return led_to(image, pointer).samefile(path)
    except (OSError, ChainliftError):
        return False
