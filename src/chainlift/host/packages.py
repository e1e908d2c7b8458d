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

from chainlift.errors import MissingToolError, OperationError
from chainlift.host.apt import private_apt
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
    :raise InputError: if there is no such suite.
    :raise OperationError: if a download or an unpacking fails; ``into`` is then as before.
    """
    request = {"names": sorted(names), "suite": suite, "with_depends": with_depends, "keep": keep.__name__}
    with _locked(into):
        stamp = _read_stamp(into)
        same = stamp is not None and stamp["request"] == request
        # Apt knows nothing that it did not know then, and asking it takes seconds; of another suite this host has no
        # lists, and what was fetched stays until it is removed.
        if same and (suite is not None or _newest_list() < (into / _STAMP).stat().st_mtime):
            return into
        with _apt_of(suite) as options:
            try:
                packages = _resolve(names, options, with_depends=with_depends, keep=keep)
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
                _apt(options, "download", *(f"{name}={version}" for name, version in packages.items()), cwd=debs)
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
    with _apt_of(suite) as options:
        return _resolve(names, options, with_depends=with_depends, keep=keep)


def versions_in(root: Path) -> dict[str, str]:
    """Return name and version of the packages that :func:`download_and_unpack` unpacked into ``root``.

    :raise OperationError: if it did not.
    """
    stamp = _read_stamp(root)
    if stamp is None:
        raise OperationError("holds no unpacked packages", path=root, hint="remove it")
    return dict(stamp["packages"])


def _resolve(
    names: Sequence[str], options: Sequence[str], *, with_depends: bool, keep: Callable[[str], bool]
) -> dict[str, str]:
    # An empty list of installed packages: nothing counts as there already.
    empty = ("-o", "Dir::State::status=/dev/null", "--no-install-recommends")
    plan = _apt(options, "-s", *empty, "install", *names)
    versions = dict(_INST.findall(plan))
    if missing := set(names) - set(versions):
        raise MissingToolError(f"apt has no package {', '.join(sorted(missing))}")
    return {
        name: version for name, version in sorted(versions.items()) if name in names or (with_depends and keep(name))
    }


@contextmanager
def _apt_of(suite: str | None) -> Iterator[list[str]]:
    """Give the options that make apt one of this suite."""
    if suite is None:
        # NoLocking: a simulation writes nothing. Sandbox: apt's own user may not write into a directory of ours.
        yield ["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]
        return
    with private_apt(suite) as private:
        private.update()
        yield private.options


def _apt(options: Sequence[str], verb: str, *arguments: str, cwd: Path | None = None) -> str:
    if shutil.which("apt-get") is None:
        raise MissingToolError("no apt-get on this host", hint="this needs Debian or a system derived from it")
    argv = ["apt-get", "-q", *options, verb, *arguments]
    finished = run_tool(argv, check=False, cwd=cwd, environment={"LC_ALL": "C"})
    if finished.returncode == 0:
        return finished.stdout
    said = last_lines(finished.stderr, 2)
    if "Unable to locate package" in said or "has no installation candidate" in said:
        raise MissingToolError(f"apt says: {said}", hint="run 'apt-get update' as root")
    raise OperationError(f"apt-get {verb} failed: {said}")


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
