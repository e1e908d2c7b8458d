"""A QEMU: its system emulator and its tools, where they are and which version they are."""

from __future__ import annotations

import mmap
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift import facts
from chainlift.errors import InputError, MissingToolError
from chainlift.host.process import last_lines, run_tool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Tool = Literal["system", "img", "io", "storage-daemon"]

#: Between a QEMU and the function that was taken out of a copy of it (:mod:`chainlift.qemu.ablated`).
WITHOUT = ",without="
#: The oldest QEMU whose command line we speak.
OLDEST = facts.SPOKEN.since or (0, 0, 0)

_NAMES: dict[Tool, tuple[str, ...]] = {
    "system": ("qemu-system-x86_64", "qemu-kvm"),
    "img": ("qemu-img",),
    "io": ("qemu-io",),
    "storage-daemon": ("qemu-storage-daemon",),
}
_PACKAGES: dict[Tool, str] = {
    "system": "qemu-system-x86",
    "img": "qemu-utils",
    "io": "qemu-utils",
    "storage-daemon": "qemu-system-common (Debian 12) or qemu-utils",
}
#: Where a build directory or an installation keeps its programs.
_PLACES = ("", "bin", "build", "storage-daemon", "x86_64-softmmu", "build/storage-daemon", "libexec")
_VERSION = re.compile(r"version (\d+)\.(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Qemu:
    """One QEMU that can be measured: programs of the same version."""

    #: How a person names it: ``host``, ``debian:trixie``, a path.
    label: str
    #: Its programs; None where it came without one.
    system: Path | None
    #: The same.
    img: Path | None
    #: The same.
    io: Path | None
    #: The same.
    storage_daemon: Path | None
    #: Of all of them.
    version: tuple[int, int, int]
    #: As ``-version`` prints it, the distribution's package version included.
    version_text: str
    #: Where it came from: ``host``, ``path``, ``debian:SUITE``.
    source: str
    #: Variables that its programs need beside our own.
    environment: Mapping[str, str] = field(default_factory=dict)
    #: What stands before a program: a release's own loader with the path of its libraries.
    loader: tuple[str, ...] = ()
    #: What the system emulator needs in any case: ``-L`` and the directory of its firmware.
    system_options: tuple[str, ...] = ()
    #: The function that was taken out of it, where it is a copy of another QEMU (:mod:`chainlift.qemu.ablated`).
    without: str = ""
    #: The name of that other QEMU.
    copy_of: str = ""

    def path(self, tool: Tool) -> Path:
        """Return the path of one of its programs.

        :raise MissingToolError: if this QEMU came without it; the hint names the package.
        """
        path = {"system": self.system, "img": self.img, "io": self.io, "storage-daemon": self.storage_daemon}[tool]
        if path is None:
            raise MissingToolError(f"QEMU {self.label} has no {_NAMES[tool][0]}", hint=_install(tool, self.source))
        return path

    def command(self, tool: Tool, *arguments: str) -> list[str]:
        """Return the argument vector that runs one of its programs; run it with :attr:`environment`.

        :raise MissingToolError: if this QEMU came without it.
        """
        options = self.system_options if tool == "system" else ()
        return [*self.loader, str(self.path(tool)), *options, *arguments]


def find_installed(spec: str, *, need: Collection[Tool]) -> Qemu:
    """Find a QEMU that is installed here, or was built, and ask for its version.

    :param spec: ``host``, or the path of a system emulator, a build directory or an installation's prefix.
    :param need: the programs that must be there.
    :raise MissingToolError: if one of them is not, or cannot be run, or is older than :data:`OLDEST`.
    :raise InputError: if ``spec`` names nothing that we know.
    """
    if spec == "host":
        found = {tool: _first(shutil.which(name) for name in names) for tool, names in _NAMES.items()}
        if found["system"] is None:
            found["system"] = _first(str(path) for path in (Path("/usr/libexec/qemu-kvm"),) if path.exists())
        source = "host"
    elif ":" in spec and not Path(spec).exists():
        raise InputError(f"{spec!r} is no QEMU", hint="give host, debian:SUITE or the path of a build or a binary")
    else:
        found, source = _below(Path(spec)), "path"
    for tool in need:
        if found[tool] is None:
            where = "there is no QEMU on this host:" if source == "host" else f"{spec} has"
            raise MissingToolError(f"{where} no {_NAMES[tool][0]}", hint=_install(tool, source))
    # Where the system emulator is not needed, it is not run: it takes five times as long to start as a tool.
    asked = need if need and "system" not in need else _NAMES
    program = next((path for tool, path in found.items() if path is not None and tool in asked), None)
    if program is None:
        raise MissingToolError(f"there is no QEMU in {spec}", hint="give a QEMU binary or build directory")
    version, text = read_version([str(program)])
    return Qemu(
        label=spec,
        system=found["system"],
        img=found["img"],
        io=found["io"],
        storage_daemon=found["storage-daemon"],
        version=version,
        version_text=text,
        source=source,
    )


def read_version(argv: list[str], environment: Mapping[str, str] | None = None) -> tuple[tuple[int, int, int], str]:
    """Run a QEMU program with ``--version`` and return the version and the text it is in.

    :param argv: the program, a loader before it included.
    :raise MissingToolError: if it cannot be run, is no QEMU, or is older than :data:`OLDEST`.
    """
    finished = run_tool([*argv, "--version"], check=False, timeout_s=60, environment=environment)
    match = _VERSION.search(finished.stdout)
    if finished.returncode != 0 or match is None:
        said = last_lines(finished.stderr, 1) or last_lines(finished.stdout, 1) or "it says nothing"
        raise MissingToolError(
            f"is no QEMU that runs here: {said}", path=argv[-1], hint="give an x86-64 QEMU built for this machine"
        )
    text = finished.stdout[match.start() + len("version ") :].splitlines()[0].strip()
    version = parse_version(text)
    if version < OLDEST:
        raise MissingToolError(
            f"QEMU {'.'.join(map(str, version))} is too old",
            path=argv[-1],
            hint=f"install {OLDEST[0]}.{OLDEST[1]} or newer",
        )
    return version, text


def installed_version() -> str | None:
    """Return the version of the QEMU that is installed here, as ``-version`` prints it, without running it.

    It stands in ``qemu-img`` itself, as one constant (``QEMU_IMG_VERSION`` in qemu-img.c).

    :return: None if there is no ``qemu-img``, or it does not say.
    """
    before = b"qemu-img version "
    program = shutil.which(_NAMES["img"][0])
    if program is None:
        return None
    try:
        with Path(program).open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            start = text.find(before)
            line = text[start + len(before) : start + 200].partition(b"\n")[0] if start >= 0 else b""
    except (OSError, ValueError):  # not for us to read; an empty file
        return None
    return line.decode(errors="replace").strip() if line[:1].isdigit() else None


def parse_version(text: str) -> tuple[int, int, int]:
    """Read the version that :func:`read_version` has found, ``7.2.17 (Debian 1:7.2+dfsg-7)``, as numbers."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def _below(path: Path) -> dict[Tool, Path | None]:
    """Find the programs of a build directory, an installation, or beside a system emulator."""
    if not path.exists():
        raise InputError("no such file or directory", path=path, hint="give a QEMU binary or build directory")
    path = path.absolute()
    # A build's binaries may be in subdirectories, so look below the parent of a named one too.
    roots = [path] if path.is_dir() else [path.parent, path.parent.parent]
    found: dict[Tool, Path | None] = {
        tool: next(
            (file for root in roots for place in _PLACES for name in names if (file := root / place / name).is_file()),
            None,
        )
        for tool, names in _NAMES.items()
    }
    if path.is_file():
        found["system"] = path
    return found


def _first(candidates: Iterable[str | None]) -> Path | None:
    return next((Path(path) for path in candidates if path), None)


def _install(tool: Tool, source: str) -> str:
    return f"install the package {_PACKAGES[tool]}" if source == "host" else f"build it with {_NAMES[tool][0]} enabled"
