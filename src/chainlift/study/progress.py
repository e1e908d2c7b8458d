"""What a study tells about its progress while it runs; how that looks is the command line's business."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told what a study is doing."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of ``total`` steps (None: not known); the stage before it is over."""

    def step(self, done: int, note: str = "") -> None:
        """Say how many steps of the stage are done, and what is being done now."""

    def note(self, line: str) -> None:
        """Tell something that is worth a line of its own: a fallback, a crash that was recorded."""


class Silent:
    """A :class:`Progress` that tells nobody."""

    def stage(self, name: str, total: int | None = None) -> None:
        """Do nothing."""

    def step(self, done: int, note: str = "") -> None:
        """Do nothing."""

    def note(self, line: str) -> None:
        """Do nothing."""
