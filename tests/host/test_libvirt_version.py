"""Which libvirt is installed."""

import subprocess

import pytest

from chainlift.host.libvirt_version import libvirt_version


@pytest.fixture(autouse=True)
def _asked_anew():
    libvirt_version.cache_clear()
    yield
    libvirt_version.cache_clear()


@pytest.mark.integration
@pytest.mark.needs("libvirt")
def test_it_is_what_virsh_says(monkeypatch):
    said = subprocess.run(["virsh", "--version"], capture_output=True, text=True, check=True).stdout
    assert libvirt_version() == tuple(map(int, said.strip().split(".")))
    # A user's path often has no sbin.
    libvirt_version.cache_clear()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert libvirt_version() == tuple(map(int, said.strip().split(".")))
