"""A socket that is not free: another client has QEMU's monitor, or who listens does not answer."""

import socket
from contextlib import ExitStack

import pytest
from tests.support.daemon import starting_daemons
from tests.support.owned_chain import make_owned_chain

from chainlift.errors import QemuError
from chainlift.qemu.monitor import Monitor

pytestmark = pytest.mark.integration


@pytest.fixture
def daemon(tmp_path):
    with starting_daemons(tmp_path) as start:
        yield start(make_owned_chain(tmp_path / "chain", 1).active)


def test_a_socket_that_another_client_has_is_said_to_be_busy_every_time(daemon):
    with Monitor.connect(daemon.qmp):
        # The first ones wait in QEMU's queue; when that is full, there is no connection at all.
        for _ in range(5):
            with pytest.raises(QemuError, match=r"is busy: another client is connected.*waited 0.2 s"):
                Monitor.connect(daemon.qmp, timeout_s=0.2)
    with Monitor.connect(daemon.qmp) as monitor:
        assert monitor.execute("query-version")


def test_who_waits_for_a_busy_socket_gets_it(daemon):
    with ExitStack() as stack:
        holder = stack.enter_context(Monitor.connect(daemon.qmp))
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for client in waiting:
            stack.enter_context(client)
            client.connect(str(daemon.qmp))
        full = stack.enter_context(socket.socket(socket.AF_UNIX))
        full.setblocking(False)
        with pytest.raises(BlockingIOError):
            full.connect(str(daemon.qmp))
        for client in waiting:
            client.close()
        holder.close()
        monitor = stack.enter_context(Monitor.connect(daemon.qmp))
        assert monitor.peer_pid == daemon.process.pid
        assert monitor.execute("query-version")


def test_a_listener_that_never_answers_is_given_up(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "hung"))
        listener.listen(1)
        with pytest.raises(QemuError, match=r"hung: is busy: .*or QEMU does not answer"):
            Monitor.connect(tmp_path / "hung", timeout_s=0.2)


def test_commands_have_the_limit_of_their_connection(daemon):
    with Monitor.connect(daemon.qmp, command_s=0.3) as monitor:
        assert monitor.execute("query-version")
        daemon.process.send_signal(19)  # SIGSTOP
        try:
            with pytest.raises(QemuError, match=r"query-version was not answered within 0.3 s"):
                monitor.execute("query-version")
        finally:
            daemon.process.send_signal(18)
