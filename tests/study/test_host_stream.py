"""The stream without a guest: how its storage daemon is ended."""

import signal

from tests.support.watching import wait_for

from chainlift.host.process import Process
from chainlift.study.host_stream import _end


def test_a_daemon_that_missed_the_signal_is_asked_again():
    misses_one = "trap 'trap - TERM' TERM; echo ready; while :; do sleep 0.05; done"
    with Process(["sh", "-c", misses_one]) as process:
        wait_for(lambda: process.stdout_so_far() == "ready\n")
        assert _end(process).returncode == -signal.SIGTERM
