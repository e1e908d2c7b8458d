"""Every lift that a disk stands on, anywhere in its chain, and the pointers that take them out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.chain.names import format_reference
from chainlift.errors import ImageError
from chainlift.lift.disk import Change
from chainlift.lift.neighbours.links import reached_by_link
from chainlift.lift.record.lifts import Lift, find_lift, original_pointer
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import led_to, read_pointer, refer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.layout import QCOW_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.chain.names import Reference
    from chainlift.lift.disk import Disk, Standing

_MOST_IMAGES: Final = 10_000
_MAGIC: Final = QCOW_MAGIC.to_bytes(4, "big")


@dataclass(frozen=True)
class FoundLift:
    """A lift that one image of a chain stands on."""

    #: The lift itself.
    lift: Lift
    #: What takes it out.
    change: Change
    #: Whether the new pointer leads to the very layer that was recorded; if not, every byte is to be compared.
    is_certain: bool


def find_lifts(disk: Disk, *, as_far_as_possible: bool = False) -> list[FoundLift]:
    """Return every lift in a disk's chain that can be taken out, the uppermost first.

    Below a lift the search goes on along the chain that it stands for: layers of it may stand on lifts of their own.

    :param as_far_as_possible: end where the chain is broken below a lift, instead of raising.
    :raise ImageError: if a header cannot be read, the record of a lift is gone, or a layer that a lift was made of is.
    """
    found: list[FoundLift] = []
    try:
        for entry in _walk(disk.image, disk.standing()):
            found.append(entry)  # noqa: PERF402 - what was found before an error counts
    except ImageError:
        if not (as_far_as_possible and found):
            raise
    return found


def _walk(image: Path, standing: Sequence[Standing]) -> Iterator[FoundLift]:
    known = {os.path.realpath(entry.image): entry.pointer for entry in standing}
    seen = {os.path.realpath(image)}
    pointer = known.get(os.path.realpath(image), _header_pointer(image))
    for _ in range(_MOST_IMAGES):
        if pointer is None:
            return
        lift = find_lift(image, pointer)
        if lift is not None and lift.can_be_undone:
            try:
                original, is_certain = original_pointer(image, lift)
                original = _for_all_names(image, original)
            except ImageError:
                yield FoundLift(lift, Change(image, pointer, lift.manifest.original), is_certain=False)
                raise
            certain = is_certain and lift.is_as_built
            yield FoundLift(lift, Change(image, pointer, original, lift.moved_pointer(image, pointer)), certain)
            pointer = original
            continue
        reference = refer(image, pointer)
        overriding = _lift_in(reference)
        if overriding is not None:
            # QEMU writes such a name where it took a snapshot over a node that was switched: the image that it
            # overrides has a header of its own, which says what it stands on.
            plain = Pointer(name=os.path.abspath(reference.path), format=reference.format)  # noqa: PTH100
            yield FoundLift(overriding, Change(image, pointer, plain), is_certain=False)
            pointer = plain
            continue
        while not reference.follows_header:
            if reference.backing is None:
                return
            reference = reference.backing
        if reference.is_descriptor:
            return
        image = Path(os.path.abspath(reference.path))  # noqa: PTH100 - as QEMU resolves names
        if os.path.realpath(image) in seen:
            hint = "what was lifted stands on the image by now: nothing can be taken out"
            raise ImageError("would be its own backing file", path=image, hint=hint)
        seen.add(os.path.realpath(image))
        pointer = known.get(os.path.realpath(image), _header_pointer(image))
    raise ImageError(f"has more than {_MOST_IMAGES} images under it", path=image)


def _for_all_names(image: Path, pointer: Pointer) -> Pointer:
    """Make a relative name absolute where the image is reached by links: through the lift it opens by each of them."""
    reference = refer(image, pointer)
    if pointer.name.startswith(("/", "json:")) or not reference.follows_header or reached_by_link(image) is None:
        return pointer
    return replace(pointer, name=str(led_to(image, pointer)))


def merged(found: Sequence[FoundLift]) -> list[Change]:
    """Return the changes that take lifts out, the lowest first, one for each image."""
    changes: dict[Path, Change] = {}
    for entry in found:
        change = entry.change
        before = changes.pop(change.owner, None)
        changes[change.owner] = change if before is None else replace(before, new=change.new)
    return list(reversed(changes.values()))


def _lift_in(reference: Reference) -> Lift | None:
    """Return a lift that a name puts under the image that it names, in place of what that image's header says."""
    backing = None if reference.follows_header else reference.backing
    while backing is not None:
        pointer = Pointer(name=format_reference(backing), format=backing.format)
        lift = find_lift(Path(reference.path), pointer)
        if lift is not None and lift.can_be_undone:
            return lift
        backing = None if backing.follows_header else backing.backing
    return None


def _header_pointer(image: Path) -> Pointer | None:
    """Return what an image's header names, None for a raw one."""
    file = ImageFile(str(image))
    try:
        if file.pread(0, 4) != _MAGIC:
            return None
    finally:
        file.close()
    return read_pointer(image)[1]
