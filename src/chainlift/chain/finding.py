"""What is noteworthy about a chain, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: Literal["note", "warning", "problem"]
    #: What is the case.
    what: str
    #: What to do; empty where nothing needs to be done.
    action: str
    #: The layers concerned, by depth.
    depths: tuple[int, ...] = ()
