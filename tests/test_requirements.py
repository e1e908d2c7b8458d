"""The locks in requirements/ are of this pyproject.toml, for every Python it allows, and name no registry."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RENEW = "run script/lock"


def read_lock(name):
    """Pinned requirements by name, each with the number of its hashes."""
    text = (ROOT / f"requirements/{name}.txt").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            assert "://" not in line
            assert not line.startswith("-"), line
            requirement, *hashes = line.split("--hash=")
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64} *", digest) for digest in hashes)
            pinned = Requirement(requirement)
            found.setdefault(canonicalize_name(pinned.name), []).append((pinned, len(hashes)))
    return found


def wanted(*extras):
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["build"]]
    for extra in extras:
        texts += PROJECT["project"]["optional-dependencies"][extra]
    return [one for one in map(Requirement, texts) if one.name != "chainlift"]


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("study", ["report"]), ("test", ["report", "fleet", "dev"]), ("lowest", ["report", "fleet", "dev"])],
)
def test_a_lock_has_a_version_in_range_of_everything_with_hashes(lock, extras):
    found = read_lock(lock)
    for requirement in wanted(*extras):
        pinned = found.get(canonicalize_name(requirement.name))
        assert pinned, f"{requirement.name} is not in requirements/{lock}.txt: {RENEW}"
        for one, _ in pinned:
            (specifier,) = one.specifier
            assert specifier.operator == "=="
            assert requirement.specifier.contains(specifier.version), f"{one}: {RENEW}"
    assert all(hashes > 0 for pinned in found.values() for _, hashes in pinned)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_one_version_of_each_serves_every_python(python):
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    for requirement in wanted("report", "fleet", "dev"):
        pinned = read_lock("test")[canonicalize_name(requirement.name)]
        assert sum(one.marker is None or one.marker.evaluate(environment) for one, _ in pinned) == 1


def test_a_study_and_the_tests_have_the_same_versions():
    tests = read_lock("test")
    for name, pinned in read_lock("study").items():
        assert [str(one) for one, _ in pinned] == [str(one) for one, _ in tests[name]]


def test_the_lowest_versions_are_those_that_pyproject_names():
    lowest = read_lock("lowest")
    for requirement in wanted("report", "fleet", "dev"):
        ((pinned, _),) = lowest[canonicalize_name(requirement.name)]
        (bound,) = requirement.specifier
        (version,) = pinned.specifier
        # No lower one is there that its range allows.
        assert bound.operator == ">="
        assert version.version.startswith(bound.version), f"{requirement}: nobody has tested {bound.version}: {RENEW}"
