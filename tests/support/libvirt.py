"""A real libvirtd of a user of its own, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.need import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}


def virsh(*arguments: object) -> str:
    """Run virsh and return what it prints."""
    done = subprocess.run(["virsh", "-q", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def running_libvirtd() -> Iterator[Path]:
    """Start libvirtd and let ``LIBVIRT_DEFAULT_URI`` name it; as root it is nobody's, for root has no session.

    Gives the directory, where ``images`` is the daemon's user's, and ``config/libvirt/qemu`` has its definitions.
    """
    with contextlib.ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="chainlift-"))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        for name in (*_NAMES.values(), "config/libvirt", "images"):
            (path / name).mkdir()
        (path / "config/libvirt/qemu.conf").write_text('security_driver = "none"\nstdio_handler = "file"\n')
        as_user: list[str] = []
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
            for directory in (path, *path.rglob("*")):
                os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        environment = {**os.environ, "HOME": str(path), **{key: str(path / name) for key, name in _NAMES.items()}}
        log = stack.enter_context((path / "log").open("w"))
        daemon = subprocess.Popen([*as_user, "libvirtd"], env=environment, stdout=log, stderr=log)
        stack.callback(daemon.wait, 30)
        stack.callback(daemon.terminate)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={path / 'run/libvirt/libvirt-sock'}")
        for _ in range(200):
            if subprocess.run(["virsh", "-q", "list"], capture_output=True).returncode == 0:
                break
            if daemon.poll() is not None:
                missing("libvirt", f"libvirtd does not run: {(path / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        else:
            missing("libvirt", "libvirtd does not answer")
        yield path
