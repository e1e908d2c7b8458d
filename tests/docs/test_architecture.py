"""docs/architecture.md shows the floors that the import contract keeps, and names files that are there."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


def floors(contract):
    """Its rooms, floor by floor."""
    return [sorted(re.findall(r"\w+", line)) for line in contract["layers"]]


def tables():
    """The page's two tables of rooms, row by row."""
    parts = re.findall(r"\| rooms \| .*\n\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    return [[sorted(re.findall(r"`\(?(\w+)\)?`", row.split("|")[1])) for row in part.splitlines()] for part in parts]


def test_the_page_shows_the_floors_of_the_import_contract():
    layered = [contract for contract in CONTRACTS if contract["type"] == "layers"]
    assert [contract["containers"] for contract in layered] == [["chainlift"], ["chainlift.lift"]]
    assert tables() == [floors(contract) for contract in layered]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\w+/(?:\w+/)*\w*(?:\.py)?)`", PAGE)) - {"results/quick"}))
def test_a_file_that_the_page_names_is_there(name):
    places = [ROOT, ROOT / "src/chainlift", ROOT / "src/chainlift/lift"]
    made_up = "shrink" in name
    assert made_up != any((place / name).exists() for place in places)


def test_a_new_verb_goes_where_the_others_are():
    from chainlift.cli.main import VERBS

    assert "`VERBS` of `cli/main.py`" in PAGE
    for place, _ in VERBS.values():
        module, _, attribute = place.partition(":")
        assert (ROOT / "src" / f"{module.replace('.', '/')}.py").exists()
        assert attribute == "command"
