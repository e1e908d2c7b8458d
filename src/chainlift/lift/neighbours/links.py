"""Other names of an image: relative names in its header count from the directory of the name that it is opened by."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: So many names are looked at, which takes some 20 ms.
_MOST_NAMES: Final = 50_000


def reached_by_link(image: Path) -> Path | None:
    """Return another name by which an image is reached from another directory, as far as one is seen.

    Looked at are the name itself, hard links, wherever they are, and symbolic links in the directory above the image's
    and in those beside it. Only absolute names in the header are right for all of them.

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
    for entry in islice(_names(home.parent, but=home), _MOST_NAMES):
        if entry.is_symlink() and Path(os.path.realpath(entry.path)) == real:
            return Path(entry.path)
    return None


def _names(place: Path, *, but: Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a directory, and in the directories there."""
    with suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False) and entry.path != str(but):
                with suppress(OSError), os.scandir(entry.path) as inner:
                    yield from inner
