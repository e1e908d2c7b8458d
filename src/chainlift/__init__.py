"""Measure what a long qcow2 snapshot chain costs, explain why, and lift that cost off.

The names below are the library's front door; each is imported when it is first used, so that a
``chainlift --help`` loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from chainlift._version import __version__

if TYPE_CHECKING:
    from chainlift.chain import Chain, ChainPolicy, Window, open_chain
    from chainlift.errors import ChainliftError

__all__ = ["Chain", "ChainPolicy", "ChainliftError", "Window", "__version__", "open_chain"]

_FRONT_DOOR = {
    "Chain": "chainlift.chain",
    "ChainPolicy": "chainlift.chain",
    "ChainliftError": "chainlift.errors",
    "Window": "chainlift.chain",
    "open_chain": "chainlift.chain",
}


def __getattr__(name: str) -> object:
    if name in _FRONT_DOOR:
        return getattr(import_module(_FRONT_DOOR[name]), name)
    raise AttributeError(f"module 'chainlift' has no attribute {name!r}")
