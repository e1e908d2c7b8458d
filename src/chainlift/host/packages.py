"""Debian packages unpacked into a directory of ours: nothing is installed, and no network host is named here.

The host's own apt says which versions there are and fetches them (``apt-get download``); ``dpkg-deb -x`` unpacks them.
Both work for an ordinary user.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.process import last_lines, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_STAMP = ".packages.json"
_LISTS = Path("/var/lib/apt/lists")
_INST = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", re.MULTILINE)


def everything(name: str) -> bool:  # noqa: ARG001 - the shape of a filter
    """Keep every dependency."""
    return True


def libraries(name: str) -> bool:
    """Keep the dependencies that are shared libraries, not the interpreters that maintainer scripts want."""
    return name.startswith(("lib", "zlib")) and not name.startswith(("libpython", "libperl"))


def download_and_unpack(
    names: Sequence[str],
    into: Path,
    *,
    suite: str | None = None,
    with_depends: bool = False,
    keep: Callable[[str], bool] = everything,
) -> Path:
    """Make ``into`` a directory that holds the files of these packages, and of no others.

    Whatever was there is replaced in one step, and only if other versions are wanted than it holds: a second call
    downloads nothing. Processes that want the same directory wait for each other.

    :param into: the directory; its parent must exist.
    :param suite: a Debian suite; None is the host's own.
    :param with_depends: also all that apt would install with them on an empty system (``Recommends`` left out)...
    :param keep: ...of which those for whose name this is true.
    :return: ``into``.
    :raise MissingToolError: if apt or dpkg-deb is not there, or apt knows no such package.
    :raise OperationError: if a download or an unpacking fails; ``into`` is then as before.
    """
    request = {"names": sorted(names), "suite": suite, "with_depends": with_depends, "keep": keep.__name__}
    with _locked(into):
        stamp = _read_stamp(into)
        same = stamp is not None and stamp["request"] == request
        if same and _newest_list() < (into / _STAMP).stat().st_mtime:
            return into  # apt knows nothing that it did not know then, and asking it takes seconds
        try:
            packages = resolve(names, suite=suite, with_depends=with_depends, keep=keep)
        except MissingToolError:
            # A host without package lists can still use what an earlier run has fetched.
            if same:
                return into
            raise
        if same and stamp is not None and stamp["packages"] == packages:
            (into / _STAMP).touch()
            return into
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as scratch:
            debs, root = Path(scratch, "debs"), Path(scratch, "root")
            debs.mkdir()
            root.mkdir(mode=0o755)
            _apt(
                "apt-get",
                "download",
                *(f"{name}={version}" for name, version in packages.items()),
                suite=suite,
                cwd=debs,
            )
            for deb in sorted(debs.iterdir()):
                run_tool(["dpkg-deb", "-x", deb, root])
            (root / _STAMP).write_text(json.dumps({"request": request, "packages": packages}, indent=1) + "\n")
            if into.exists():
                into.rename(Path(scratch, "old"))
            root.rename(into)
        return into


def resolve(
    names: Sequence[str],
    *,
    suite: str | None = None,
    with_depends: bool = False,
    keep: Callable[[str], bool] = everything,
) -> dict[str, str]:
    """Return name and version of the packages that :func:`download_and_unpack` would unpack.

    :raise MissingToolError: if apt is not there or knows no such package.
    """
    # An empty list of installed packages: nothing counts as there already.
    empty = ("-o", "Dir::State::status=/dev/null", "--no-install-recommends")
    plan = _apt("apt-get", "-s", *empty, "install", *names, suite=suite)
    versions = dict(_INST.findall(plan))
    if missing := set(names) - set(versions):
        raise MissingToolError(f"apt has no package {', '.join(sorted(missing))}")
    return {
        name: version for name, version in sorted(versions.items()) if name in names or (with_depends and keep(name))
    }


def _apt(program: str, *arguments: str, suite: str | None, cwd: Path | None = None) -> str:
    if suite is not None:
        raise InputError(f"packages of the suite {suite!r} cannot be had yet")
    if shutil.which(program) is None:
        raise MissingToolError(f"no {program} on this host", hint="this needs Debian or a system derived from it")
    # NoLocking: a simulation writes nothing. Sandbox: apt's own user may not write into a directory of ours.
    options = ("-q", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root")
    finished = run_tool([program, *options, *arguments], check=False, cwd=cwd, environment={"LC_ALL": "C"})
    if finished.returncode == 0:
        return finished.stdout
    said = last_lines(finished.stderr, 2)
    if "Unable to locate package" in said or "No packages found" in said or "has no installation candidate" in said:
        raise MissingToolError(f"apt says: {said}", hint="run 'apt-get update' as root")
    raise OperationError(f"{program} {arguments[0]} failed: {said}")


def _read_stamp(into: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((into / _STAMP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return stamp if isinstance(stamp, dict) and stamp.keys() == {"request", "packages"} else None


def _newest_list() -> float:
    """Return when apt's package lists were last changed: ``apt-get update`` renames files into that directory."""
    try:
        return _LISTS.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _locked(into: Path) -> Iterator[None]:
    with into.with_name(f".{into.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
