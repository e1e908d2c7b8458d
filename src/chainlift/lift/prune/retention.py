"""Which snapshots rules like ``--keep-daily 7`` keep, with the meaning that borg gives these words.

See ``prune_split()`` in borg's ``archiver/prune_cmd.py`` and "borg prune visualized" in its documentation. Rules are
applied from the finest to the coarsest. Each goes through the snapshots from the newest to the oldest and keeps the
newest of each period of the local time zone, until it has kept its number; what a finer rule keeps does not count, and
periods without a snapshot do not either. A rule that has not found its number keeps the oldest snapshot as well.

restic counts what a finer rule keeps, too: all that it would keep is kept here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Rule -> the period that a time is in, for strftime; weeks are those of ISO 8601, from Monday on.
_PERIODS: Final = {"hourly": "%Y-%m-%d %H", "daily": "%Y-%m-%d", "weekly": "%G-%V", "monthly": "%Y-%m"}


@dataclass(frozen=True)
class Retention:
    """How many snapshots each rule keeps; -1 keeps one of every period."""

    #: The newest ones.
    last: int = 0
    #: The newest of each of so many hours.
    hourly: int = 0
    #: The newest of each of so many days.
    daily: int = 0
    #: The newest of each of so many weeks, from Monday on.
    weekly: int = 0
    #: The newest of each of so many months.
    monthly: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read rules in a word: ``last=24,daily=7``.

        :raise ValueError: saying what is wrong.
        """
        known = [rule.name for rule in fields(cls)]
        found: dict[str, int] = {}
        for word in text.split(","):
            name, equals, count = (part.strip() for part in word.partition("="))
            if name not in known or not equals:
                raise ValueError(f"{word.strip()!r} is no rule: {', '.join(f'{rule}=N' for rule in known)}")
            if name in found:
                raise ValueError(f"{name} is said twice")
            if not count.removeprefix("-").isdecimal() or int(count) < -1:
                raise ValueError(f"{count!r} is no number of snapshots")
            found[name] = int(count)
        made = cls(**found)
        if made.keeps_nothing:
            raise ValueError("keeps nothing: last=24, say")
        return made

    def __str__(self) -> str:
        """Return the rules as :meth:`parse` reads them."""
        return ",".join(f"{name}={count}" for name, count in vars(self).items() if count)

    @property
    def keeps_nothing(self) -> bool:
        """Whether no rule says anything."""
        return not any(vars(self).values())

    def kept(self, times_s: Sequence[float]) -> dict[int, str]:
        """Choose among snapshots.

        :param times_s: when each was taken, the newest first; seconds since the epoch.
        :return: number of each snapshot that is kept -> why: ``daily 3``.
        """
        found = {number: f"last {number + 1}" for number in range(len(times_s)) if 0 <= number < self.last}
        if self.last < 0:
            found = {number: f"last {number + 1}" for number in range(len(times_s))}
        for rule, pattern in _PERIODS.items():
            self._apply(rule, getattr(self, rule), [_period(time_s, pattern) for time_s in times_s], found)
        return found

    def _apply(self, rule: str, wanted: int, periods: Sequence[str], found: dict[int, str]) -> None:
        count = 0
        if not wanted or not periods:
            return
        for number in _newest_of_each(periods):
            if number in found:
                continue
            count += 1
            found[number] = f"{rule} {count}"
            if count == wanted:
                return
        if count < wanted:
            found.setdefault(len(periods) - 1, f"{rule} {count + 1}, the oldest")


@dataclass(frozen=True)
class Policy:
    """Which snapshots go by themselves."""

    retention: Retention
    #: A pattern for the names of files: all others stay.
    only: str | None = None

    def __str__(self) -> str:
        """Say it in a phrase."""
        return f"{self.retention}{'' if self.only is None else f' of {self.only}'}"


def _newest_of_each(periods: Sequence[str]) -> Iterator[int]:
    last = None
    for number, period in enumerate(periods):
        if period != last:
            last = period
            yield number


def _period(time_s: float, pattern: str) -> str:
    return datetime.fromtimestamp(time_s, UTC).astimezone().strftime(pattern)
