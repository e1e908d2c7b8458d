"""A real libvirtd of a user of its own, in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support import reaper
from tests.support.need import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = {"XDG_RUNTIME_DIR": "run", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}


_PROMPT = "virsh # "


@dataclass(frozen=True)
class Answer:
    """What virsh said."""

    text: str
    #: Why it failed; empty where it did not.
    error: str

    def __bool__(self) -> bool:
        return not self.error


def virsh(*arguments: object) -> str:
    """Run virsh and return what it prints."""
    done = subprocess.run(["virsh", "-q", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Daemon:
    """A libvirtd that can be ended and started again."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self._command, self._environment, self._log = command, environment, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers at ``LIBVIRT_DEFAULT_URI``."""
        with self._log.open("a") as log:
            command = [sys.executable, reaper.__file__, *self._command]
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        for _ in range(200):
            if subprocess.run(["virsh", "-q", "list"], capture_output=True).returncode == 0:
                return
            if self._process.poll() is not None:
                missing("libvirt", f"libvirtd does not run: {self.complaints}")
            time.sleep(0.1)
        missing("libvirt", "libvirtd does not answer")

    @property
    def complaints(self) -> str:
        """The last that it has complained of, and how it has ended, if it has."""
        status = self._process.poll() if self._process is not None else None
        return self._log.read_text()[-2000:] + ("" if status is None else f"\nit has ended: {status}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; the domains go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1 if number == signal.SIGKILL else number)
            # One that waits for a thread of its own gives up after 30 s, as "forcefull" as it calls it.
            self._process.wait(60)
            self._process = None


class Libvirtd(Daemon):
    """The daemon of a session; as root it is nobody's, for root has no session.

    :param path: a directory that its user may enter: ``images`` is the user's, ``config/libvirt/qemu`` has its
        definitions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        #: What makes a command the daemon's user's.
        self.as_user: list[str] = []
        for name in (*_NAMES.values(), "config/libvirt", "images"):
            (path / name).mkdir()
        (path / "config/libvirt/qemu.conf").write_text('security_driver = "none"\nstdio_handler = "file"\n')
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self.as_user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
            for directory in (path, *path.rglob("*")):
                os.chown(directory, nobody.pw_uid, nobody.pw_gid)
        self.uri = f"qemu+unix:///session?socket={path / 'run/libvirt/libvirt-sock'}"
        names = {key: str(path / name) for key, name in _NAMES.items()}
        environment = {**os.environ, "HOME": str(path), **names}
        super().__init__([*self.as_user, "libvirtd"], environment, path / "log")


@contextlib.contextmanager
def libvirtd(within: Path | None = None) -> Iterator[Libvirtd]:
    """Start libvirtd in a new directory and let ``LIBVIRT_DEFAULT_URI`` name it; its domains end with the block.

    :param within: where the directory is made; None: where temporary files are.
    """
    with contextlib.ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="chainlift-", dir=within))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        daemon = _running[path] = Libvirtd(path)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("LIBVIRT_DEFAULT_URI", daemon.uri)
        daemon.start()
        stack.callback(daemon.stop)
        stack.callback(_end_domains)
        yield daemon


def give_to(place: Path, directory: Path) -> None:
    """Make a directory and all in it the daemon's user's.

    :param place: what :func:`running_libvirtd` gives.
    """
    owner = place.stat()
    for path in (directory, *directory.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def running_libvirtd() -> Iterator[Path]:
    """As :func:`libvirtd`; gives the directory."""
    with libvirtd() as daemon:
        yield daemon.path


_running: dict[Path, Daemon] = {}


def libvirtd_of(place: Path) -> Daemon:
    """Return the daemon that runs in a directory of :func:`running_libvirtd`."""
    return _running[place]


#: Makes the places that the system's instance has compiled in, in a mount namespace of its own.
_SYSTEM = """
mount --bind {place}/passwd /etc/passwd
mount --bind {place}/group /etc/group
mount --bind {place}/etc /etc/libvirt
for each in lib cache log; do mount -t tmpfs none /var/$each; mkdir /var/$each/libvirt; done
mount --bind {place}/run /run
# Where root may use it and QEMU's user may not, libvirt takes what it knows of QEMU for outdated, at every command.
[ ! -e /dev/kvm ] || mount --bind {place}/no-kvm /dev/kvm
exec libvirtd
"""
_QEMU_CONF = """
security_driver = "none"
user = "nobody"
group = "nogroup"
dynamic_ownership = 1
stdio_handler = "file"
cgroup_controllers = [ ]
namespaces = [ ]
"""


@contextlib.contextmanager
def running_system_libvirtd() -> Iterator[Path]:
    """Start the system's instance of libvirtd as root; its QEMUs are nobody's, and it gives them their files (DAC).

    Nothing of the host's own instance is seen or changed. Gives the directory, where ``images`` is.
    """
    with contextlib.ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="chainlift-"))
        stack.callback(shutil.rmtree, path, ignore_errors=True)
        for name in ("etc", "run/libvirt", "images"):
            (path / name).mkdir(parents=True)
        for directory in (path, path / "images"):
            directory.chmod(0o755)
        (path / "etc/qemu.conf").write_text(_QEMU_CONF)
        (path / "no-kvm").touch(mode=0o666)
        # Debian's package makes this user, which is compiled in as well.
        (path / "passwd").write_text(_with("/etc/passwd", "libvirt-qemu:x:64055:65534::/:/usr/sbin/nologin"))
        group = _with("/etc/group", "libvirt-qemu:x:64055:") + ("" if _has_kvm() else "kvm:x:64056:\n")
        (path / "group").write_text(group)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///system?socket={path / 'run/libvirt/libvirt-sock'}")
        script = _SYSTEM.format(place=path)
        command = ["unshare", "-m", "--propagation", "private", "sh", "-ec", script]
        daemon = Daemon(command, dict(os.environ), path / "log")
        stack.callback(daemon.stop)
        daemon.start()
        yield path


def _with(file: str, line: str) -> str:
    text = Path(file).read_text()
    return text if line.split(":", maxsplit=1)[0] + ":" in text else f"{text}{line}\n"


def _has_kvm() -> bool:
    return any(line.startswith("kvm:") for line in Path("/etc/group").read_text().splitlines())


def _end_domains() -> None:
    done = subprocess.run(["virsh", "-q", "list", "--name"], capture_output=True, text=True, timeout=60)
    for name in done.stdout.split():
        subprocess.run(["virsh", "-q", "destroy", name], capture_output=True, timeout=60)


class Virsh:
    """One virsh that is asked many things: a new one takes ten times as long as most of the answers."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, *arguments: object) -> Answer:
        """Run a command; it starts again where the daemon has ended since the last one."""
        if self._process is None:
            self._process = subprocess.Popen(
                ["virsh", "-q"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        mark = secrets.token_hex(8)
        line = " ".join("'" + str(word).replace("'", "'\\''") + "'" for word in arguments)
        self._process.stdin.write(f"{line}\necho {mark}\n")
        self._process.stdin.flush()
        # What it reads it says again, a long line cut short, after its prompt; an echo ends without the end of a line.
        text = ""
        while text.count(mark) < 2:
            more = os.read(self._process.stdout.fileno(), 1 << 20).decode(errors="replace")
            assert more, f"virsh has ended: {text}"
            text += more
        said = text.partition(mark)[0].rpartition(_PROMPT)[0].partition("\n")[2].strip()
        errors = [each.removeprefix("error: ") for each in said.splitlines() if each.startswith("error: ")]
        return Answer(said, " ".join(errors))

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(120)
            self._process.stdout.close()
            self._process = None
