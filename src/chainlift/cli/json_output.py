"""How every verb prints JSON: an object with the number of its schema; and the schemas, which are files of the package.

What they promise is said in docs/json.md. A schema names the commands whose output it describes under ``verbs``.
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def print_json(data: Mapping[str, object], *, schema: int = 1, in_one_line: bool = False) -> None:
    """Print an object on standard output.

    :param data: what it holds.
    :param schema: the number of the form that it has, which the verb's file in ``chainlift/schemas`` describes.
    :param in_one_line: for whoever reads it while the verb goes on.
    """
    import click

    click.echo(json.dumps({"schema": schema, **data}, indent=None if in_one_line else 1))


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each command that prints JSON: ``chainlift plan`` -> what its file holds."""
    found = {}
    for file in sorted((files("chainlift") / "schemas").iterdir(), key=lambda file: file.name):
        schema = json.loads(file.read_text(encoding="utf-8"))
        found.update(dict.fromkeys(schema["verbs"], schema))
    return found
