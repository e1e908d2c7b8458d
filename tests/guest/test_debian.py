"""The debian guest. Making it takes a minute or more, so all but the refusals is for `script/test --long`."""

import shutil
import subprocess
from pathlib import Path

import pytest

from chainlift.errors import InputError, MissingToolError
from chainlift.guest import debian
from chainlift.guest.boot import boot
from chainlift.guest.debian import DebianGuest
from chainlift.guest.interface import Guest
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk


def test_without_mmdebstrap_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "mmdebstrap" else real(name))
    with pytest.raises(MissingToolError, match="install the package mmdebstrap"):
        DebianGuest().prepare()
    assert [path.suffix for path in (tmp_path / "guest").iterdir()] == [".lock"]


def test_a_host_without_debian_sources_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def no_sources(etc, suites):
        raise InputError("this host's apt has no Debian source", path=etc / "apt")

    monkeypatch.setattr(debian, "replace_suite", no_sources)
    with pytest.raises(InputError, match="no Debian source"):
        DebianGuest(suite="trixie").prepare()
    assert [path.suffix for path in (tmp_path / "guest").iterdir()] == [".lock"]


def test_the_script_that_customizes_it_is_valid_shell_and_is_installed_with_the_package():
    assert debian._CUSTOMIZE.parent == Path(debian.__file__).parent
    assert debian._CUSTOMIZE.stat().st_mode & 0o111
    subprocess.run(["sh", "-n", debian._CUSTOMIZE], check=True)
    subprocess.run(["sh", "-n"], input=debian._INIT, text=True, check=True)


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_debian_from_its_packages_to_its_halt(tmp_path):
    kind = DebianGuest()
    disk = tmp_path / "base.qcow2"
    kind.make_disk(disk, 4 << 30, data_bytes=64 << 20)
    with boot(kind, find_qemu(), Disk(disk), accelerator="tcg", vcpus=2) as guest:
        assert isinstance(guest, Guest)
        assert guest.run("ps -p 1 -o comm= || cat /proc/1/comm").stdout == "systemd\n"
        assert guest.run("systemctl --failed --quiet --no-legend").stdout == ""
        assert guest.run("findmnt -no SOURCE,FSTYPE /").require().stdout.split() == ["/dev/sda", "ext4"]
        assert guest.work_directory() == "/srv"
        assert guest.run("stat -c %s /srv/fio.0.0").stdout == f"{64 << 20}\n"
        guest.run("sync")

        # A guest with nothing to do leaves its disk alone, or its snapshots would measure that.
        before = written(guest)
        guest.run("sleep 15")
        assert written(guest) - before < 64 << 10

        job = "--rw=randrw --bs=16k --size=64m --io_size=1m --direct=1 --ioengine=libaio"
        guest.run(f"fio --name=fio --directory=/srv {job}").require()
        assert guest.freeze() == 1
        assert guest.thaw() == 1
        finished = guest.halt()
    assert finished.returncode == 0
    assert disk.stat().st_size < 2 << 30
    subprocess.run(["qemu-img", "check", "-q", disk], check=True)


def written(guest):
    [disk] = guest.vm.monitor.execute("query-blockstats")
    return disk["stats"]["wr_bytes"]
