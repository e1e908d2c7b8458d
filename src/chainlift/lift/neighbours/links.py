"""Other names of an image: relative names in its header count from the directory of the name that it is opened by."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def reached_by_link(image: Path) -> Path | None:
    """Return another name by which an image is reached from another directory, as far as one is seen.

    Looked for are the name itself, symbolic links in the image's directory and the one above, and hard links.
    Only absolute names in the header are right for all of them.

    :return: a link; the image itself where it has a hard link somewhere.
    """
    if image.is_symlink():
        return image
    with suppress(OSError):
        if image.stat().st_nlink > 1:
            return image
    real = os.path.realpath(image)
    directory = image.absolute().parent
    for place in (directory, directory.parent):
        with suppress(OSError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink() and os.path.realpath(entry.path) == real:
                    return Path(entry.path)
    return None
