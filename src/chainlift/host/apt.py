"""Debian packages of another suite than the host's, fetched by apt and unpacked, with nothing installed.

apt gets a private state directory whose sources are the host's own Debian sources with the suite replaced, so mirrors,
proxies and keyrings are the ones this host already uses and trusts. Its dpkg status is empty, so that "what is missing"
is everything: the packages and all they depend on, down to the C library. Works as root and as a user.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError, MissingToolError, OperationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SUITE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Suites that only add to another one: ``trixie-backports`` depends on ``trixie``.
_ADDS_TO = re.compile(r"(?P<base>.+)-(backports(-sloppy)?|updates|proposed-updates)")
_ROLLING = {"stable", "oldstable", "oldoldstable", "testing", "unstable", "sid"}


@contextmanager
def private_apt(suite: str, *, etc: Path = Path("/etc")) -> Iterator[PrivateApt]:
    """Give an apt that knows only this suite of Debian; its state is gone afterwards.

    :param suite: ``trixie``, ``trixie-backports``.
    :raise InputError: if the name is none, the host has no Debian source, or its mirror no such suite.
    """
    if not _SUITE.fullmatch(suite):
        raise InputError(f"{suite!r} is not the name of a Debian suite", hint="for example: trixie, trixie-backports")
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"{tool} is not there", hint="packages of a Debian suite need a Debian host")
    sources = replace_suite(etc, _with_base(suite))
    with tempfile.TemporaryDirectory(prefix="chainlift-apt-") as name:
        yield PrivateApt(Path(name), suite, sources)


class PrivateApt:
    """An apt with a state directory of its own.

    :param root: an empty directory.
    :param sources: file name -> text, as below ``/etc/apt/sources.list.d``.
    """

    def __init__(self, root: Path, suite: str, sources: dict[str, str]) -> None:
        self.root = root
        self.suite = suite
        for part in ("lists/partial", "cache/archives/partial", "sources", "log"):
            (root / part).mkdir(parents=True)
        (root / "status").touch()
        for file_name, text in sources.items():
            (root / "sources" / file_name).write_text(text, encoding="utf-8")
        self._options = [
            f"Dir::State={root}",
            f"Dir::State::lists={root}/lists",
            f"Dir::State::status={root}/status",
            f"Dir::Cache={root}/cache",
            f"Dir::Log={root}/log",
            "Dir::Etc::sourcelist=/dev/null",
            f"Dir::Etc::sourceparts={root}/sources",
            # A preference or a default release of the host's speaks of the host's suite.
            "Dir::Etc::preferences=/dev/null",
            f"Dir::Etc::preferencesparts={root}/log",
            f"APT::Default-Release={suite}",
            "APT::Install-Recommends=false",
            "APT::Install-Suggests=false",
            "Acquire::Languages=none",
            # The directory is ours alone: apt's download user could not enter it.
            "APT::Sandbox::User=root",
        ]
        self._updated = False

    def download(self, names: Sequence[str], *, with_depends: bool = True) -> list[Path]:
        """Fetch packages, by default with all they depend on; signatures and hashes are checked by apt.

        :raise InputError: if the suite has no such package.
        """
        self.update()
        if with_depends:
            done = self._apt("install", "--download-only", "--yes", "-q", *names)
            folder = self.root / "cache/archives"
        else:
            folder = self.root
            done = self._apt("download", "-q", *names)
        if done.returncode:
            line = _complaint(done.stderr)
            if "Unable to locate" in line or "no installation candidate" in line or "Can't find" in line:
                raise InputError(f"Debian suite {self.suite}: {line}")
            raise OperationError(f"apt could not fetch {' '.join(names)} of {self.suite}: {line}")
        return sorted(folder.glob("*.deb"))

    def update(self) -> None:
        """Read the suite's package lists, the first time.

        :raise InputError: if the host's mirror has no such suite.
        """
        if self._updated:
            return
        done = self._apt("update", "-q")
        # apt says W: and succeeds where a file could not be fetched but an old one would do; ours is never there.
        if done.returncode or "W: Failed to fetch" in done.stderr:
            if "does not have a Release file" in done.stderr:
                raise InputError(f"there is no Debian suite {self.suite!r} on this host's mirror")
            raise OperationError(f"apt could not read Debian suite {self.suite}: {_complaint(done.stderr)}")
        self._updated = True

    @property
    def options(self) -> list[str]:
        """What makes a plain apt this one: ``-o NAME=VALUE`` for each setting."""
        return [part for option in self._options for part in ("-o", option)]

    def _apt(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["apt-get", *self.options, *arguments],
            cwd=self.root,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def unpack(
    packages: Sequence[Path], into: Path, *, without: Sequence[str] = ("usr/share/doc", "usr/share/man")
) -> None:
    """Unpack packages over each other; no maintainer script runs and nothing belongs to anyone but us.

    :param without: paths in the packages to leave out.
    """
    into.mkdir(parents=True, exist_ok=True)
    excludes = [f"--exclude=./{path}" for path in without]
    for package in packages:
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
            done = subprocess.run(
                ["tar", "--extract", "--file=-", "--no-same-owner", "--keep-directory-symlink", *excludes],
                stdin=archive.stdout,
                cwd=into,
                capture_output=True,
                text=True,
                check=False,
            )
            if archive.wait() or done.returncode:
                raise OperationError(f"cannot be unpacked: {_complaint(done.stderr)}", path=package.name)


def replace_suite(etc: Path, suites: Sequence[str]) -> dict[str, str]:
    """Return apt sources for these suites: the host's own Debian archive sources, only the suite changed.

    A source is the archive's where it offers the host's own release (not its security or updates suite).

    :param etc: where ``os-release`` and ``apt`` are.
    :return: file name -> text.
    :raise InputError: if the host has no Debian source.
    """
    release = os_release(etc / "os-release")
    own = {release.get("VERSION_CODENAME", "")} | _ROLLING
    found: dict[str, str] = {}
    files = [etc / "apt/sources.list", *sorted((etc / "apt/sources.list.d").glob("*"))]
    for file in files if release.get("ID") == "debian" else []:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        if file.suffix == ".sources":
            entries = [entry for stanza in _stanzas(text) if (entry := _stanza_for(stanza, own, suites))]
        elif file.suffix == ".list":
            entries = [entry for line in text.splitlines() if (entry := _line_for(line, own, suites))]
        else:
            continue
        if entries:
            found[file.name] = ("\n\n" if file.suffix == ".sources" else "\n").join(entries) + "\n"
    if not found:
        raise InputError(
            "this host's apt has no Debian source to take packages of another suite from", path=etc / "apt"
        )
    return found


def _with_base(suite: str) -> list[str]:
    match = _ADDS_TO.fullmatch(suite)
    return [match["base"], suite] if match else [suite]


def _stanzas(text: str) -> Iterator[list[tuple[str, str]]]:
    """Yield deb822 stanzas as (field, value with its continuation lines)."""
    for block in re.split(r"\n\s*\n", text):
        fields: list[tuple[str, str]] = []
        for line in block.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace() and fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]}\n{line}")
            elif ":" in line:
                name, _, value = line.partition(":")
                fields.append((name.strip(), value.strip()))
        if fields:
            yield fields


def _stanza_for(stanza: list[tuple[str, str]], own: set[str], suites: Sequence[str]) -> str | None:
    values = {name.lower(): value for name, value in stanza}
    if (
        "deb" not in values.get("types", "").split()
        or values.get("enabled", "yes").lower() == "no"
        or not own.intersection(values.get("suites", "").split())
        or "main" not in values.get("components", "").split()
    ):
        return None
    replaced = {"types": "deb", "suites": " ".join(suites), "components": "main"}
    return "\n".join(f"{name}: {replaced.get(name.lower(), value)}" for name, value in stanza)


def _line_for(line: str, own: set[str], suites: Sequence[str]) -> str | None:
    match = re.match(r"\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)", line)
    if match is None or match[3].rstrip("/") not in own or "main" not in match[4].split():
        return None
    return "\n".join(f"deb {match[1] or ''}{match[2]} {suite} main" for suite in suites)


def os_release(path: Path) -> dict[str, str]:
    """Return the fields of an ``os-release`` file (os-release(5)); none where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _environment() -> dict[str, str]:
    # apt's messages are recognised by their English text.
    return {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}


def _complaint(stderr: str) -> str:
    lines = (
        [line for line in stderr.splitlines() if line.startswith("E:")] or stderr.splitlines() or ["no reason given"]
    )
    return lines[0].removeprefix("E:").strip()
