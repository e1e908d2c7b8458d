"""What a program imports: each name is there, its examples run, and the pages that are made of it are current."""

import ast
import dataclasses
import doctest
import inspect
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.chains import plain_chain

import chainlift
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
FUNCTIONS = [name for name in chainlift.__all__ if inspect.isfunction(getattr(chainlift, name))]
CLASSES = [name for name in chainlift.__all__ if inspect.isclass(getattr(chainlift, name))]
#: Types that are in the hints of public names and are not public themselves: docs/api.md says how far they are.
_BEHIND = {"ChainSummary", "FileIdentity", "ImageFile", "Image", "Reference", "Runstate", "TablesDigest", "Tables"}


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """The directory of the examples: disk.qcow2 stands on layer3.qcow2, and so on."""
    plain_chain(tmp_path).rename(tmp_path / "disk.qcow2")
    monkeypatch.chdir(tmp_path)


def test_every_name_is_there_and_listed_once():
    assert len(set(chainlift.__all__)) == len(chainlift.__all__)
    assert set(dir(chainlift)) == set(chainlift.__all__) == {"__version__", *chainlift._FRONT_DOOR}
    assert all(getattr(chainlift, name) is not None for name in chainlift.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lift_index'"):
        chainlift.lift_index  # noqa: B018


def test_types_of_the_front_door_are_known_to_a_type_checker():
    (guard,) = [node for node in ast.parse(inspect.getsource(chainlift)).body if isinstance(node, ast.If)]
    imported = {alias.name: line.module for line in guard.body for alias in line.names}
    assert imported == chainlift._FRONT_DOOR


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_a_public_name_takes_and_gives_is_public(name):
    """A class of ours that stands in a hint can be imported from the front door."""
    known = set(chainlift.__all__) | _BEHIND
    signature = inspect.signature(getattr(chainlift, name))
    hints = [signature.return_annotation, *(each.annotation for each in signature.parameters.values())]
    assert ours(hints) <= known


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_public_class_holds_is_public(name):
    value = getattr(chainlift, name)
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    assert ours(field.type for field in fields if not field.name.startswith("_")) <= {*chainlift.__all__, *_BEHIND}


def ours(hints):
    """The names in hints that are classes of this package."""
    words = {word for hint in hints for word in re.findall(r"\w+", str(hint))}
    defined = set(re.findall(r"^class (\w+)", "".join(p.read_text() for p in sources()), re.MULTILINE))
    return (words & defined) - {"Mapping"}  # of collections.abc, too


def sources():
    return (ROOT / "src/chainlift").rglob("*.py")


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "log_changes"])
def test_the_example_of_a_function_does_what_it_says(name, chain):
    assert run_examples(getattr(chainlift, name)) > 0


def test_the_example_of_resolve_does_what_it_says(chain):
    assert run_examples(chainlift.Chain.resolve) > 0


def test_the_example_of_the_log_does_what_it_says(chain):
    """In a process of its own: what it sets up stays for a process's life."""
    code = "import chainlift; from tests.test_api import run_examples; assert run_examples(chainlift.log_changes) == 4"
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={"PYTHONPATH": f"{ROOT}:{ROOT}/src", "PATH": "/bin"}
    )


def run_examples(value):
    """Run the examples of a docstring with the names that a reader would have imported; return how many there are."""
    names = {name: getattr(chainlift, name) for name in chainlift.__all__} | {"logging": logging, "Path": Path}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    parsed = doctest.DocTestParser().get_doctest(inspect.getdoc(value), names, value.__name__, None, 0)
    said = []
    assert runner.run(parsed, out=said.append).failed == 0, "".join(said)
    return len(parsed.examples)


def test_pages_that_are_made_are_current():
    """Every parameter and attribute is said to be something, or the pages are not made at all."""
    done = subprocess.run([sys.executable, ROOT / "script/docs", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_ten_lines_of_the_page_index_a_directory_and_log_what_was_done(tmp_path, chain):
    page = (ROOT / "docs/api.md").read_text()
    program = page.partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line) for line in program.splitlines()) <= 10
    write_image(tmp_path / "alone.qcow2", virtual_size=1 << 20)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "chainlift.log").read_text().splitlines()
    verbs = [line.partition("chainlift.verbs: ")[2] for line in found if "chainlift.verbs" in line]
    assert re.fullmatch(rf"index {tmp_path}/alone.qcow2 \(\d+\.\d+ s\): .*has no backing file.*", verbs[0])
    assert re.fullmatch(rf"index {tmp_path}/disk.qcow2 \(\d+\.\d+ s\)", verbs[1])
    assert any(line.endswith(f"to {tmp_path}/disk.qcow2.lift/index-1.vmdk") for line in found)
    assert any("qemu-img rebase -u" in line and f"{tmp_path}/disk.qcow2.lift/index-1.vmdk" in line for line in found)
    assert f"left alone: {tmp_path}/alone.qcow2: has no backing file" in done.stdout
    with chainlift.open_disk(tmp_path / "disk.qcow2") as disk:
        assert [lift.findings for lift in chainlift.verify(disk)] == [[]]


def test_a_disk_is_lifted_verified_and_restored(tmp_path):
    image = plain_chain(tmp_path / "chain", length=5)
    before = image.read_bytes()
    with chainlift.open_disk(image) as disk:
        assert chainlift.plan(disk, measure=False).length == 5
        assert chainlift.index(disk).manifest.extents > 1
        assert [lift.findings for lift in chainlift.verify(disk, content=True)] == [[]]
        assert chainlift.squash(disk, clean=True).manifest.kind == "squash"
        (found,) = chainlift.restore(disk, clean=True).found
    assert found.change.owner == image
    assert image.read_bytes()[:512] == before[:512]
    with pytest.raises(chainlift.ChainliftError, match="is not lifted"), chainlift.open_disk(image) as disk:
        chainlift.restore(disk)
