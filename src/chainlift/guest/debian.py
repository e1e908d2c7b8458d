"""The debian guest: a full Debian system with systemd that lives on the disk that is measured.

mmdebstrap makes it from packages, once, into the cache; ``debian_customize.sh`` then takes out what would write to the
disk by itself. A disk is made of it by ``mke2fs -d``, so nothing is mounted on this host and an ordinary user can do
it. Its kernel is booted directly, by an initrd of busybox and the modules that it needs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import MissingToolError, OperationError
from chainlift.guest import disk
from chainlift.guest.initramfs import Initramfs
from chainlift.guest.interface import GuestImage
from chainlift.guest.modules import load_order
from chainlift.guest.system import AgentGuest, connect_agent
from chainlift.host.apt.sources import os_release, replace_suite
from chainlift.host.cache import cache_dir
from chainlift.host.process import run_tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from chainlift.qemu.machine import Accelerator
    from chainlift.qemu.vm import VirtualMachine

_CUSTOMIZE = Path(__file__).with_name("debian_customize.sh")
_PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "linux-image-cloud-amd64", "busybox-static"),
    *("fio", "qemu-guest-agent", "e2fsprogs"),
)
# All that a study needs, and not only what finds the root: a chain that was built with an earlier kernel has that one's
# modules on its disk.
_MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "virtio_scsi", "sd_mod", "crc32c_generic", "ext4")
#: Where the workload's files are.
_WORK = "/srv"

_INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod "/modules/$module.ko"; done </modules/order
tries=0
until [ -b /dev/sda ]; do
    tries=$((tries + 1))
    [ "$tries" = 6000 ] && { echo "chainlift: no disk /dev/sda" >/dev/console; $b poweroff -f; }
    $b sleep 0.01
done
$b mount -t ext4 -o noatime /dev/sda /root || { echo "chainlift: no ext4 on /dev/sda" >/dev/console; $b poweroff -f; }
$b umount /proc
$b mount --move /dev /root/dev
exec $b switch_root /root /sbin/init
"""


