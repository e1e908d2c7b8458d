import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from chainlift.errors import InputError, MissingToolError
from chainlift.host.apt.client import open_apt


@pytest.mark.parametrize("name", ["../trixie", "-trixie", "trixie;x", "Trixie", ""])
def test_a_name_that_is_no_suite_is_refused_before_apt_runs(name):
    with pytest.raises(InputError, match="not the name of a Debian suite"), open_apt(name):
        pass


@pytest.mark.integration
def test_a_package_of_another_suite_is_fetched(tmp_path):
    with open_apt("trixie") as apt:
        versions = apt.resolve(["hostname"])
        assert {"hostname", "libc6"} <= versions.keys()
        (package,) = apt.download({"hostname": versions["hostname"]}, tmp_path)
        with pytest.raises(InputError, match=r"Debian suite trixie: .*no-such-package"):
            apt.resolve(["no-such-package"])
    assert package.name.startswith("hostname_")


@pytest.mark.integration
def test_a_suite_that_does_not_exist_is_bad_input():
    with pytest.raises(InputError, match="no Debian suite 'nosuchsuite'"), open_apt("nosuchsuite"):
        pass


@pytest.mark.needs("apt")
@pytest.mark.integration
def test_the_host_s_own_apt_knows_what_a_package_depends_on():
    with open_apt() as apt:
        assert {"fio", "libc6"} <= apt.resolve(["fio"]).keys()
        with pytest.raises(MissingToolError, match="no-such-package; run 'apt-get update' as root"):
            apt.resolve(["no-such-package"])


def test_without_apt_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingToolError, match="no apt-get on this host; this needs Debian"), open_apt():
        pass


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
