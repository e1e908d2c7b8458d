"""The peak of a process's memory is its own, and not of who started it."""

import subprocess
import sys

from chainlift.host.peak import peak_rss_bytes

SAY = "from chainlift.host.peak import peak_rss_bytes; {}; print(peak_rss_bytes())"


def peak_of(does):
    return int(subprocess.run([sys.executable, "-c", SAY.format(does)], capture_output=True, check=True).stdout)


def test_it_is_the_most_that_there_was_at_once():
    idle = peak_of("pass")
    assert 1 << 20 < idle < peak_of("b'x' * (100 << 20)") - (90 << 20)


def test_it_is_not_of_who_started_the_process():
    mine = b"x" * (200 << 20)
    assert peak_rss_bytes() > len(mine)
    assert peak_of("pass") < len(mine)
