"""The micro guest: Debian's cloud kernel and an initramfs made here, up in seconds also under emulation.

What is inside comes from packages that are unpacked into the cache (nothing is installed on this host): the kernel with
the modules for virtio-scsi and ext4, busybox, fio, and the QEMU guest agent with the libraries that they need. The
measured disk is an ext4 file system without a partition table, and is mounted when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from chainlift.errors import OperationError
from chainlift.guest import disk
from chainlift.guest.initramfs import Initramfs
from chainlift.guest.interface import GuestImage
from chainlift.guest.libraries import closure
from chainlift.guest.modules import load_order
from chainlift.guest.system import AgentGuest, connect_agent
from chainlift.host.apt.unpacked import download_and_unpack, libraries, versions_in
from chainlift.host.cache import cache_dir

if TYPE_CHECKING:
    from chainlift.qemu.vm import VirtualMachine

_PACKAGES = ("linux-image-cloud-amd64", "busybox-static", "fio", "qemu-guest-agent")
_MODULES = ("virtio_pci", "virtio_console", "virtio_scsi", "sd_mod", "ext4")

#: An initramfs that was not used for so long goes when another one is made: they are 60 to 90 MB each.
_KEEP_S = 30 * 86400

#: The first process, and what the agent calls to shut the system down.
_INIT, _SHUTDOWN = (Path(__file__).with_name(name) for name in ("micro_init.sh", "micro_shutdown.sh"))


class MicroGuest:
    """The kind of guest that a study uses unless it is told otherwise.

    :param suite: the Debian release that kernel and programs come from; None is the host's own.
    :param fio: whether fio is in it. Its libraries are most of the initramfs; a guest that only boots, reads and halts
        is up half a second sooner without, and its QEMU, which maps the initramfs, is 80 MB smaller.
    """

    name = "micro"

    def __init__(self, *, suite: str | None = None, fio: bool = True) -> None:
        self._suite = suite
        self._programs = ("usr/sbin/qemu-ga", *(("usr/bin/fio",) if fio else ()))

    def prepare(self) -> GuestImage:
        """Unpack the packages and assemble the initramfs; what is there already is used again.

        :raise MissingToolError: if apt is not there or knows no such packages.
        :raise OperationError: if a download fails.
        """
        into = cache_dir("packages") / ("micro" if self._suite is None else f"micro-{self._suite}")
        root = download_and_unpack(_PACKAGES, into, suite=self._suite, with_depends=True, keep=_wanted)
        release = max(path.name.removeprefix("vmlinuz-") for path in (root / "boot").glob("vmlinuz-*"))
        initrd = self._assemble(root, release)
        return GuestImage(
            description=f"Debian's kernel {release}, busybox, {', '.join(Path(p).name for p in self._programs)}",
            kernel_release=release,
            kernel=root / "boot" / f"vmlinuz-{release}",
            initrd=initrd,
            append="quiet",
            memory_bytes=512 << 20,
            vcpus=1,
        )

    def make_disk(self, path: Path, virtual_size: int, *, data_bytes: int = 0) -> None:
        """Make an ext4 file system on a whole disk with a file for fio in it; see :mod:`chainlift.guest.disk`.

        :param path: the image; it must not be there.
        :param virtual_size: bytes of the disk.
        :param data_bytes: of fio's file; 0: none.
        """
        disk.make_ext4_disk(path, virtual_size, data_bytes=data_bytes)

    def connect(self, vm: VirtualMachine, timeout_s: float) -> AgentGuest:
        """Wait until the guest's agent answers.

        :raise GuestError: if it does not within ``timeout_s``; the text ends with the last lines of its console.
        :raise QemuCrashed: if QEMU crashed meanwhile.
        """
        return AgentGuest(vm, connect_agent(vm, timeout_s), mount=True)

    def _assemble(self, root: Path, release: str) -> Path:
        """Write the initramfs, named by what it is made of; return its path."""
        parts = [
            versions_in(root),
            self._programs,
            _INIT.read_text(),
            _SHUTDOWN.read_text(),
            Path(__file__).read_text(),
        ]
        recipe = json.dumps(parts, sort_keys=True).encode()
        path = cache_dir("guest") / f"micro-{release}-{hashlib.sha256(recipe).hexdigest()[:16]}.cpio"
        if path.exists():
            path.touch()
            return path
        for old in path.parent.glob("micro-*.cpio"):
            if old.stat().st_mtime < time.time() - _KEEP_S:
                old.unlink(missing_ok=True)
        image = Initramfs()
        for directory in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "sbin", "usr/bin", "etc", "var"):
            image.directory(directory)
        image.symlink("var/run", "/run").symlink("usr/sbin/poweroff", "/bin/poweroff")
        image.character_device("dev/console", 5, 1).character_device("dev/null", 1, 3)
        image.file("init", _INIT.read_bytes(), executable=True)
        image.file("sbin/shutdown", _SHUTDOWN.read_bytes(), executable=True)
        image.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n").file("etc/group", b"root:x:0:\n")
        # Debian 12 keeps them in /lib, Debian 13 in /usr/lib.
        usr_merged = (root / "usr/lib/modules").is_dir()
        order = load_order(root / ("usr/lib" if usr_merged else "lib") / "modules" / release, _MODULES)
        for module in order:
            image.file(f"modules/{module.name}.ko", module.data)
        image.file("modules/order", "".join(f"{module.name}\n" for module in order).encode())
        programs = {PurePosixPath(place): _program(root, place) for place in self._programs}
        image.file("bin/busybox", _program(root, "bin/busybox").read_bytes(), executable=True)
        for place, file in (programs | closure(root, list(programs.values()))).items():
            image.file(place, file.read_bytes(), executable=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
            try:
                image.write(Path(scratch.name))
                Path(scratch.name).rename(path)
            except BaseException:
                Path(scratch.name).unlink()
                raise
        return path


def _wanted(name: str) -> bool:
    return libraries(name) or name.startswith(("linux-image-", "linux-binary-", "linux-modules-"))


def _program(root: Path, place: str) -> Path:
    """Return a program of the unpacked packages; releases differ in whether ``/bin`` is ``/usr/bin``."""
    name = PurePosixPath(place).name
    for directory in ("usr/bin", "usr/sbin", "bin", "sbin"):
        if (root / directory / name).is_file():
            return root / directory / name
    raise OperationError(f"the packages hold no program {name}", path=root)
