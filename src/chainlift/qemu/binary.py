"""A QEMU: its system emulator and its tools, where they are and which version they are."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift.errors import InputError, MissingToolError
from chainlift.host.process import last_lines, run_tool

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

Tool = Literal["system", "img", "io", "storage-daemon"]

#: The oldest QEMU whose command line we speak (``-machine memory-backend=``, 5.0).
OLDEST = (5, 0, 0)

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
    system: Path | None
    img: Path | None
    io: Path | None
    storage_daemon: Path | None
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


def find_qemu(spec: str = "host", *, need: Collection[Tool] = ("system", "img", "io")) -> Qemu:
    """Find a QEMU and ask for its version.

    :param spec: ``host`` for what is installed; ``debian:SUITE`` for what ``chainlift qemu add`` has unpacked; the path
        of a system emulator, a build directory or an installation's prefix.
    :param need: the programs that must be there.
    :raise MissingToolError: if one of them is not, or cannot be run, or is older than :data:`OLDEST`.
    :raise InputError: if ``spec`` names nothing that we know.
    """
    if spec == "host":
        found = {tool: _first(shutil.which(name) for name in names) for tool, names in _NAMES.items()}
        if found["system"] is None:
            found["system"] = _first(str(path) for path in (Path("/usr/libexec/qemu-kvm"),) if path.exists())
        source = "host"
    elif spec.startswith("debian:"):
        from chainlift.qemu.releases import find_release

        return find_release(spec)
    elif ":" in spec and not Path(spec).exists():
        raise InputError(f"{spec!r} is no QEMU", hint="give host, debian:SUITE or the path of a build or a binary")
    else:
        found, source = _below(Path(spec)), "path"
    for tool in need:
        if found[tool] is None:
            where = "there is no QEMU on this host:" if source == "host" else f"{spec} has"
            raise MissingToolError(f"{where} no {_NAMES[tool][0]}", hint=_install(tool, source))
    program = found["system"] or found["img"] or found["storage-daemon"] or found["io"]
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
