"""How every verb prints a table on the terminal; ``--json`` is each verb's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

#: A pipe has no width: there a table is as wide as it needs to be, up to this.
_PIPE_COLUMNS = 200


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Collection[int] = (),
    note: str = "",
) -> None:
    """Print a table on standard output, as wide as the terminal is at most.

    Control characters in it are made visible, so that a hostile file name cannot reach the terminal.

    :param title: its heading; ``""`` for none.
    :param columns: the headings of its columns.
    :param rows: what stands in them, one string a column.
    :param numeric: numbers of the columns that are aligned right and never broken over lines.
    :param note: a line under it.
    """
    import os

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chainlift.errors import one_line

    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console = Console(highlight=False, width=_PIPE_COLUMNS)
    # Without a frame at the sides; a narrow terminal needs the columns for figures.
    tight = console.width < 100
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1 if tight else 2, 0, 0))
    for number, heading in enumerate(columns):
        is_number = number in numeric
        table.add_column(
            Text(one_line(heading)),
            justify="right" if is_number else "left",
            no_wrap=is_number,
            overflow="fold",
            ratio=None,
        )
    for row in rows:
        table.add_row(*[Text(one_line(cell)) for cell in row])
    if title:
        console.print(Text(one_line(title), style="bold"))
    console.print(table)
    if note:
        console.print(Text(one_line(note), style="dim"))
    console.print()
