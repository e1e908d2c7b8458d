"""Man pages and completions know what the command knows, and those who read them find nothing wrong."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from chainlift.cli import manual
from chainlift.cli.main import VERBS, cli


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    made = tmp_path_factory.mktemp("prefix")
    subprocess.run([sys.executable, "-m", "chainlift.cli.manual", made], check=True)
    return made


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """One in which a shell finds the command."""
    bin_directory = tmp_path_factory.mktemp("bin")
    (bin_directory / "chainlift").write_text(f'#!/bin/sh\nexec {sys.executable} -m chainlift "$@"\n')
    (bin_directory / "chainlift").chmod(0o755)
    home = tmp_path_factory.mktemp("home")
    path = f"{bin_directory}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "TERM": "dumb"}


def options(command, context):
    """Every option of a command and of what may follow its name."""
    found = {name for each in command.get_params(context) if isinstance(each, click.Option) for name in each.opts}
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found |= options(command.get_command(context, name), context)
    return found


@pytest.mark.needs("man")
def test_each_verb_has_a_page_with_all_its_options_in_which_nobody_finds_a_fault(prefix):
    pages = {path.name: path for path in (prefix / manual.MAN_PAGES).iterdir()}
    assert pages.keys() == {"chainlift.1", *(f"chainlift-{verb}.1" for verb in VERBS)}
    context = click.Context(cli, info_name="chainlift")
    for name, path in pages.items():
        linted = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", path], capture_output=True, text=True)
        assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")
        groff = ["groff", "-ww", "-man", "-K", "utf8", "-T", "utf8", "-P", "-cbou", path]
        done = subprocess.run(groff, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        verb = name.removesuffix(".1").partition("-")[2]
        known = {option for each in cli.params for option in each.opts} if not verb else set()
        known |= options(cli.get_command(context, verb), context) if verb else set()
        assert known <= set(re.findall(r"(?<![-\w])-[-\w]+", done.stdout))
        assert re.findall(r"^ +(\d)  ", done.stdout.partition("EXIT STATUS")[2], re.MULTILINE) == [*"01234"]


def test_what_roff_would_take_for_a_command_is_text():
    assert manual._text(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert manual._text("'\\fB `chainlift index` ~^") == r"\(aq\efB \fBchainlift index\fR \(ti\(ha"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(["chainlift", ""], set(VERBS)), (["chainlift", "index", "--"], {"--qmp", "--copy-budget", "--help"}),
     (["chainlift", "study", "r"], {"run", "report"}), (["chainlift", "flatten", "-O", ""], {"qcow2", "raw"})],
    ids=lambda words: "-".join(filter(None, words)) if isinstance(words, list) else "",
)  # fmt: skip
def test_bash_completes(prefix, environment, typed, offered):
    script = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _chainlift_completion chainlift;'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    completed = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", prefix / manual.COMPLETIONS["bash"], *typed],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    assert offered <= set(completed.stdout.split())


@pytest.mark.needs("zsh")
def test_zsh_finds_the_completion_by_itself_and_offers_every_verb(prefix, environment):
    directory = prefix / manual.COMPLETIONS["zsh"].parent
    script = (
        'fpath=("$1" $fpath); autoload -Uz compinit; compinit -u -D; print -r -- $_comps[chainlift];'
        # Only a terminal's line editor has these: what is offered to them is what counts.
        "_describe() { local name=$@[-2]; print -rl -- ${(P)name} };"
        "compadd() { local name=$@[-1]; print -rl -- ${(P)name} };"
        "words=(chainlift ''); CURRENT=2; _chainlift"
    )
    done = subprocess.run(["zsh", "-fc", script, "zsh", directory], capture_output=True, text=True, env=environment)
    completer, *said = done.stdout.splitlines()
    assert completer == "_chainlift", done.stderr
    assert VERBS.keys() <= {line.partition(":")[0] for line in said}, done.stdout + done.stderr


@pytest.mark.needs("fish")
def test_fish_offers_every_verb(prefix, environment):
    script = f"source {prefix / manual.COMPLETIONS['fish']}; complete --do-complete 'chainlift '"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, env=environment)
    assert {line.partition("\t")[0] for line in done.stdout.splitlines()} >= VERBS.keys(), done.stderr


def test_the_wheel_has_them(tmp_path):
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(Path(__file__).parents[2])).build(directory=str(tmp_path), versions=["standard"])
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert {str(path) for path in manual.COMPLETIONS.values()} <= names
    assert {f"{manual.MAN_PAGES}/{name}" for name in manual.man_pages()} <= names
