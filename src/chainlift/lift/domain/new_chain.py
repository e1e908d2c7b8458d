"""What a domain's disk is to stand on: images that change are copied, and none that is there is touched."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.build.header import name_backing_file
from chainlift.lift.domain.overlay import copy_layer
from chainlift.lift.domain.snapshots import Place
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.overlay import read_overlay_mark, write_overlay_mark
from chainlift.lift.record.pointer import led_to, read_pointer, refer
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.lift.disk import Change
    from chainlift.lift.record.overlay import OverlayMark
    from chainlift.qemu.binary import Qemu

_MOST_IMAGES: Final = 10_000


@dataclass
class NewChain:
    """What the overlay is to stand on."""

    #: Its name is absolute.
    pointer: Pointer
    #: Images that others stand in for, the active layer first, each with what it stands on.
    before: list[Place] = field(default_factory=list)
    #: Copies of all of them but the active layer, the lowest first.
    copies: list[Path] = field(default_factory=list)
    #: What the lowest copy stands on, or else the overlay.
    bottom: Path = field(default_factory=Path)

    def moved(self, overlay: Path) -> list[tuple[Place, Place]]:
        """Return each image and what it stood on, and what is in their place."""
        now = [overlay, *reversed(self.copies), self.bottom]
        return [(old, Place(*new)) for old, new in zip(self.before, pairwise(now), strict=True)]

    def mark_used(self) -> None:
        """Say that the copies may be a part of the disk from now on."""
        for path in self.copies:
            mark = read_overlay_mark(path)
            if mark is not None:
                write_overlay_mark(path, replace(mark, used=True))

    def discard(self) -> None:
        """Remove the copies: nobody uses them."""
        for path in reversed(self.copies):
            with suppress(OSError):
                path.unlink()


def prepare_chain(image: Path, changes: Sequence[Change], mark: OverlayMark, qemu: Qemu | None) -> NewChain:
    """Prepare what an overlay over a disk's chain is to stand on, once the changes are made.

    An image under the active layer that is to stand on something else is copied, and so are those between: the
    snapshots that they are stay what they are.

    :param mark: of the copies.
    :param qemu: whose ``qemu-img`` writes the names into the copies; None: the host's.
    :raise ImageError: if a name in the chain is none that libvirt takes.
    """
    images, names = _walk(image, changes)
    new = NewChain(names[-1], bottom=Path(names[-1].name))
    for layer in images:
        pointer = read_pointer(layer)[1]
        new.before.append(Place(layer, layer if pointer is None else led_to(layer, pointer)))
    try:
        for layer in reversed(images[1:]):
            copy = copy_layer(layer, replace(mark, over=new.pointer.name))
            new.copies.append(copy)
            name_backing_file(qemu or find_qemu(need=["img"]), copy, new.pointer)
            new.pointer = Pointer(str(copy), "qcow2")
    except BaseException:
        new.discard()
        raise
    return new


def _walk(image: Path, changes: Sequence[Change]) -> tuple[list[Path], list[Pointer]]:
    """Return the images from the active layer down to the lowest that changes, and what each stands on then."""
    left = list(changes)
    images: list[Path] = []
    names: list[Pointer] = []
    current: Path | None = image
    while left:
        if current is None or len(images) > _MOST_IMAGES:
            raise ImageError("is no layer of the chain any more", path=left[0].owner, hint="run it again")
        change = next((each for each in left if is_same_file(each.owner, current)), None)
        if change is not None:
            left.remove(change)
        pointer = read_pointer(current)[1] if change is None else change.new
        images.append(current)
        if pointer is None:
            current = None
            continue
        names.append(_plain(current, pointer))
        current = Path(names[-1].name)
    return images, names


def _plain(image: Path, pointer: Pointer) -> Pointer:
    reference = refer(image, pointer)
    if reference.is_descriptor or not reference.follows_header:
        raise ImageError(
            f"would stand on {pointer.name}, which libvirt does not open",
            path=image,
            hint="shut the domain off and restore it at rest",
        )
    return Pointer(os.fspath(led_to(image, pointer)), pointer.format or reference.format or "qcow2")
