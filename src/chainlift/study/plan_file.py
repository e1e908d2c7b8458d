"""A plan's file: found, read and checked before anything is touched.

Unknown keys are refused, values are never converted silently, and an error names the key and what is allowed.
"""

from __future__ import annotations

import json
import tomllib
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from chainlift.errors import PlanError
from chainlift.study.plan import Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

#: The plans that come with chainlift, in the order in which they are listed.
SHIPPED = ("quick", "seed", "long", "versions", "limits", "cause", "followup", "followup-cache", "seed-profile")


def load_plan(name: str) -> Plan:
    """Load a shipped plan by its name, or a plan from a file.

    :raise PlanError: if there is none of that name, or it does not hold.
    """
    if name in SHIPPED:
        return parse_plan(shipped_text(name), path=f"{name}.toml")
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        shipped = ", ".join(SHIPPED)
        raise PlanError("no such plan", path=name, hint=f"name a TOML file or one of {shipped}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise PlanError(f"cannot be read: {reason}", path=name) from error
    return parse_plan(text, path=name)


def shipped_text(name: str) -> str:
    """Return the text of a shipped plan."""
    return (resources.files("chainlift.study") / "plans" / f"{name}.toml").read_text(encoding="utf-8")


def parse_plan(text: str, *, path: str | None = None) -> Plan:
    """Check a plan's text.

    :raise PlanError: if it is no TOML, or a key or a value does not hold; the text names the key and what is allowed.
    """
    try:
        tables = tomllib.loads(text)
        # Through JSON: pydantic's strict mode then takes an array for a tuple, and still no string for a number.
        return Plan.model_validate_json(json.dumps(tables))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"is not TOML: {error}", path=path) from error
    except TypeError as error:
        raise PlanError("has a date or time, no key takes one", path=path) from error
    except ValidationError as error:
        raise PlanError(_explain(error), path=path) from error


def checked(plan: Plan, setting: str) -> Plan:
    """Check a plan that was made of another one.

    :param setting: what was changed, for the error.
    :raise PlanError: if it does not hold.
    """
    try:
        return Plan.model_validate_json(plan.model_dump_json())
    except ValidationError as error:
        raise PlanError(f"vary: {setting}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """Say the first thing that is wrong in one line; pydantic's own texts where they are good enough."""
    first = error.errors(include_url=False)[0]
    where = [str(part) for part in first["loc"]]
    key = ".".join(where)
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key; allowed here: {', '.join(_keys_at(where[:-1]))}"
    if first["type"] == "missing":
        return f"{key}: this key is needed"
    said = str(first["msg"]).removeprefix("Value error, ").replace("Input should be ", "should be ")
    if not key or isinstance(first["input"], dict):
        return said if not key or ":" in said else f"{key}: {said}"
    shown = json.dumps(first["input"], default=str)
    return f"{key}: {said}" + (f", not {shown}" if len(shown) <= 60 else "")


def _keys_at(where: Sequence[str]) -> list[str]:
    table: type[BaseModel] = Plan
    for part in where:
        annotation = table.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        table = annotation
    return list(table.model_fields)
