import contextlib
import os
import subprocess
import sys

from chainlift.lift.watching.journal import ERROR, INFO, Journal

_PROGRAM = """
import os, sys
if sys.argv[1] == "journal":
    there = os.fstat(2)
    os.environ["JOURNAL_STREAM"] = f"{there.st_dev}:{there.st_ino}"
from chainlift.lift.watching.journal import ERROR, INFO, Journal
Journal().say(INFO, "one\\nline \\x1b[31m")
Journal().say(ERROR, "another")
"""


def said(where, **environment):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, where], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0
    return done.stderr.splitlines()


def test_lines_have_a_priority_for_the_journal_alone():
    assert said("journal") == [r"<6>one\nline \x1b[31m", "<3>another"]
    plain = [r"chainlift: one\nline \x1b[31m", "chainlift: warning: another"]
    assert said("pipe") == plain
    # A terminal under a desktop inherits the variable; what it names is not our standard error.
    assert said("pipe", JOURNAL_STREAM="8:12345") == plain
    assert said("pipe", JOURNAL_STREAM="nonsense") == plain


def test_a_trouble_is_told_when_it_begins_changes_and_ends(capsys):
    journal = Journal()
    for text in (
        "needs 3.2 GiB, 1.5 GiB is free",
        "needs 3.2 GiB, 1 GiB is free",
        "job0 works",
        "job0 works",
        "job1 works",
    ):
        journal.trouble("vda", text)
    journal.trouble("vdb", "job1 works", priority=ERROR)
    for _ in range(2):
        journal.well("vda", "vda is well")
    journal.well("vdb")
    journal.trouble("vda", "job1 works")
    journal.say(INFO, "the end")
    assert capsys.readouterr().err.splitlines() == [
        "chainlift: warning: needs 3.2 GiB, 1.5 GiB is free",
        "chainlift: warning: job0 works",
        "chainlift: warning: job1 works",
        "chainlift: warning: job1 works",
        "chainlift: vda is well",
        "chainlift: warning: job1 works",
        "chainlift: the end",
    ]


def test_a_journal_that_nobody_reads_ends_nothing(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        monkeypatch.setattr(sys, "stderr", broken)
        Journal().say(INFO, "nobody reads this")
        monkeypatch.undo()
        with contextlib.suppress(BrokenPipeError):
            broken.close()
