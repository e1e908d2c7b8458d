"""script/release: what it refuses; and that it builds, tries and tags a clone in which a release is prepared."""

import re
import subprocess
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chainlift._version import __version__

ROOT = Path(__file__).parents[1]


def test_the_changelog_is_of_versions_and_begins_with_the_one_that_is_made():
    found = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - (not released|\d{4}-\d\d-\d\d)", heading) for heading in found)
    version, _, date = found[0].partition(" - ")
    assert __version__ == (f"{version}.dev0" if date == "not released" else version)


@pytest.fixture
def clone(tmp_path):
    subprocess.run(["git", "clone", "-q", ROOT, tmp_path / "clone"], check=True)
    return tmp_path / "clone"


def release(clone, *words):
    done = subprocess.run(["script/release", *words], cwd=clone, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.needs("clone")
def test_what_is_not_prepared_is_refused_before_anything_is_built(clone):
    assert release(clone)[0] == 2
    status, _, said = release(clone, "9.9.9")
    assert (status, said) == (1, f"chainlift: src/chainlift/_version.py says {__version__}, not 9.9.9\n")


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.needs("clone")
def test_a_prepared_version_is_built_tried_and_tagged(clone):
    version, changelog = clone / "src/chainlift/_version.py", clone / "CHANGELOG.md"
    version.write_text(version.read_text().replace(__version__, "9.9.9"))
    changelog.write_text(changelog.read_text().replace("\n## ", "\n## 9.9.9 - 2030-01-31\n\n- All is new.\n\n## ", 1))
    status, _, said = release(clone, "9.9.9")
    assert (status, said) == (1, "chainlift: the work tree has changes that are in no commit: git status\n")
    for name, value in (("user.name", "Somebody"), ("user.email", "somebody@example.org")):
        subprocess.run(["git", "config", name, value], cwd=clone, check=True)
    subprocess.run(["git", "commit", "-qam", "9.9.9"], cwd=clone, check=True)
    status, out, said = release(clone, "9.9.9")
    assert status == 0, said
    assert out.endswith("chainlift 9.9.9 works here\n")
    assert sorted(path.name for path in (clone / "dist").iterdir()) == [
        "chainlift-9.9.9-py3-none-any.whl",
        "chainlift-9.9.9.tar.gz",
    ]
    with zipfile.ZipFile(clone / "dist/chainlift-9.9.9-py3-none-any.whl") as wheel:
        dates = {datetime(*entry.date_time, tzinfo=UTC).timestamp() for entry in wheel.infolist()}
    epoch = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=clone, capture_output=True, text=True).stdout
    assert dates == {int(epoch) // 2 * 2}  # a ZIP knows every other second
    tag = subprocess.run(["git", "tag", "-n9", "v9.9.9"], cwd=clone, capture_output=True, text=True).stdout
    assert "- All is new." in tag
    assert release(clone, "9.9.9") == (1, "", "chainlift: the tag v9.9.9 is there already\n")
