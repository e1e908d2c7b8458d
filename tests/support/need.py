"""What a test needs of the machine beside QEMU.

A test that wants something which is not there is skipped and says what. Where ``$CHAINLIFT_REQUIRE`` names it
(``perf,chromium,libvirt,loop,releases``), the test fails instead: on a machine that is known to have it, a skip would
hide that the test never runs.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

VARIABLE = "CHAINLIFT_REQUIRE"


@dataclass(frozen=True)
class Need:
    """One thing that tests want."""

    #: What to say where it is not there.
    reason: str
    #: Programs that must be in the path.
    programs: tuple[str, ...] = ()
    #: A file that must be there.
    file: str = "/"
    #: The only kind of machine that will do.
    machine: str | None = None
    #: Python packages that must be there.
    modules: tuple[str, ...] = ()

    def is_met(self) -> bool:
        return (
            all(map(shutil.which, self.programs))
            and Path(self.file).exists()
            and self.machine in (None, platform.machine())
            and all(importlib.util.find_spec(module) is not None for module in self.modules)
        )


#: By the name that ``$CHAINLIFT_REQUIRE`` and the marker ``needs`` know it by. What is found out only by trying it has
#: no more than a reason here: the test calls :func:`missing`.
NEEDS = {
    "acl": Need("needs setfacl (package acl) and a file system with access lists", ("setfacl", "getfacl")),
    "apt": Need("needs a Debian host", ("apt-get",)),
    "chromium": Need("needs chromium", ("chromium",)),
    "clone": Need("needs git and a clone", ("git",), file=str(Path(__file__).parents[2] / ".git")),
    "compiler": Need("needs gcc and binutils", ("gcc", "objcopy", "strip")),
    "cpio": Need("needs cpio to judge", ("cpio",)),
    "debuginfod": Need("needs debuginfod-find (package debuginfod)", ("debuginfod-find",)),
    "fish": Need("needs fish", ("fish",)),
    "fleet": Need("needs the extra fleet (distributed, pyarrow)", modules=("distributed", "pyarrow")),
    "glibc": Need("needs an x86-64 host with glibc", file="/lib64/ld-linux-x86-64.so.2"),
    "holes": Need("needs a file system that tells where its holes are"),
    "io_uring": Need("needs a kernel that lets QEMU use io_uring"),
    "latex": Need("needs a LaTeX", ("lualatex",)),
    "labels": Need("needs a file system that keeps security labels"),
    "libvirt": Need("needs libvirtd and virsh", ("libvirtd", "virsh")),
    "pools": Need("needs libvirt's driver for storage pools (libvirt-daemon-driver-storage)"),
    "loop": Need("needs a loop device, and root to mount it (or sudo)"),
    "partitions": Need("needs a kernel that makes partitions of loop devices"),
    "man": Need("needs groff and mandoc to judge", ("groff", "mandoc")),
    "mount": Need("needs root to mount a file system (or sudo)"),
    "fuse": Need("needs a FUSE that QEMU may mount"),
    "perf": Need("needs perf (package linux-perf)", ("perf",)),
    "reachable": Need("needs a clone that other users can enter: not below /root"),
    "releases": Need("needs QEMU of other Debian releases (chainlift qemu add)"),
    "root": Need("needs root"),
    "reverts": Need("needs a libvirt that reverts to external snapshots (9.9 or newer)"),
    "stripped": Need("needs a QEMU that came without its symbols"),
    "systemd": Need("needs systemd-analyze", ("systemd-analyze",)),
    "zsh": Need("needs zsh", ("zsh",)),
    "x86-64": Need("needs x86-64: the harness knows its registers alone", machine="x86_64"),
}


def required() -> frozenset[str]:
    """Return what ``$CHAINLIFT_REQUIRE`` names.

    :raise pytest.UsageError: if it names something that no test wants.
    """
    names = frozenset(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    if unknown := names - NEEDS.keys():
        raise pytest.UsageError(f"{VARIABLE}: nothing is called {', '.join(sorted(unknown))}; there are {[*NEEDS]}")
    return names


def missing(name: str, detail: str = "") -> NoReturn:
    """End the test because something is not there: a skip, or a failure where it is required.

    :param name: one of :data:`NEEDS`.
    """
    said = f"{NEEDS[name].reason}: {detail}" if detail else NEEDS[name].reason
    if name in required():
        pytest.fail(f"{said} ({VARIABLE} names {name})", pytrace=False)
    pytest.skip(said)


def check(names: Iterable[str]) -> None:
    """End the test if one of these is not there."""
    for name in names:
        if not NEEDS[name].is_met() or wants_root(name):
            missing(name)


def is_left_out(names: Iterable[str]) -> bool:
    """Whether a test that wants these is not run: only root could have one, this is a user, and it is not required."""
    return any(wants_root(name) and name not in required() for name in names)


def wants_root(name: str) -> bool:
    """Whether only root could have it, and this is a user."""
    if os.geteuid() == 0:
        return False
    # perf_event_open(2): above 2, which is Debian's choice, a user may not even look at processes of its own.
    paranoid = Path("/proc/sys/kernel/perf_event_paranoid")
    return name == "root" or (name == "perf" and paranoid.exists() and int(paranoid.read_text()) > 2)


@functools.cache
def as_root() -> tuple[str, ...] | None:
    """Return what to put before a command that root must run; None where nobody here may become root."""
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "-n")
    can = shutil.which("sudo") and subprocess.run([*sudo, "true"], capture_output=True).returncode == 0
    return sudo if can else None
