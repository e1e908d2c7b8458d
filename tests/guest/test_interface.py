import pytest

from chainlift.errors import GuestError
from chainlift.guest.interface import CommandResult


def test_a_failed_command_says_its_last_words():
    assert CommandResult("true", 0, "", "").require().status == 0
    with pytest.raises(GuestError, match=r"'mkfs' failed with status 1: no space"):
        CommandResult("mkfs", 1, "out\n", "no space\n").require()
