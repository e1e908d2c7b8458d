"""What verbs print with ``--json``, held against the schemas of the package.

A test of a verb reads its output with :func:`valid` instead of ``json.loads``. tests/cli/test_schema.py finds every
verb with ``--json`` by itself: it is red for one without a schema, and for one whose output no test reads so.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from chainlift.cli.json_output import schemas

if TYPE_CHECKING:
    from collections.abc import Iterator

_TESTS = Path(__file__).parents[1]


def valid(verb: str, text: str) -> Any:
    """Return what a verb has printed, if it is what the verb's schema says, with no key that this does not name.

    :param verb: its words, ``qemu list``.
    """
    said = json.loads(text)
    _validator(f"chainlift {verb}").validate(said)
    return said


@cache
def verbs_whose_output_is_read() -> set[str]:
    """Return the verbs of which a test somewhere reads the output with :func:`valid`."""
    found = set()
    for path in _TESTS.rglob("test_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "valid(" in text else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "valid":
                verb = node.args[0]
                found |= {verb.value} if isinstance(verb, ast.Constant) else set()
    return found


@cache
def _validator(command: str) -> jsonschema.Draft202012Validator:
    schema = schemas()[command]
    jsonschema.Draft202012Validator.check_schema(schema)
    for part in objects(schema):
        part.setdefault("additionalProperties", False)
    return jsonschema.Draft202012Validator(schema)


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every part of a schema that describes the keys of an object."""
    if isinstance(schema, dict):
        if "properties" in schema and isinstance(schema.get("type"), str):
            yield schema
        for part in schema.values():
            yield from objects(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects(part)
