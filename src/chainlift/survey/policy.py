"""Which snapshots are to stay, in the words of ``chainlift prune``."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError, InputError
from chainlift.lift.prune.choose import layer_time_s
from chainlift.lift.prune.retention import Retention
from chainlift.survey.words import shell_word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain.layer import Layer

_RULES: Final = ("last", "hourly", "daily", "weekly", "monthly")
_EXAMPLE: Final = "'--keep-last 24 --keep-daily 7'"


@dataclass(frozen=True)
class Policy:
    """Rules of ``chainlift prune``."""

    retention: Retention
    #: The rules are for files of such a name; all others stay.
    only: str | None = None

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read rules as they are written for ``chainlift prune``: ``--keep-last 24 --only 'auto-*'``.

        :raise InputError: if it is something else, or keeps nothing.
        """
        counts: dict[str, int] = {}
        only = None
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise InputError(f"a policy cannot be read: {error}", hint=f"for example {_EXAMPLE}") from error
        given = iter([part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])])
        for option in given:
            value = next(given, None)
            rule = option.removeprefix("--keep-")
            if option == "--only" and value is not None:
                only = value
            elif option.startswith("--keep-") and rule in _RULES and value is not None and _is_count(value):
                counts[rule] = int(value)
            else:
                is_rule = value is not None and rule in _RULES
                what = f"{value!r} is no number of snapshots" if is_rule else f"a policy has no {option!r}"
                raise InputError(what, hint=f"it is made of chainlift prune's options: {_EXAMPLE}")
        retention = Retention(**counts)
        if retention.keeps_nothing:
            raise InputError("the policy keeps nothing", hint=f"for example {_EXAMPLE}")
        return cls(retention, only)

    def __str__(self) -> str:
        """Write it as options."""
        words = [f"--keep-{rule} {count}" for rule, count in vars(self.retention).items() if count]
        return " ".join([*words, *([f"--only {shell_word(self.only)}"] if self.only is not None else [])])

    def goes(self, layers: Sequence[Layer], end: int) -> list[int]:
        """Return the depths of the snapshots that no rule keeps, the uppermost first.

        The active layer and the base stay; so does what others stand on. ``prune`` asks more people and may keep more.

        :param layers: of a chain, from the top.
        :param end: the depth of the first layer that other chains stand on; the number of layers where there is none.
        """
        inner = range(1, min(end, len(layers) - 1))
        names = {depth: os.path.basename(layers[depth].path) for depth in inner}  # noqa: PTH119 - any bytes
        candidates = [depth for depth in inner if self.only is None or fnmatchcase(names[depth], self.only)]
        try:
            kept = self.retention.kept([layer_time_s(layers[depth]) for depth in candidates])
        except ImageError:  # one went meanwhile
            return []
        return [depth for number, depth in enumerate(candidates) if number not in kept]


def _is_count(text: str) -> bool:
    return text == "-1" or (text.isdecimal() and len(text) < 10)
