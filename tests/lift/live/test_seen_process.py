"""A QEMU that does not answer, and what it has opened since it was looked at."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from tests.support.daemon import read_all
from tests.support.lifts import live_index
from tests.support.owned_chain import everything

from chainlift.errors import QemuError, UnknownStateError
from chainlift.lift.live.pivot import State
from chainlift.lift.live.session import open_session
from chainlift.lift.record.pointer import named_in

pytestmark = pytest.mark.integration


def client(path):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection


def greeted(path):
    connection = client(path)
    with connection.makefile() as stream:
        assert "QMP" in json.loads(stream.readline())
    return connection


def test_a_command_that_is_not_answered_in_the_middle_says_what_is_not_known(make_chain, start_daemon):
    chain = make_chain(6)
    daemon = start_daemon(chain.active)
    pointer = named_in(chain.active)

    def stop(state):
        if state is State.ADDED:
            os.kill(daemon.process.pid, signal.SIGSTOP)

    with (
        open_session(daemon.qmp, timeout_s=2) as session,
        pytest.raises(
            UnknownStateError, match=r"was not answered within 2 s; .*names what it did.*what QEMU reads through is not"
        ),
    ):
        live_index(session, after=stop)
    assert named_in(chain.active) == pointer
    os.kill(daemon.process.pid, signal.SIGCONT)
    # The next run finishes or undoes it.
    with open_session(daemon.qmp) as session:
        live_index(session)
    with daemon.client() as reader:
        assert read_all(reader) == everything(chain)


def test_commands_have_the_limit_that_was_given(make_chain, start_daemon):
    daemon = start_daemon(make_chain(3).active)
    with open_session(daemon.qmp, timeout_s=0.5) as session:
        os.kill(daemon.process.pid, signal.SIGSTOP)
        with pytest.raises(QemuError, match=r"query-status was not answered within 0.5 s"):
            session.monitor.execute("query-status")
        os.kill(daemon.process.pid, signal.SIGCONT)


def test_a_snapshot_that_is_taken_while_we_wait_is_no_file_that_was_replaced(make_chain, start_daemon):
    """The other client has the socket when we come; it takes a snapshot and goes."""
    chain = make_chain(3)
    daemon = start_daemon(chain.active)
    other = greeted(daemon.qmp)
    overlay = chain.directory / "overlay.qcow2"
    waiting = subprocess.Popen(
        [sys.executable, "-m", "chainlift", "index", "--qmp", daemon.qmp, "--timeout", "60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    snapshot = {"node-name": "disk0", "snapshot-file": str(overlay), "snapshot-node-name": "top", "format": "qcow2"}
    daemon.monitor.execute("blockdev-snapshot-sync", snapshot)
    other.close()
    _, said = waiting.communicate()
    assert waiting.returncode == 0, said
    assert named_in(overlay).startswith("json:")


def test_what_was_opened_since_the_last_look_is_open(make_chain, start_daemon):
    chain = make_chain(3)
    daemon = start_daemon(chain.active)
    overlay, stranger = chain.directory / "overlay.qcow2", chain.directory / "stranger"
    stranger.write_text("")
    with open_session(daemon.qmp) as session:
        snapshot = {"node-name": "disk0", "snapshot-file": str(overlay), "snapshot-node-name": "top", "format": "qcow2"}
        daemon.monitor.execute("blockdev-snapshot-sync", snapshot)
        assert session.process.has_open(overlay) is True
        assert session.process.has_open(stranger) is False
