"""Writing a plan as TOML: every key, with its explanation where a person is to edit it."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING, Literal, get_args, get_origin

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

    from chainlift.study.plan import Plan

_WIDTH = 110


def plan_text(plan: Plan, *, explain: bool = False) -> str:
    """Write a plan with every default written out; :func:`~chainlift.study.plan_file.parse_plan` reads the same back.

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
            if allowed := _allowed(field):
                yield from _comment(f"allowed: {allowed}")
        yield f"{name} = {_value(value, is_size=_is_size(field.metadata))}"
    for name, value in inner:
        yield from _table(value, (*path, name), explain=explain)


def _allowed(field: FieldInfo) -> str:
    """Say which values a key takes, as its type has it: words, or a range."""
    annotation = field.annotation
    words = [a for a in get_args(annotation) if get_origin(a) is Literal] or [annotation]
    if get_origin(words[0]) is Literal:
        several = get_origin(annotation) is tuple
        return ", ".join(json.dumps(word) for word in get_args(words[0])) + (
            ", in any number, each once" if several else ""
        )
    if annotation is bool or get_args(annotation)[:1] == (bool,):
        return "true, false"
    limits = {
        kind: getattr(item, kind) for item in field.metadata for kind in ("ge", "gt", "le") if hasattr(item, kind)
    }
    size = _is_size(field.metadata)
    low, over, most = (None if (v := limits.get(k)) is None else _value(v, is_size=size) for k in ("ge", "gt", "le"))
    parts = (
        [f"{low} or more"]
        if low and not most
        else [f"{low} to {most}"]
        if low
        else [f"more than {over}"]
        if over
        else []
    )
    if over and most:
        parts.append(f"up to {most}")
    return ", ".join(parts)


def _comment(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _is_size(metadata: list[object]) -> bool:
    return any(type(item).__name__ == "BeforeValidator" for item in metadata)


def size_text(value: int) -> str:
    """Write a size as qemu-img has it: ``64k``, ``20G``, or the number where it is none of these."""
    for power, unit in ((30, "G"), (20, "M"), (10, "k")):
        if value and not value % (1 << power):
            return f"{value >> power}{unit}"
    return str(value)


def _value(value: object, *, is_size: bool) -> str:
    if is_size and isinstance(value, int) and (text := size_text(value)) != str(value):
        return f'"{text}"'
    if isinstance(value, tuple):
        return f"[{', '.join(_value(item, is_size=False) for item in value)}]"
    # TOML writes booleans, numbers and basic strings as JSON does.
    return json.dumps(value, ensure_ascii=False)
