"""The contract of ``--json``: every verb that has it has a schema, and some test holds its output against that."""

import inspect
import json
from importlib import import_module

import click
import jsonschema
import pytest
from tests.support.json_schemas import objects, valid, verbs_whose_output_is_read

from chainlift.cli.json_output import schemas
from chainlift.cli.main import VERBS, main

#: Keys of these are what they are for QEMU, or a value's own.
_SAID_BY_OTHERS = {"chainlift study report"}


def every_command():
    """Every command and command of a command, with its words."""
    waiting = []
    for verb, (place, _) in VERBS.items():
        module, _, attribute = place.partition(":")
        waiting.append(((verb,), getattr(import_module(module), attribute)))
    while waiting:
        words, command = waiting.pop()
        if isinstance(command, click.Group):
            waiting += [((*words, name), command.commands[name]) for name in command.commands]
        yield " ".join(words), command


def takes_json(command):
    return any("--json" in option.opts for option in command.params)


def prints_a_table(function):
    """Whether a function, or one of its module that it calls, prints a table as every verb does."""
    function = inspect.unwrap(function)
    names, waiting, seen = set(), [function.__code__], set()
    while waiting:
        code = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        names |= set(code.co_names)
        waiting += [each for each in code.co_consts if inspect.iscode(each)]
        called = [function.__globals__.get(name) for name in code.co_names]
        waiting += [each.__code__ for each in called if inspect.isfunction(each)]
    return "print_table" in names


#: The status of a watch is JSON anyway.
COMMANDS = sorted({verb for verb, command in every_command() if takes_json(command)} | {"watch"})


def test_a_verb_that_prints_a_table_takes_json():
    printing = {verb: command for verb, command in every_command() if prints_a_table(command.callback)}
    assert {"plan", "study compare", "watch list"} <= printing.keys()
    assert [verb for verb, command in printing.items() if not takes_json(command)] == []


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_that_prints_json_has_a_schema_and_a_test_that_reads_it_so(verb):
    assert f"chainlift {verb}" in schemas(), f"write src/chainlift/schemas/{verb.replace(' ', '-')}.json (docs/json.md)"
    assert verb in verbs_whose_output_is_read(), f'read what it prints with valid("{verb}", ...) in its test'


def test_a_schema_is_of_a_verb_that_is_there():
    assert sorted(schemas()) == [f"chainlift {verb}" for verb in COMMANDS]


@pytest.mark.parametrize("command", sorted(set(schemas()) - _SAID_BY_OTHERS - {"chainlift study run"}))
def test_a_schema_says_what_each_key_means_and_which_are_always_there(command):
    schema = schemas()[command]
    assert schema["title"]
    for part in objects(schema):
        assert set(part["required"]) <= part["properties"].keys()
        for key, value in part["properties"].items():
            said = value.get("description") or schema["$defs"][value["$ref"].rpartition("/")[2]].get("description")
            assert said, f"{command}: {key}"


def test_what_is_no_list_of_qemus_form_says_the_number_of_its_schema():
    for command, schema in schemas().items():
        if schema.get("type") == "array":
            assert command in ("chainlift map", "chainlift diff")
        else:
            forms = schema.get("oneOf", [schema])
            assert all("const" in form["properties"]["schema"] for form in forms), command


def test_a_key_that_the_schema_does_not_name_is_found():
    said = {"schema": 1, "chains": []}
    assert valid("study chains", json.dumps(said)) == said
    for wrong in ({**said, "more": 1}, {"schema": 1}, {**said, "schema": 2}):
        with pytest.raises(jsonschema.ValidationError):
            valid("study chains", json.dumps(wrong))


def test_the_command_lists_and_prints_schemas(capsys):
    def said(*words):
        with pytest.raises(SystemExit) as ended:
            main(["schema", *words])
        return ended.value.code, *capsys.readouterr()

    assert said() == (0, "".join(f"{verb}\n" for verb in COMMANDS), "")
    status, out, _ = said("qemu", "list")
    assert (status, json.loads(out)) == (0, schemas()["chainlift qemu list"])
    assert said("flatten") == (2, "", "chainlift: 'flatten' prints no JSON; chainlift schema lists what does\n")
