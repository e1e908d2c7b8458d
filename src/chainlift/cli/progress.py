"""Progress on standard error: a live line on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from chainlift.errors import one_line

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class TerminalProgress:
    """Shows stage, steps, elapsed and remaining time; a :class:`chainlift.study.progress.Progress`.

    As a context manager it takes the live line away at the end. Where standard error is no terminal, each stage is a
    line with the time since the start, and a stage with steps gives a line each minute at most.
    """

    def __init__(self) -> None:
        self._started = self._said = time.monotonic()
        self._stage = ""
        self._total: int | None = None
        #: The first step of the stage that was told, and when.
        self._first: tuple[int, float] | None = None
        self._rich: RichProgress | None = None
        self._task: TaskID | None = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self._rich = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[count]}", markup=False),
                TimeElapsedColumn(),
                TextColumn("left"),
                # A probe at a long chain takes many times one at a short chain: look far back for an average.
                TimeRemainingColumn(),
                TextColumn("{task.fields[doing]}", style="dim", markup=False),
                console=Console(stderr=True, highlight=False),
                speed_estimate_period=3600,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._rich is not None:
            self._rich.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rich is not None:
            self._rich.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage."""
        self._stage, self._total, self._first = one_line(name), total, None
        if self._rich is None:
            self._line(self._stage)
            return
        if self._task is not None:
            self._rich.remove_task(self._task)
        self._task = self._rich.add_task(self._stage, total=total, count="", doing="")

    def step(self, done: int, note: str = "") -> None:
        """Say how far the stage is."""
        count = f"{done}/{self._total}" if self._total else str(done)
        if self._rich is not None and self._task is not None:
            # The first step of a stage that continues is not progress of this run: it starts the estimate.
            self._rich.update(self._task, completed=done, count=count, doing=one_line(note))
            return
        if self._first is None:
            self._first = done, time.monotonic()
        if time.monotonic() - self._said >= 60:
            self._line(f"{self._stage}: {count}{self._left(done)} {one_line(note)}")

    def _left(self, done: int) -> str:
        """Estimate what is left of the stage from what its steps took; the first one that is seen does not count."""
        first, since = self._first or (done, 0.0)
        if not self._total or done <= first:
            return ""
        from chainlift.units import format_seconds

        each = (time.monotonic() - since) / (done - first)
        return f", about {format_seconds(each * (self._total - done))} left"

    def note(self, line: str) -> None:
        """Tell a line that stays."""
        if self._rich is not None:
            self._rich.console.print(one_line(line), markup=False)
        else:
            self._line(one_line(line))

    def _line(self, text: str) -> None:
        self._said = time.monotonic()
        elapsed = int(self._said - self._started)
        print(f"[{elapsed // 60:3d}:{elapsed % 60:02d}] {text}", file=sys.stderr, flush=True)  # noqa: T201
