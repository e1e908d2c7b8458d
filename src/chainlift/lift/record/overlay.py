"""Which overlays beside a disk are of our making: a mark on the file itself.

libvirt switches a disk by copying its active layer into a new file, which then is an image like any other: its header
says what it stands on. That we have made it, and for which disk, is said by an extended attribute. It belongs to the
file and not to its name, names the inode, so that a copy of the file is nobody's, and ends with the file.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

from chainlift.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

_ATTRIBUTE: Final = "user.chainlift.overlay"

#: ``copy``: what libvirt copies the active layer into; ``snapshot``: what was put over the active layer first, so that
#: the copy is short; ``layer``: a copy of a layer that stands on something else than the layer itself; ``passing``: the
#: disk for a moment only, while what lies under its home is opened anew; it is merged into that.
Kind = Literal["copy", "snapshot", "layer", "passing"]


@dataclass(frozen=True)
class OverlayMark:
    """What an overlay of ours is for."""

    kind: Kind
    #: The domain's UUID, and the disk's target (``vda``).
    domain: str
    target: str
    #: The file that it stands on, absolute; None where it is a snapshot.
    over: str | None = None
    #: Whether it may ever have been a part of the disk; what never was is a leftover where nobody needs it.
    used: bool = False
    #: The file that the disk goes back to, absolute; None where the overlay remains the disk.
    home: str | None = None


def read_overlay_mark(image: Path) -> OverlayMark | None:
    """Return an overlay's mark; None for every other file."""
    try:
        data = json.loads(os.getxattr(image, _ATTRIBUTE))
        if data.pop("inode") != image.stat().st_ino:
            return None
        return OverlayMark(**data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_overlay_mark(image: Path, mark: OverlayMark) -> None:
    """Mark a file; what the mark said before is replaced.

    :raise InputError: if its file system keeps no such attributes.
    """
    data = json.dumps({**asdict(mark), "inode": image.stat().st_ino}).encode()
    try:
        os.setxattr(image, _ATTRIBUTE, data)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        raise InputError(
            "its file system keeps no extended attributes (user.*), by which an overlay of ours is known",
            path=image,
            hint="lift the image with its domain shut off, or through a QMP socket",
        ) from error
