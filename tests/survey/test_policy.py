"""Rules of prune in one text."""

import os

import pytest
from tests.support.chains import plain_chain

from chainlift.chain import open_chain
from chainlift.errors import InputError
from chainlift.survey.policy import Policy


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("--keep-last 24 --keep-daily 7", "--keep-last 24 --keep-daily 7"),
        ("--keep-daily=7   --only 'auto-*'", "--keep-daily 7 --only 'auto-*'"),
        ("--keep-monthly -1", "--keep-monthly -1"),
    ],
)
def test_it_is_written_as_it_is_read(text, again):
    assert str(Policy.parse(text)) == again
    assert Policy.parse(again) == Policy.parse(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "keeps nothing"),
        ("--keep-last 0", "keeps nothing"),
        ("--keep-last", "no '--keep-last'"),
        ("--keep-last many", "'many' is no number"),
        ("--keep-last -2", "'-2' is no number"),
        ("--keep-yearly 1", "no '--keep-yearly'"),
        ("--keep disk.qcow2", "no '--keep'"),
        ("keep-last 3", "no 'keep-last'"),
        ("--only 'auto", "cannot be read"),
    ],
)
def test_what_is_no_policy_is_refused(text, why):
    with pytest.raises(InputError, match=why):
        Policy.parse(text)


def test_what_goes(tmp_path):
    image = plain_chain(tmp_path, 6)
    for number in range(7):
        os.utime(tmp_path / f"layer{number}.qcow2", (1e9 + number * 3600,) * 2)
    with open_chain(image) as chain:
        # The image and the base stay, and of the rest the newest two.
        assert Policy.parse("--keep-last 2").goes(chain.layers, 7) == [3, 4, 5]
        # Others stand on what is at depth 4.
        assert Policy.parse("--keep-last 2").goes(chain.layers, 4) == [3]
        # The rule is for one file, and keeps that.
        assert Policy.parse("--keep-last 1 --only '*3.qcow2'").goes(chain.layers, 7) == []
