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
    from chainlift.lift.disk import Disk
    from chainlift.lift.open import open_disk
    from chainlift.lift.plan import plan
    from chainlift.lift.verbs import index, restore, squash
    from chainlift.lift.verify import verify

__all__ = [
    "Chain",
    "ChainPolicy",
    "ChainliftError",
    "Disk",
    "Window",
    "__version__",
    "index",
    "open_chain",
    "open_disk",
    "plan",
    "restore",
    "squash",
    "verify",
]

_FRONT_DOOR = {
    "Chain": "chainlift.chain",
    "ChainPolicy": "chainlift.chain",
    "ChainliftError": "chainlift.errors",
    "Disk": "chainlift.lift.disk",
    "Window": "chainlift.chain",
    "index": "chainlift.lift.verbs",
    "open_chain": "chainlift.chain",
    "open_disk": "chainlift.lift.open",
    "plan": "chainlift.lift.plan",
    "restore": "chainlift.lift.verbs",
    "squash": "chainlift.lift.verbs",
    "verify": "chainlift.lift.verify",
}


def __getattr__(name: str) -> object:
    if name in _FRONT_DOOR:
        return getattr(import_module(_FRONT_DOOR[name]), name)
    raise AttributeError(f"module 'chainlift' has no attribute {name!r}")