class DebianGuest:
    """A kind of guest; the ``seed`` plan uses it.

    :param suite: the release to make it of, ``trixie``; None is the host's own.
    :param accelerator: what the guest will run on.
    :param packages: what it is to have beside what every study needs.
    """

    name = "debian"

    def __init__(
        self, *, suite: str | None = None, accelerator: Accelerator = "tcg", packages: Sequence[str] = ()
    ) -> None:
        self._suite = suite
        self._packages = (*_PACKAGES, *packages)
        self._accelerator: Accelerator = accelerator

    def prepare(self) -> GuestImage:
        """Make the root file system's archive, about a minute of work; what is there already is used again.

        It is not made anew when Debian has newer packages: two runs of a study are to have the same guest.

        :raise InputError: if the host's apt has no Debian sources, or they have no such suite.
        :raise MissingToolError: if mmdebstrap is not there.
        :raise OperationError: if it fails.
        """
        return self._image(self._system())

    def make_disk(self, path: Path, virtual_size: int, *, data_bytes: int = 0) -> None:
        """Make the disk: the system on an ext4 file system without a partition table, and the workload's file in it.

        :param path: the image; it must not be there.
        :param virtual_size: bytes of the disk.
        :param data_bytes: of the workload's file; 0: none.
        :raise MissingToolError: if mke2fs or debugfs, or for an ordinary user fakeroot, is not there.
        """
        archive = self._system() / "root.tar"
        disk.make_ext4_disk(path, virtual_size, data_bytes=data_bytes, data_directory=_WORK, archive=archive)

    def connect(self, vm: VirtualMachine, timeout_s: float) -> AgentGuest:
        """Wait until the guest's agent answers.

        :raise GuestError: if it does not within ``timeout_s``; the text ends with the last lines of its console.
        :raise QemuCrashed: if QEMU crashed meanwhile.
        """
        return AgentGuest(vm, connect_agent(vm, timeout_s), work=_WORK)

    def _image(self, system: Path) -> GuestImage:
        kernel = next(system.glob("vmlinuz-*"))
        release = kernel.name.removeprefix("vmlinuz-")
        # What costs a real CPU little is what an emulated one spends its boot on: the kernel's tests of its own
        # ciphers, and the mitigations of flaws that an emulated CPU has not.
        emulated = " cryptomgr.notests mitigations=off" if self._accelerator == "tcg" else ""
        return GuestImage(
            description=f"Debian {self._codename()}, kernel {release}, systemd",
            kernel_release=release,
            kernel=kernel,
            initrd=system / "initrd",
            append="root=/dev/sda rw quiet" + emulated,
            memory_bytes=512 << 20,
            vcpus=1,
        )

    def _codename(self) -> str:
        return self._suite or os_release(Path("/etc/os-release")).get("VERSION_CODENAME", "stable")

    def _system(self) -> Path:
        """Return the directory of the archive, the kernel and the initrd; make it if it is not there."""
        suite = self._codename()
        recipe = "\0".join([_CUSTOMIZE.read_text(), _INIT, *_MODULES, *self._packages])
        directory = cache_dir("guest") / f"debian-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
        if directory.exists():
            return directory
        with _locked(directory):
            if not directory.exists():
                for left in directory.parent.glob(f".{directory.name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
                    system = Path(scratch, "system")
                    system.mkdir()
                    _bootstrap(suite, self._packages, system / "root.tar", Path(scratch))
                    _take_kernel(system, Path(scratch, "boot"))
                    system.rename(directory)
        return directory


def _bootstrap(suite: str, packages: Sequence[str], archive: Path, scratch: Path) -> None:
    """Run mmdebstrap."""
    if shutil.which("mmdebstrap") is None:
        raise MissingToolError("there is no mmdebstrap to make a guest with", hint="install the package mmdebstrap")
    sources = []
    for name, text in replace_suite(Path("/etc"), [suite]).items():
        sources.append(scratch / name)
        sources[-1].write_text(text)
    without = ("man", "locale", "doc", "info")
    # No initrd by the distribution's tools, we make a smaller one. As root, what a kill leaves behind is in our
    # directory; a user's other identities may not enter it, so that then it is where mmdebstrap wants it.
    environment = {"INITRD": "No", "LC_ALL": "C.UTF-8"}
    if os.geteuid() == 0:
        environment["TMPDIR"] = str(scratch)
    finished = run_tool(
        [
            *("mmdebstrap", "--mode=auto", "--variant=apt", "--format=tar"),
            f"--include={','.join(packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in without),
            f"--customize-hook={_CUSTOMIZE}",
            *(suite, str(archive), *map(str, sources)),
        ],
        environment=environment,
        check=False,
    )
    if finished.returncode != 0:
        errors = [line[2:].strip() for line in finished.stderr.splitlines() if line.startswith("E:")]
        hint = None if os.geteuid() == 0 else "as a user it needs the package uidmap"
        raise OperationError(f"mmdebstrap could not make Debian {suite}: {' | '.join(errors[:2])}", hint=hint)


def _take_kernel(system: Path, scratch: Path) -> None:
    """Take the kernel out of the archive and make the initrd."""
    wanted = re.compile(r"\./(usr/)?(boot/vmlinuz-.*|lib/modules/.*|bin/busybox)")
    with tarfile.open(system / "root.tar") as archive:
        for member in archive:
            if member.isfile() and wanted.fullmatch(member.name) and (source := archive.extractfile(member)):
                target = scratch / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
    kernel = next(scratch.glob("boot/vmlinuz-*"), None)
    busybox = next((path for path in (scratch / "usr/bin/busybox", scratch / "bin/busybox") if path.exists()), None)
    if kernel is None or busybox is None:
        raise OperationError("the system that mmdebstrap made has no kernel or no busybox", path=system / "root.tar")
    release = kernel.name.removeprefix("vmlinuz-")
    usr = scratch / "usr" if (scratch / "usr/lib/modules").exists() else scratch
    order = load_order(usr / "lib/modules" / release, _MODULES)
    image = Initramfs()
    for directory in ("dev", "proc", "root"):
        image.directory(directory)
    image.character_device("dev/console", 5, 1)
    image.file("bin/busybox", busybox.read_bytes(), executable=True)
    image.file("init", _INIT.encode(), executable=True)
    for module in order:
        image.file(f"modules/{module.name}.ko", module.data)
    image.file("modules/order", "".join(f"{module.name}\n" for module in order).encode())
    image.write(system / "initrd")
    shutil.copyfile(kernel, system / kernel.name)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
