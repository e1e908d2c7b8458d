"""apt: which packages there are, in the host's own suite or in another one, and their files.

For another suite apt gets a private state directory, and as sources the host's own with the suite replaced
(:mod:`chainlift.host.apt.sources`). Its list of what is installed is empty either way, so that "what is missing" is
everything: the packages and all they depend on, down to the C library.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.apt.sources import replace_suite
from chainlift.host.process import run_tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SUITE: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
#: Suites that only add to another one: ``trixie-backports`` depends on ``trixie``.
_ADDS_TO: Final = re.compile(r"(?P<base>.+)-(backports(-sloppy)?|updates|proposed-updates)")
_INST: Final = re.compile(r"^Inst (\S+) (?:\[\S+\] )?\((\S+) ", re.MULTILINE)
#: What apt says of a package that it does not know, in English.
_UNKNOWN: Final = ("Unable to locate", "no installation candidate", "Can't find")
#: Of the host's own suite. NoLocking: a simulation writes nothing.
_HOST: Final = ("Debug::NoLocking=1",)
_ALWAYS: Final = (
    "Dir::State::status=/dev/null",
    "APT::Install-Recommends=false",
    "APT::Install-Suggests=false",
    # Directories are ours alone: apt's download user could not enter them.
    "APT::Sandbox::User=root",
)


@contextmanager
def open_apt(suite: str | None = None) -> Iterator[Apt]:
    """Give an apt that knows one suite of Debian.

    :param suite: ``trixie``, ``trixie-backports``; apt's state is gone afterwards. None is the host's own.
    :raise InputError: if the name is none, the host has no Debian source, or its mirror no such suite.
    :raise MissingToolError: if apt or dpkg is not there.
    :raise OperationError: if the suite's lists cannot be fetched.
    """
    if suite is not None and not _SUITE.fullmatch(suite):
        raise InputError(f"{suite!r} is not the name of a Debian suite", hint="for example: trixie, trixie-backports")
    for tool in ("apt-get", "dpkg-deb", "tar"):
        if shutil.which(tool) is None:
            raise MissingToolError(f"no {tool} on this host", hint="this needs Debian or a system derived from it")
    if suite is None:
        yield Apt(_HOST)
        return
    sources = replace_suite(Path("/etc"), _with_base(suite))
    with tempfile.TemporaryDirectory(prefix="chainlift-apt-") as name:
        apt = Apt(_private(Path(name), suite, sources), suite)
        apt.update()
        yield apt


class Apt:
    """One way of calling ``apt-get``.

    :param options: of apt, ``NAME=VALUE``.
    :param suite: that these options make it know; None is the host's own.
    """

    def __init__(self, options: Sequence[str], suite: str | None = None) -> None:
        self._options = [part for option in (*options, *_ALWAYS) for part in ("-o", option)]
        self._suite = suite

    def resolve(self, names: Sequence[str]) -> dict[str, str]:
        """Return name and version of these packages and of all they depend on (``Recommends`` left out).

        :param names: of packages.
        :raise InputError: if the suite has no such package.
        :raise MissingToolError: if the host's own apt knows no such package.
        """
        versions = dict(_INST.findall(self._run("install", "--simulate", *names)))
        if missing := set(names) - set(versions):
            raise self._unknown(f"no package {', '.join(sorted(missing))}")
        return versions

    def download(self, versions: Mapping[str, str], into: Path) -> list[Path]:
        """Fetch packages, by their names and versions; apt checks signatures and hashes.

        :param into: an empty directory.
        :return: the ``.deb`` files.
        """
        self._run("download", *(f"{name}={version}" for name, version in versions.items()), cwd=into)
        return sorted(into.glob("*.deb"))

    def update(self) -> None:
        """Read the package lists of a suite that is not the host's.

        :raise InputError: if the host's mirror has no such suite.
        """
        try:
            # Otherwise apt says W: and succeeds where a file could not be fetched but an old one would do.
            self._run("update", "--error-on=any")
        except OperationError as error:
            if "does not have a Release file" in str(error):
                raise InputError(f"there is no Debian suite {self._suite!r} on this host's mirror") from None
            raise

    def _run(self, verb: str, *arguments: str, cwd: Path | None = None) -> str:
        finished = run_tool(
            ["apt-get", "-q", *self._options, verb, *arguments],
            check=False,
            cwd=cwd,
            environment={"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
        if finished.returncode == 0:
            return finished.stdout
        said = complaint(finished.stderr)
        if any(words in said for words in _UNKNOWN):
            raise self._unknown(said)
        of = "" if self._suite is None else f" of Debian suite {self._suite}"
        raise OperationError(f"apt-get {verb}{of} failed: {said}")

    def _unknown(self, said: str) -> InputError | MissingToolError:
        if self._suite is None:
            return MissingToolError(f"apt says: {said}", hint="run 'apt-get update' as root")
        return InputError(f"Debian suite {self._suite}: {said}")


def complaint(stderr: str) -> str:
    """Return the first line in which apt or dpkg says what is wrong.

    :param stderr: all that it said.
    """
    lines = stderr.splitlines() or ["no reason given"]
    return next((line for line in lines if line.startswith("E:")), lines[0]).removeprefix("E:").strip()


def _private(root: Path, suite: str, sources: Mapping[str, str]) -> list[str]:
    """Make a state directory for apt; return the options that make apt use it."""
    for part in ("lists/partial", "cache/archives/partial", "sources", "log"):
        (root / part).mkdir(parents=True)
    for file_name, text in sources.items():
        (root / "sources" / file_name).write_text(text, encoding="utf-8")
    return [
        f"Dir::State={root}",
        f"Dir::State::lists={root}/lists",
        f"Dir::Cache={root}/cache",
        f"Dir::Log={root}/log",
        "Dir::Etc::sourcelist=/dev/null",
        f"Dir::Etc::sourceparts={root}/sources",
        # A preference or a default release of the host's speaks of the host's suite.
        "Dir::Etc::preferences=/dev/null",
        f"Dir::Etc::preferencesparts={root}/log",
        f"APT::Default-Release={suite}",
        "Acquire::Languages=none",
    ]


def _with_base(suite: str) -> list[str]:
    match = _ADDS_TO.fullmatch(suite)
    return [match["base"], suite] if match else [suite]
