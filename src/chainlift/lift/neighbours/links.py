"""Other names of an image: relative names in its header count from the directory of the name that it is opened by."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def reached_by_link(image: Path) -> Path | None:
    """Return another name by which an image is reached from another directory, as far as one is seen.

    Looked at are the name itself, symbolic links in the directory above the image's, and hard links, wherever they are.
    Only absolute names in the header are right for all of them.

    :return: a link; the image itself where it has a hard link somewhere.
    """
    real = Path(os.path.realpath(image))
    home = real.parent
    named_in = Path(os.path.realpath(image.absolute().parent))
    if named_in != home:
        return image
    with suppress(OSError):
        if real.stat().st_nlink > 1:
            return image
    # Links in its own directory lead to the same relative names.
    with suppress(OSError), os.scandir(home.parent) as entries:
        for entry in entries:
            if entry.is_symlink() and Path(os.path.realpath(entry.path)) == real:
                return Path(entry.path)
    return None
