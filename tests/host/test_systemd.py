import os
import socket

from chainlift.host.systemd import notify, watchdog_s


def received(address, monkeypatch, name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(address)
        there.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1", "STATUS=3 VMs")
        return there.recv(1000)


def test_systemd_is_told_on_a_path_and_on_an_abstract_name(tmp_path, monkeypatch):
    path = str(tmp_path / "notify")
    assert received(path, monkeypatch, path) == b"READY=1\nSTATUS=3 VMs"
    name = f"chainlift-test-{os.getpid()}"
    assert received(f"\0{name}", monkeypatch, f"@{name}") == b"READY=1\nSTATUS=3 VMs"


def test_without_systemd_nothing_happens(tmp_path, monkeypatch):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    for name in ("", "relative", "vsock:2:1234", str(tmp_path / "gone")):
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")


def test_the_watchdog_is_for_the_process_that_it_names(monkeypatch):
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_s() == 30
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_s() == 30
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_PID", "x")
    assert watchdog_s() is None
