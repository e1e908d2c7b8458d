"""What debian/ says twice is the same, and what it reads of apt is understood. That packages work is what
``script/fresh SUITE package`` tries."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["report"]]
DEPENDENCIES = runpy.run_path(str(ROOT / "debian/dependencies.py"))


@pytest.mark.parametrize(
    ("candidate", "meant"),
    [
        ("8.1.3-2", ("", "8.1.3")),
        ("1:2.2.4+ds-1", ("1:", "2.2.4")),
        ("1:1.24.2-1+deb12u1", ("1:", "1.24.2")),
        ("8.2.0+0.really.8.1.8-1", ("", "8.1.8")),
        ("3.10.1+dfsg1-4", ("", "3.10.1")),
        ("(none)", ("", None)),
    ],
)
def test_debian_s_version_is_told_from_the_authors(candidate, meant):
    assert DEPENDENCIES["upstream"](f"python3-x:\n  Installed: (none)\n  Candidate: {candidate}\n") == meant


def test_the_table_names_every_dependency_and_what_is_wanted():
    text = (ROOT / "docs/debian.md").read_text()
    rows = dict(re.findall(r"^\| ([a-z][\w.]+)[^|]* \| ([\d.]+) \|", text, re.MULTILINE))
    assert rows == {one.name: next(iter(one.specifier)).version for one in WANTED}


def test_the_man_pages_are_made_with_the_oldest_click_that_will_do():
    (click,) = [next(iter(one.specifier)).version for one in WANTED if one.name == "click"]
    assert f"python3-click (>= {click})," in (ROOT / "debian/control").read_text()


def test_the_lock_has_a_wheel_of_everything_that_a_release_may_lack():
    text = (ROOT / "requirements/study.txt").read_text()
    for one in WANTED:
        name = DEPENDENCIES["normalised"](one.name)
        (block,) = DEPENDENCIES["locked"](text, name)
        assert re.match(rf"{name}==\S+ \\\n    --hash=sha256:", block)


FILES = ("debian/control", "debian/copyright", "LICENSE")


def test_everything_is_by_the_same_authors_and_none_has_an_address_that_might_be_somebody_s():
    (authors,) = PROJECT["authors"]
    assert authors.keys() == {"name"}
    name = authors["name"]
    control, copyright_, licence = (
        (ROOT / path).read_text() for path in ("debian/control", "debian/copyright", "LICENSE")
    )
    assert re.search(rf"^Maintainer: {name} <\w+@\w+\.invalid>$", control, re.MULTILINE)
    (year,) = re.findall(rf"^Copyright \(c\) (\d+) {name}$", licence, re.MULTILINE)
    assert f"Files: *\nCopyright: {year} {name}\n" in copyright_


def test_the_program_is_the_command():
    done = subprocess.run(
        [sys.executable, ROOT / "debian/launcher.py", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Usage: chainlift ")
