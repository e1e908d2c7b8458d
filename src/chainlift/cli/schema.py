"""``chainlift schema``: the contract of what verbs print with ``--json``."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.argument("words", nargs=-1, metavar="[VERB]")
def command(words: tuple[str, ...]) -> None:
    """Print the JSON Schema of what VERB prints with --json; without VERB, list those that have one.

    From version 0.1.0 on a key keeps its name, type, unit and meaning as long as "schema" has the same number. Keys may
    be added: a program skips those that it does not know.
    """
    from chainlift.cli.json_output import schemas
    from chainlift.errors import InputError

    known = schemas()
    if not words:
        for verb in sorted(known):
            click.echo(verb.removeprefix("chainlift "))
        return
    verb = " ".join(words)
    schema = known.get(f"chainlift {verb}")
    if schema is None:
        raise InputError(f"{verb!r} prints no JSON", hint="chainlift schema lists what does")
    click.echo(json.dumps(schema, indent=1, ensure_ascii=False))
