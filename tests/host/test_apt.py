import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chainlift.errors import InputError
from chainlift.host.apt import private_apt, replace_suite, unpack

STANZAS = """\
# the archive
Types: deb deb-src
URIs: mirror:/etc/mirrors
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: mirror:/etc/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: mirror:/etc/disabled
Suites: bookworm
Components: main
"""


def etc(path, *, release="bookworm", identity="debian", **files):
    (path / "apt/sources.list.d").mkdir(parents=True)
    (path / "os-release").write_text(f'ID={identity}\nVERSION_CODENAME="{release}"\n')
    for name, text in files.items():
        stem, _, suffix = name.partition("_")
        place = "apt/sources.list" if stem == "main" else f"apt/sources.list.d/{stem}.{suffix}"
        (path / place).write_text(text)
    return path


def test_a_stanza_keeps_everything_but_types_suites_and_components(tmp_path):
    sources = replace_suite(etc(tmp_path, debian_sources=STANZAS), ["trixie", "trixie-backports"])
    assert sources == {
        "debian.sources": "Types: deb\nURIs: mirror:/etc/mirrors\nSuites: trixie trixie-backports\nComponents: main\n"
        "Signed-By: \n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n"
    }


def test_one_line_sources_keep_their_options_and_others_are_left_out(tmp_path):
    lines = (
        "# deb mirror:/x bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] mirror:/etc/mirrors bookworm main contrib # ours\n"
        "deb mirror:/etc/other nodistro main\n"
        "deb-src mirror:/etc/mirrors bookworm main\n"
    )
    expected = "deb [arch=amd64 signed-by=/k.gpg] mirror:/etc/mirrors bullseye main\n"
    sources = replace_suite(etc(tmp_path, main_=lines, x_list=lines, y_save=lines), ["bullseye"])
    assert sources == {"sources.list": expected, "x.list": expected}


@pytest.mark.parametrize("facts", [{"identity": "ubuntu"}, {"release": "trixie"}])
def test_a_host_without_a_debian_source_of_its_own_release_is_refused(tmp_path, facts):
    with pytest.raises(InputError, match="no Debian source"):
        replace_suite(etc(tmp_path, debian_sources=STANZAS, **facts), ["bullseye"])


@pytest.mark.parametrize("name", ["../trixie", "-trixie", "trixie;x", "Trixie", ""])
def test_a_name_that_is_no_suite_is_refused_before_apt_runs(name):
    with pytest.raises(InputError, match="not the name of a Debian suite"), private_apt(name):
        pass


@pytest.mark.integration
def test_a_package_of_another_suite_is_fetched_and_unpacked(tmp_path):
    with private_apt("trixie") as apt:
        (package,) = apt.download(["hostname"], with_depends=False)
        with pytest.raises(InputError, match="no-such-package"):
            apt.download(["no-such-package"])
        unpack([package], tmp_path / "root")
        root = apt.root
    assert not root.exists()
    assert next((tmp_path / "root").glob("**/bin/hostname")).is_file()
    assert not (tmp_path / "root/usr/share/doc").exists()


@pytest.mark.integration
def test_a_suite_that_does_not_exist_is_bad_input():
    with private_apt("nosuchsuite") as apt, pytest.raises(InputError, match="no Debian suite 'nosuchsuite'"):
        apt.download(["hostname"])


@pytest.mark.long
@pytest.mark.needs("root")
def test_a_user_can_add_a_release(tmp_path):
    tmp_path.chmod(0o777)
    # pytest makes its directories for their owner alone; xdist has one more for each worker.
    for parent in tmp_path.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    code = "from chainlift.qemu.releases import add_release; print(add_release('trixie').version_text)"
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "CHAINLIFT_CACHE": str(tmp_path / "cache"), "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("10.0.")
