"""Texts that fit the terminal: shortened in the middle, or broken over lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from chainlift.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text that is wider than so many columns."""
    if len(text) <= width:
        return text
    keep = width - 3
    return text[: keep // 3] + "..." + text[len(text) - (keep - keep // 3) :]


def wrapped(before: str, text: str, width: int, *, dim: bool = False) -> Iterator[str]:
    """Break a text over lines at its spaces; a command is left for the terminal to break, so that it can be copied.

    :param before: what stands before the text; a sign at its end is only before the first line.
    :param width: columns.
    """
    text = one_line(text)
    command = text.find("chainlift ")
    indent = len(click.unstyle(before))
    rest = "" if command < 0 else text[command:]
    words = text.split(" ") if command < 0 else [*text[:command].split(" ")[:-1], rest]
    line = ""
    first = True
    for word in words:
        if line and indent + len(line) + 1 + len(word) > width:
            yield _styled(before if first else _continued(before), line, dim=dim)
            first, line = False, word
        else:
            line = f"{line} {word}" if line else word
    if line:
        yield _styled(before if first else _continued(before), line, dim=dim)


def _continued(before: str) -> str:
    """Return what stands before the lines after the first: a sign is not said again."""
    plain = click.unstyle(before)
    is_sign = plain.endswith(" ") and not plain.endswith("  ")
    return plain[:-2] + "  " if is_sign else plain


def _styled(before: str, line: str, *, dim: bool) -> str:
    return before + (click.style(line, dim=True) if dim else line)
