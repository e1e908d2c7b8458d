"""Where chainlift keeps what it can make again: unpacked packages, guests, built chains."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(*parts: str) -> Path:
    """Return (and make) a directory below chainlift's cache.

    ``$CHAINLIFT_CACHE`` if set, else ``$XDG_CACHE_HOME/chainlift``, else ``~/.cache/chainlift``.
    """
    if chosen := os.environ.get("CHAINLIFT_CACHE"):
        root = Path(chosen)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        root = Path(xdg) / "chainlift"
    else:
        root = Path.home() / ".cache" / "chainlift"
    path = root.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path
