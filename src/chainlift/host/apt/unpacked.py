"""Directories that hold the files of Debian packages, and nothing else."""

from __future__ import annotations

import fcntl
import json
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.errors import MissingToolError, OperationError
from chainlift.host.apt.client import complaint, open_apt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_STAMP = ".packages.json"
_LISTS = Path("/var/lib/apt/lists")


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
    :raise MissingToolError: if apt or dpkg is not there, or the host's own apt knows no such package.
    :raise InputError: if there is no such suite, or no such package in it.
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
        with open_apt(suite) as apt:
            try:
                found = apt.resolve(names)
            except MissingToolError:
                # A host without package lists can still use what an earlier run has fetched.
                if same:
                    return into
                raise
            packages = {
                name: version
                for name, version in sorted(found.items())
                if name in names or (with_depends and keep(name))
            }
            if same and stamp is not None and stamp["packages"] == packages:
                (into / _STAMP).touch()
                return into
            with tempfile.TemporaryDirectory(dir=into.parent, prefix=f".{into.name}-") as scratch:
                debs, root = Path(scratch, "debs"), Path(scratch, "root")
                debs.mkdir()
                root.mkdir(mode=0o755)
                unpack(apt.download(packages, debs), root)
                (root / _STAMP).write_text(json.dumps({"request": request, "packages": packages}, indent=1) + "\n")
                if into.exists():
                    into.rename(Path(scratch, "old"))
                root.rename(into)
        return into


def unpack(packages: Sequence[Path], into: Path, *, without: Sequence[str] = ()) -> None:
    """Unpack packages over each other; no maintainer script runs and nothing belongs to anyone but us.

    :param packages: ``.deb`` files.
    :param into: a directory; made if it is not there.
    :param without: paths in the packages to leave out, as tar's patterns.
    :raise OperationError: if one cannot be unpacked.
    """
    into.mkdir(parents=True, exist_ok=True)
    tar = ["tar", "--extract", "--file=-", "--no-same-owner", "--keep-directory-symlink"]
    excludes = [f"--exclude=./{path}" for path in without]
    for package in packages:
        with (
            subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            ) as archive,
            subprocess.Popen(
                [*tar, *excludes], stdin=archive.stdout, cwd=into, stderr=subprocess.PIPE, text=True
            ) as extraction,
        ):
            assert archive.stdout is not None
            archive.stdout.close()  # or dpkg-deb would wait for ever, if tar ends early
            said = [one.stderr.read() for one in (extraction, archive) if one.stderr is not None]
        if archive.returncode or extraction.returncode:
            raise OperationError(f"cannot be unpacked: {complaint(''.join(said))}", path=package.name)


def versions_in(root: Path) -> dict[str, str]:
    """Return name and version of the packages that :func:`download_and_unpack` unpacked into ``root``.

    :raise OperationError: if it did not.
    """
    stamp = _read_stamp(root)
    if stamp is None:
        raise OperationError("holds no unpacked packages", path=root, hint="remove it")
    return dict(stamp["packages"])


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
