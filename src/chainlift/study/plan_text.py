"""Writing a plan as TOML: every key, with its explanation where a person is to edit it."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.study.plan import Plan

_WIDTH = 110


def plan_text(plan: Plan, *, explain: bool = False) -> str:
    """Write a plan with every default written out; :func:`chainlift.study.plan.parse_plan` reads it back as it was.

    :param explain: put each key's meaning over it.
    """
    return "\n".join(_table(plan, (), explain=explain)) + "\n"


def _table(table: BaseModel, path: tuple[str, ...], *, explain: bool) -> Iterator[str]:
    inner: list[tuple[str, BaseModel]] = []
    if path:
        yield ""
        if explain:
            yield from _comment((type(table).__doc__ or "").split("\n")[0])
        yield f"[{'.'.join(path)}]"
    for name, field in type(table).model_fields.items():
        value = getattr(table, name)
        if isinstance(value, BaseModel):
            inner.append((name, value))
            continue
        if explain and field.description:
            yield from _comment(field.description)
        yield f"{name} = {_value(value, is_size=_is_size(field.metadata))}"
    for name, value in inner:
        yield from _table(value, (*path, name), explain=explain)


def _comment(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _is_size(metadata: list[object]) -> bool:
    return any(type(item).__name__ == "BeforeValidator" for item in metadata)


def _value(value: object, *, is_size: bool) -> str:
    if is_size and isinstance(value, int):
        for power, unit in ((30, "G"), (20, "M"), (10, "k")):
            if value and not value % (1 << power):
                return f'"{value >> power}{unit}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item, is_size=False) for item in value)}]"
    # TOML writes booleans, numbers and basic strings as JSON does.
    return json.dumps(value, ensure_ascii=False)
