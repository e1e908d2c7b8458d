"""Names that are pasted into a shell lead to the file again."""

import os
import subprocess

import pytest

from chainlift.survey.words import readable, shell_word

NAMES = ["plain", "with space", "it's", "a\nb", "tab\tand'quote\\", "\x1b[31m", "$(touch x)", "ü", "-n", "*", "a\n7"]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_the_name_that_was_meant(name):
    word = shell_word(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '<%s>' {word}"], capture_output=True)
    assert done.stdout.decode() == f"<{name}>"


def test_bytes_that_are_no_text():
    name = os.fsdecode(b"disk-\xff7.qcow2")
    done = subprocess.run(["bash", "-c", f"printf %s {shell_word(name)}"], capture_output=True)
    assert done.stdout == b"disk-\xff7.qcow2"
    assert readable(name) == "disk-\\xff7.qcow2"
