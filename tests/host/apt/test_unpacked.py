import os
import stat
import subprocess
import time

import pytest

from chainlift.errors import MissingToolError, OperationError
from chainlift.host.apt import unpacked
from chainlift.host.apt.unpacked import download_and_unpack, libraries, unpack, versions_in


@pytest.fixture
def fake_apt(tmp_path, monkeypatch):
    """An apt-get and a dpkg-deb that write down what they were asked."""
    directory = tmp_path / "bin"
    directory.mkdir()
    log = tmp_path / "log"

    def write(name, body):
        (directory / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {log}\n{body}\n')
        (directory / name).chmod(0o755)

    write(
        "apt-get",
        """case "$*" in
        *install*) echo "Inst libx (1.0 Debian:12/stable [amd64])"; echo "Inst perl-base (5 Debian:12 [amd64])"
                   echo "Inst tool (2:3-1+b1 Debian:12/stable [amd64])";;
        *download*) touch tool.deb libx.deb;;
        esac""",
    )
    write("dpkg-deb", 'mkdir -p tree/usr/bin; touch "tree/usr/bin/$(basename "$2")"; tar -C tree -c .; rm -r tree')
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setattr(unpacked, "_newest_list", lambda: time.time() + 60)  # the lists are new: apt is asked
    return log, write


def test_what_is_wanted_is_fetched_once(fake_apt, tmp_path):
    log, _ = fake_apt
    into = tmp_path / "into"
    assert download_and_unpack(["tool"], into, with_depends=True, keep=libraries) == into
    assert {path.name for path in (into / "usr/bin").iterdir()} == {"tool.deb", "libx.deb"}
    assert versions_in(into) == {"libx": "1.0", "tool": "2:3-1+b1"}
    assert "download libx=1.0 tool=2:3-1+b1" in log.read_text()
    log.write_text("")
    download_and_unpack(["tool"], into, with_depends=True, keep=libraries)
    assert "download" not in log.read_text()


def test_apt_is_not_asked_again_before_its_lists_change(fake_apt, tmp_path, monkeypatch):
    log, _ = fake_apt
    download_and_unpack(["tool"], tmp_path / "into")
    log.write_text("")
    monkeypatch.setattr(unpacked, "_newest_list", lambda: 0.0)
    download_and_unpack(["tool"], tmp_path / "into")
    assert log.read_text() == ""
    download_and_unpack(["tool"], tmp_path / "into", with_depends=True)  # another question
    assert "download" in log.read_text()


def test_another_version_replaces_the_directory(fake_apt, tmp_path):
    _, write = fake_apt
    into = tmp_path / "into"
    download_and_unpack(["tool"], into)
    (into / "stale").touch()
    write("apt-get", 'case "$*" in *install*) echo "Inst tool (4 Debian:13 [amd64])";; *) touch tool.deb;; esac')
    download_and_unpack(["tool"], into)
    assert not (into / "stale").exists()
    assert stat.S_IMODE(into.stat().st_mode) == 0o755


def test_a_failed_download_leaves_what_was_there(fake_apt, tmp_path):
    _, write = fake_apt
    into = tmp_path / "into"
    download_and_unpack(["tool"], into)
    write("apt-get", 'case "$*" in *install*) echo "Inst tool (4 x [amd64])";; *) echo E: no net >&2; exit 100;; esac')
    with pytest.raises(OperationError, match="apt-get download failed: no net"):
        download_and_unpack(["tool"], into)
    assert (into / "usr/bin/tool.deb").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".into.lock", "bin", "into", "log"]


def test_without_package_lists_the_earlier_download_serves(fake_apt, tmp_path):
    _, write = fake_apt
    into = tmp_path / "into"
    download_and_unpack(["tool"], into)
    write("apt-get", "echo 'E: Unable to locate package tool' >&2; exit 100")
    assert download_and_unpack(["tool"], into) == into
    with pytest.raises(MissingToolError, match="run 'apt-get update' as root"):
        download_and_unpack(["other"], tmp_path / "elsewhere")


@pytest.fixture
def deb(tmp_path):
    """A package of a program of 1 MiB and its documentation."""
    tree = tmp_path / "tree"
    for name, text in (
        (
            "DEBIAN/control",
            "Package: one\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.invalid>\nDescription: x\n",
        ),
        ("usr/bin/one", "1" * (1 << 20)),
        ("usr/share/doc/one/copyright", "nobody's"),
    ):
        (tree / name).parent.mkdir(parents=True)
        (tree / name).write_text(text)
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, tmp_path / "one.deb"], check=True, capture_output=True)
    return tmp_path / "one.deb"


@pytest.mark.needs("apt")
def test_what_is_not_wanted_of_a_package_is_left_out(deb, tmp_path):
    unpack([deb], tmp_path / "root", without=("usr/share/doc",))
    assert (tmp_path / "root/usr/bin/one").stat().st_size == 1 << 20
    assert not (tmp_path / "root/usr/share/doc").exists()


@pytest.mark.needs("apt")
@pytest.mark.timeout(30)
def test_where_tar_ends_early_dpkg_deb_does_not_wait_for_it(deb, tmp_path, monkeypatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tar").write_text("#!/bin/sh\necho tar: the disk is full >&2; exit 2\n")
    (tools / "tar").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(OperationError, match=r"one.deb: cannot be unpacked: tar: the disk is full$"):
        unpack([deb], tmp_path / "root")


@pytest.mark.needs("apt")
@pytest.mark.integration
def test_a_real_package_is_unpacked_without_what_is_not_wanted(tmp_path):
    root = download_and_unpack(["busybox-static"], tmp_path / "busybox")
    assert any((root / place).exists() for place in ("bin/busybox", "usr/bin/busybox"))
    assert (root / "usr/share/doc").is_dir()
