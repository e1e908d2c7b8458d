import subprocess
import sys

import pytest

from chainlift.cli import main as cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "chainlift", *arguments], capture_output=True, text=True)


def test_bad_use_is_one_line_and_status_2():
    done = run("no-such-verb")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == ["chainlift: No such command 'no-such-verb'; see 'chainlift --help'"]


@pytest.mark.parametrize("words", [[], ["study"], ["qemu"]], ids=" ".join)
def test_a_group_alone_is_bad_use_and_shows_its_help(words):
    done = run(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(" ".join(["Usage: chainlift", *words]))


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from chainlift.cli.main import cli; cli.main(['--help'], standalone_mode=False);"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pydantic", "rich", "matplotlib", "jinja2", "qemu", "zstandard", "asyncio"}
    assert heavy.isdisjoint(done.stderr.split())


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_has_help(verb):
    done = run(verb, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: chainlift ")
