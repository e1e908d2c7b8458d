import json

import pytest

from chainlift.errors import InputError, MissingToolError
from chainlift.qemu.features import probe_features
from chainlift.qemu.find import find_qemu
from chainlift.qemu.process import run_tool
from chainlift.qemu.releases import add_release, added_releases, find_release, remove_release


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    return tmp_path


def lay_out(cache, suite, version):
    """Make a directory as `qemu add` leaves it, without programs that run."""
    root = cache / f"qemu/debian-{suite}/root"
    (root / "usr/lib/x86_64-linux-gnu/qemu").mkdir(parents=True)
    (root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2").touch()
    (root / "usr/share/qemu").mkdir(parents=True)
    (root / "usr/bin").mkdir()
    (root / "usr/bin/qemu-img").touch()
    (root.parent / "release.json").write_text(json.dumps({"suite": suite, "version_text": version}))
    return root


def test_a_release_runs_with_its_own_loader_libraries_modules_and_firmware(cache):
    root = lay_out(cache, "trixie", "10.0.3 (Debian 1:10.0.3)")
    (root / "usr/bin/qemu-system-x86_64").touch()
    qemu = find_qemu("debian:trixie")
    libraries = f"{root}/usr/lib/x86_64-linux-gnu"
    assert qemu.version == (10, 0, 3)
    assert qemu.command("img", "info")[:3] == [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", libraries]
    assert qemu.command("img", "info")[3:] == [f"{root}/usr/bin/qemu-img", "info"]
    if qemu.system is not None:  # on another machine the emulator has another name
        assert qemu.command("system", "-S")[-3:] == ["-L", f"{root}/usr/share/qemu", "-S"]
    assert qemu.environment == {"QEMU_MODULE_DIR": f"{libraries}/qemu"}


def test_releases_are_listed_oldest_first_and_can_be_removed(cache):
    lay_out(cache, "trixie", "10.0.3 (x)")
    lay_out(cache, "bullseye", "5.2.0 (x)")
    assert [qemu.label for qemu in added_releases()] == ["debian:bullseye", "debian:trixie"]
    remove_release("debian:bullseye")
    assert [qemu.label for qemu in added_releases()] == ["debian:trixie"]


def test_a_release_that_was_not_added_says_how_to_add_it(cache):
    with pytest.raises(MissingToolError, match="chainlift qemu add debian:trixie"):
        find_qemu("debian:trixie")


def test_a_name_that_leads_out_of_the_cache_is_refused(cache):
    for name in ("debian:../../etc", "debian:", "debian:a/b"):
        with pytest.raises(InputError, match="not the name of a Debian suite"):
            find_release(name)


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize(
    ("suite", "version"), [("bullseye", (5, 2)), ("trixie", (10, 0)), ("trixie-backports", (11, 1))]
)
def test_a_release_is_unpacked_and_runs(cache, suite, version):
    qemu = add_release(suite)
    assert qemu.version[:2] >= version
    for tool in ("system", "img", "io", "storage-daemon"):
        assert qemu.version_text in run_tool(qemu.command(tool, "--version"), environment=qemu.environment).stdout
    features = probe_features(qemu)
    assert features.vmdk
    assert features.blockdev_reopen == (qemu.version >= (6, 1, 0))


@pytest.mark.integration
def test_the_hosts_qemu_says_what_it_can_do():
    qemu = find_qemu("host")
    features = probe_features(qemu)
    assert features.vmdk
    assert features.blockdev_reopen == (qemu.version >= (6, 1, 0))
