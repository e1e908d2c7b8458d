"""The image that is to be lifted: what it names as its backing file, and the chain below it as it was before."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.chain import ChainPolicy
from chainlift.errors import ImageError
from chainlift.lift.record.identity import absolute_name
from chainlift.lift.record.lifts import Lift, find_lift, original_pointer
from chainlift.lift.record.pointer import open_pointer, read_pointer
from chainlift.qcow2.layout import CryptMethod

if TYPE_CHECKING:
    from chainlift.chain import Chain
    from chainlift.lift.record.manifest import Manifest, Pointer
    from chainlift.qcow2.header import Header

_POLICY: Final = ChainPolicy()


@dataclass(frozen=True)
class ImageState:
    """An image, what it stands on, and what it stood on before."""

    #: Absolute, as it was named: a symbolic link stays one, because relative names count from where it lies.
    image: Path
    header: Header
    #: What it stands on now.
    current: Pointer
    #: What it stood on before it was lifted: :attr:`current` where it is not lifted, or there is no way back.
    original: Pointer
    #: The lift that it stands on.
    lift: Lift | None

    @property
    def manifest(self) -> Manifest | None:
        """The record of the lift."""
        return None if self.lift is None else self.lift.manifest

    def open_original(self, policy: ChainPolicy = _POLICY) -> Chain:
        """Open the chain under the image, as it was before the lift."""
        return open_pointer(self.image, self.original, policy)


def read_image_state(image: str | os.PathLike[str], current: Pointer | None = None) -> ImageState:
    """Look at an image that is to be lifted, or is.

    :param current: what it stands on where that is known better than by its header: of a running disk.
    :raise ImageError: if it is no qcow2 image, has no backing file, or the record of its lift is gone.
    """
    path = Path(absolute_name(os.fspath(image)))
    header, named = read_pointer(path)
    current = current or named
    if current is None:
        raise ImageError("has no backing file: there is no chain to lift", path=path)
    if header.crypt_method is not CryptMethod.NONE:
        raise ImageError(f"is encrypted ({header.crypt_method.name}): no tool can change what it names", path=path)
    lift = find_lift(path, current)
    if lift is not None and not lift.is_as_built:
        lift = None  # what was written to it since is in none of the layers that it was made of
    original = current
    if lift is not None and lift.can_be_undone:
        original = original_pointer(path, lift)[0]
    return ImageState(path, header, current, original, lift)
