"""The QEMU of another Debian release, unpacked beside the host's own: nothing is installed.

A release lies in the cache with every library it needs, its own C library and dynamic loader among them, and is started
through that loader: no library of the host is ever mixed in. Firmware comes from its own data directory (``-L``),
loadable modules from its own module directory (``$QEMU_MODULE_DIR``).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
from typing import TYPE_CHECKING

from chainlift.errors import InputError, MissingToolError, QemuError
from chainlift.host.apt.client import open_apt
from chainlift.host.apt.unpacked import unpack
from chainlift.host.cache import cache_dir
from chainlift.qemu.binary import Qemu, parse_version, read_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PREFIX = "debian:"
_FACTS = "release.json"
#: Debian's name of the package with this machine's system emulator.
_SYSTEM_PACKAGE = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm", "riscv64": "qemu-system-misc"}
#: Where firmware lies in the packages.
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
# What no QEMU tool reads: two thirds of what the packages hold.
_WITHOUT = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/zoneinfo",
    "usr/share/info",
    "usr/share/perl*",
    "usr/lib/*/perl*",
    "usr/lib/*/gconv",
    "usr/bin/qemu-system-i386",
    "usr/bin/qemu-system-x86_64-*",
    "usr/bin/perl*",
    "usr/sbin",
    "sbin",
    "bin",
    "etc",
    "var",
)


def add_release(suite: str, progress: Callable[[str], None] = lambda _: None) -> Qemu:
    """Fetch and unpack the QEMU of a Debian suite, or return it where it is already there.

    :param suite: ``trixie``; ``debian:trixie`` is understood too.
    :raise InputError: if there is no such suite.
    """
    suite = suite.removeprefix(PREFIX)
    target = _target(suite)
    if not (target / _FACTS).exists():
        system = _SYSTEM_PACKAGE.get(platform.machine())
        if system is None:
            raise InputError(f"no Debian package with QEMU is known for this machine ({platform.machine()})")
        temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            progress(f"fetching QEMU of Debian {suite} and all it needs")
            debs = temporary / "debs"
            debs.mkdir(parents=True)
            with open_apt(suite) as apt:
                packages = apt.download(apt.resolve([system, "qemu-utils"]), debs)
                progress(f"unpacking {len(packages)} packages")
                unpack(packages, temporary / "root", without=_WITHOUT)
            shutil.rmtree(debs)
            _, text = read_version(
                [*_loader_command(temporary / "root"), str(_program(temporary / "root", "qemu-img"))]
            )
            facts = {"suite": suite, "version_text": text, "packages": sorted(path.name for path in packages)}
            (temporary / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            # Where somebody else has added it meanwhile, theirs stays.
            with contextlib.suppress(OSError):
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return find_release(suite)


def find_release(suite: str) -> Qemu:
    """Return the QEMU of a release that was added before.

    :raise MissingToolError: if it was not.
    """
    suite = suite.removeprefix(PREFIX)
    target = _target(suite)
    hint = f"run: chainlift qemu add {PREFIX}{suite}"
    try:
        text = str(json.loads((target / _FACTS).read_text(encoding="utf-8"))["version_text"])
    except (OSError, ValueError, KeyError, TypeError):
        raise MissingToolError(f"the QEMU of Debian {suite} is not unpacked here", hint=hint) from None
    root = target / "root"
    modules = [folder / "qemu" for folder in _library_directories(root) if (folder / "qemu").is_dir()]
    firmware = [root / part for part in _FIRMWARE if (root / part).is_dir()]
    return Qemu(
        label=PREFIX + suite,
        system=_program(root, f"qemu-system-{platform.machine()}"),
        img=_program(root, "qemu-img"),
        io=_program(root, "qemu-io"),
        storage_daemon=_program(root, "qemu-storage-daemon"),
        version=parse_version(text),
        version_text=text,
        source=PREFIX + suite,
        environment={"QEMU_MODULE_DIR": str(modules[0])} if modules else {},
        loader=_loader_command(root),
        system_options=tuple(word for folder in firmware for word in ("-L", str(folder))),
    )


def added_releases() -> list[Qemu]:
    """Return the releases in the cache, oldest QEMU first."""
    found = []
    for facts in cache_dir("qemu").glob(f"debian-*/{_FACTS}"):
        with contextlib.suppress(MissingToolError):
            found.append(find_release(facts.parent.name.removeprefix("debian-")))
    return sorted(found, key=lambda qemu: (qemu.version, qemu.label))


def remove_release(suite: str) -> None:
    """Delete a release from the cache.

    :raise MissingToolError: if it is not there.
    """
    find_release(suite)
    shutil.rmtree(_target(suite.removeprefix(PREFIX)))


def _target(suite: str) -> Path:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", suite):
        raise InputError(f"{suite!r} is not the name of a Debian suite", hint="for example: debian:trixie")
    return cache_dir("qemu") / f"debian-{suite}"


def _library_directories(root: Path) -> list[Path]:
    found = [path for base in ("lib", "usr/lib") for path in sorted((root / base).glob("*-linux-gnu*"))]
    # Xen's libraries have a directory of their own in older releases.
    return [path for path in [*found, *sorted((root / "usr/lib").glob("xen-*/lib/*"))] if path.is_dir()]


def _program(root: Path, name: str) -> Path | None:
    path = root / "usr/bin" / name
    return path if path.is_file() else None


def _loader_command(root: Path) -> tuple[str, ...]:
    folders = _library_directories(root)
    for folder in folders:
        for name in ("ld-linux*.so.*", "ld64.so.*"):
            if found := sorted(folder.glob(name)):
                return (str(found[0]), "--library-path", ":".join(map(str, folders)))
    raise QemuError("has no dynamic loader", path=root, hint="remove the directory and add the release again")
