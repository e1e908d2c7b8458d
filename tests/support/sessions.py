"""The sessions of a page under docs/: what is typed there, and what it is said to answer.

A session is a block that is indented by four spaces. A line that begins with ``# `` or ``$ `` is typed, what follows is
the answer; lines are wrapped for people, so white space does not count. ``...`` stands for anything, and any number
for any other: figures are measured, and the test says what they are to be where that is known.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
_TYPED = re.compile(r"^[#$] ")
_NUMBER = re.compile(r"\d[\d.,]*(?:\s(?:B|KiB|MiB|GiB|ms|s)\b)?")


@dataclass(frozen=True)
class Typed:
    """A command of a page and its answer; a block without a prompt is one command that answers nothing."""

    command: str
    answer: str

    def arguments(self, replace: Mapping[str, str]) -> list[str]:
        """Return the words of the command, with other paths in place of the page's."""
        return [replaced(word, replace) for word in shlex.split(self.command.replace("\\\n", " "))]

    def run(self, replace: Mapping[str, str], *, status: int = 0) -> str:
        """Type it, and fail unless it answers as the page says.

        :param replace: what stands in place of the page's own paths.
        :return: what it said on both streams. A command that took long on a busy machine is warned of; the page need
            not have that.
        """
        program, *arguments = self.arguments(replace)
        argv = [sys.executable, "-m", "chainlift", *arguments] if program == "chainlift" else [program, *arguments]
        # A terminal as wide as the page would cut table cells where the page does not.
        environment = {**os.environ, "COLUMNS": "160"}
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, env=environment
        )
        assert done.returncode == status, f"{self.command}: status {done.returncode}: {done.stdout}"
        lines = [line for line in done.stdout.splitlines() if "stood still meanwhile" not in line]
        self.require("\n".join(lines), replace)
        return done.stdout

    def require(self, said: str, replace: Mapping[str, str]) -> None:
        """Fail unless something that was said is what the page says."""
        expected, got = (" ".join(text.split()) for text in (replaced(self.answer, replace), said))
        pattern = ".*".join(_anyhow(part) for part in expected.split("..."))
        assert re.fullmatch(pattern, got), f"{self.command}\nsaid:     {got}\nthe page: {expected}"


def sessions(page: str) -> list[list[Typed]]:
    """Return the sessions of a page, in its order."""
    text = (_DOCS / page).read_text()
    return [_parse(block) for block in _BLOCK.findall(text)]


def typed(page: str) -> list[Typed]:
    """Return every command of a page that has a prompt, in its order."""
    return [each for block in sessions(page) for each in block if each.answer or "\n" not in each.command]


def _parse(block: str) -> list[Typed]:
    lines = [line[4:] for line in block.splitlines()]
    if not any(_TYPED.match(line) for line in lines):
        return [Typed("\n".join(lines), "")]
    found: list[tuple[list[str], list[str]]] = []
    for line in lines:
        if _TYPED.match(line):
            found.append(([line[2:]], []))
        elif found and not found[-1][1] and found[-1][0][-1].endswith("\\"):
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
    return [Typed("\n".join(command), "\n".join(answer)) for command, answer in found]


def replaced(text: str, replace: Mapping[str, str]) -> str:
    """Replace names of a page, all at once: what one becomes may be another one of the page's.

    Where one begins with another, the longer is meant.
    """
    names = re.compile("|".join(map(re.escape, sorted(replace, key=len, reverse=True))))
    return names.sub(lambda found: replace[found[0]], text) if replace else text


def _anyhow(text: str) -> str:
    """Return a pattern for a text, whatever its numbers are."""
    parts, at = [], 0
    for number in _NUMBER.finditer(text):
        parts += [re.escape(text[at : number.start()]), _NUMBER.pattern]
        at = number.end()
    return "".join([*parts, re.escape(text[at:])])
