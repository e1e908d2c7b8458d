"""A table as data: for the terminal, for ``--json`` and for the page."""

from __future__ import annotations

from dataclasses import dataclass, replace

Value = str | int | float | None


@dataclass(frozen=True)
class Column:
    """One column: the name of its values in JSON, its heading, and whether figures stand in it."""

    key: str
    title: str
    numeric: bool = True
    #: Whether people see it; one that they do not see has what another column's text says too.
    shown: bool = True


@dataclass(frozen=True)
class Entry:
    """One field: the value with the unit its column's key names, and how it is written for people."""

    value: Value
    text: str


@dataclass(frozen=True)
class Table:
    """A table with its title; every row has one entry a column."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Entry, ...], ...]
    note: str = ""
    #: Whether people see it; of one that they do not see, every row says what a sentence says once.
    shown: bool = True

    @property
    def visible(self) -> Table:
        """The table without the columns that people do not see."""
        kept = [number for number, column in enumerate(self.columns) if column.shown]
        rows = tuple(tuple(row[number] for number in kept) for row in self.rows)
        return replace(self, columns=tuple(self.columns[number] for number in kept), rows=rows)

    def as_data(self) -> dict[str, object]:
        """Return the table as JSON has it: ``{"title": ..., "rows": [{key: value}]}``."""
        keys = [column.key for column in self.columns]
        return {
            "title": self.title,
            "rows": [dict(zip(keys, [e.value for e in row], strict=True)) for row in self.rows],
        }
