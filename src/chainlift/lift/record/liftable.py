"""Whether a chain's clusters can be pointed at and copied."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.errors import ImageError, InputError
from chainlift.qcow2.layout import Incompatible

if TYPE_CHECKING:
    from chainlift.chain import Chain


def require_liftable(chain: Chain) -> None:
    """Refuse layers whose clusters cannot be pointed at or copied.

    :raise ImageError: naming the layer.
    :raise InputError: if a file of the chain is a part of no file system.
    """
    for layer in chain.layers:
        if layer.image is not None:
            layer.image.require_plain()
            corrupt = Incompatible.CORRUPT in layer.image.header.incompatible_features
            if corrupt and not isinstance(layer.file, ExtentsFile):  # an index is marked so that nobody writes to it
                hint = "look at it with qemu-img check; -r all repairs it, or copies what can be read"
                raise ImageError("is marked as corrupt", path=layer.path, hint=hint)
        if layer.path.startswith("json:"):
            raise InputError("cannot be named in a lift", path=layer.path)
