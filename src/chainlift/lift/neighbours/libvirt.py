"""What libvirt's definitions name: domains, running and defined, their snapshots and their checkpoints.

``virsh`` is asked, read-only, and no daemon is started for it. Where no daemon answers, its own files are read: a
host's libvirtd is often stopped while its disks are worked on.

The text is other people's. It is read by the standard library's parser, which resolves no external entities. A text
with a document type, which libvirt never writes, is refused before that: there are no entities at all to expand.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from chainlift.errors import OperationError
from chainlift.host.process import last_lines
from chainlift.lift.neighbours.processes import identity_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_S: Final = 5.0
_SYSTEM: Final = "qemu:///system"
_SESSION: Final = "qemu:///session"
#: What virsh says where nobody listens.
_NO_DAEMON: Final = ("No such file or directory", "Connection refused")
#: Commands for one virsh: a shell's arguments have an end.
_BATCH: Final = 200
#: Where libvirtd keeps definitions, of the system's instance: domains, snapshots, checkpoints.
_DOMAINS: Final = Path("/etc/libvirt/qemu")
_STATE: Final = Path("/var/lib/libvirt/qemu")
#: Asked of each domain, by its UUID.
_QUESTIONS: Final = (
    "dumpxml {}",
    "dumpxml --inactive {}",
    "managedsave-dumpxml {}",
    "snapshot-list --name {}",
    "checkpoint-list --name {}",
)
#: Elements around a file's name that say what it is to the disk.
_ROLES: Final = ("backingStore", "mirror", "dataStore")
_PATH_IN_ARGUMENT: Final = re.compile(r"(?:^|[=:\"'])(/[^,\"']+)")


@dataclass(frozen=True)
class Naming:
    """A place in a definition that names a file."""

    domain: str
    #: The element: ``<backingStore>``, ``<source>``.
    element: str
    #: The snapshot or checkpoint whose definition it is; None for the domain's own.
    part: str | None = None

    def __str__(self) -> str:
        return f"{self.part} of domain {self.domain}" if self.part else f"domain {self.domain} ({self.element})"


@dataclass(frozen=True)
class DomainDisk:
    """A domain's disk that has an image as its active layer."""

    domain: str
    uuid: str
    #: The disk's target: ``vda``.
    target: str
    #: Whether it is the running domain's; else the one that the next start will take.
    running: bool


@dataclass
class Definitions:
    """All that libvirt's definitions name. See :meth:`read`."""

    #: Whether there is a libvirt to ask.
    is_there: bool = False
    #: Why it is not known what a libvirt that is there names; None where all is known.
    problem: str | None = None
    #: Names of the domains that were looked at.
    domains: list[str] = field(default_factory=list)
    #: (domain, checkpoint).
    checkpoints: list[tuple[str, str]] = field(default_factory=list)
    _named: list[tuple[str, Naming]] = field(default_factory=list)
    _disks: list[tuple[str, DomainDisk]] = field(default_factory=list)
    #: Volumes of storage pools: they are named by pool and name, and libvirt says where they are.
    _volumes: list[tuple[tuple[str, str], Naming, DomainDisk | None]] = field(default_factory=list)

    @classmethod
    def read(cls, *, timeout_s: float = _TIMEOUT_S) -> Definitions:
        """Ask libvirt: on the connection of ``LIBVIRT_DEFAULT_URI``, else the system's and an ordinary user's own.

        :param timeout_s: for each question; one that is not answered in that time is told in :attr:`problem`.
        """
        found = cls()
        chosen = os.environ.get("LIBVIRT_DEFAULT_URI")
        for uri in [chosen] if chosen else [_SYSTEM] if os.geteuid() == 0 else [_SYSTEM, _SESSION]:
            found._read_from(uri, timeout_s)
        return found

    def _read_from(self, uri: str, timeout_s: float) -> None:
        program = shutil.which("virsh")
        said = _NO_DAEMON[0]
        if program is not None:
            virsh = _Virsh(program, uri, timeout_s)
            try:
                answers = virsh.ask(["uri", "list --all --uuid"])
                if answers[0]:
                    self.is_there = True
                    self._ask_for(answers[1].split(), virsh)
                    return
            except OperationError as error:
                self.is_there, self.problem = True, error.what
                return
            said = virsh.said
        if any(text in said for text in _NO_DAEMON):
            if uri == _SYSTEM:
                self.read_files(_DOMAINS, _STATE)
        elif uri != _SESSION:  # most users have none of their own
            self.is_there, self.problem = True, f"libvirt cannot be asked: {last_lines(said, 1)}"

    def read_files(self, domains: Path, state: Path) -> None:
        """Read the definitions in libvirt's own files, where no daemon answers.

        :param domains: the directory with a file for each domain.
        :param state: the directory whose ``snapshot`` and ``checkpoint`` have a directory for each domain.
        """
        for path in _xml_files(domains):
            root = self._parse(_text_of(path))
            if root is not None and root.tag == "domain":
                self.is_there = True
                self._add_domain(root, running=False)
        for kind in ("snapshot", "checkpoint"):
            for path in _xml_files(state / kind, "*/*.xml"):
                root = self._parse(_text_of(path))
                if root is not None:
                    self._add_part(root, kind, path.parent.name)
        if self._volumes:
            self.problem = (
                f"the domain {self._volumes[0][1].domain} has its disk in a storage pool, and libvirt does not run"
            )

    def naming(self, path: Path) -> list[str]:
        """Return what names a file: ``domain vm7 (<backingStore>)``, ``snapshot s1 of domain vm7``; each once."""
        return list(dict.fromkeys(str(naming) for naming in self.namings(path)))

    def namings(self, path: Path) -> list[Naming]:
        """Return each place that names a file, under whatever name."""
        return [naming for name, naming in self._named if _is_same(name, path)]

    def domains_of(self, image: Path) -> list[DomainDisk]:
        """Return the disks whose active layer an image is, of running domains and of definitions."""
        return [disk for name, disk in self._disks if _is_same(name, image)]

    def checkpoints_of(self, image: Path) -> list[str]:
        """Return the names of the checkpoints of all domains whose disk an image is."""
        domains = {disk.domain for disk in self.domains_of(image)}
        return [checkpoint for domain, checkpoint in self.checkpoints if domain in domains]

    def _ask_for(self, uuids: Sequence[str], virsh: _Virsh) -> None:
        answers = virsh.ask([question.format(uuid) for uuid in uuids for question in _QUESTIONS])
        count = len(_QUESTIONS)
        parts = []
        for number, uuid in enumerate(uuids):
            now, inactive, saved, snapshots, checkpoints = answers[count * number : count * (number + 1)]
            # One that is gone meanwhile has no text; one at rest has its definition twice.
            active = self._parse(now)
            defined = self._parse(inactive)
            if active is not None and active.get("id"):
                self._add_domain(active, running=True)
            if defined is not None:
                self._add_domain(defined, running=False)
            name = _name(active if active is not None else defined)
            # The next start takes the machine's state from a file, and with it the disks that it had then.
            if (state := self._parse(saved)) is not None:
                self._add_names(state, name, "managed save")
            for kind, names in (("snapshot", snapshots), ("checkpoint", checkpoints)):
                parts += [(name, uuid, kind, part) for part in names.splitlines() if part]
        texts = virsh.ask([f"{kind}-dumpxml {uuid} --{kind}name {_quoted(part)}" for _, uuid, kind, part in parts])
        for (name, _, kind, _), text in zip(parts, texts, strict=True):
            root = self._parse(text)
            if root is not None:
                self._add_part(root, kind, name)
        volumes = list(dict.fromkeys(volume for volume, _, _ in self._volumes))
        places = virsh.ask([f"vol-path --pool {_quoted(pool)} --vol {_quoted(volume)}" for pool, volume in volumes])
        found = {volume: place.strip() for volume, place in zip(volumes, places, strict=True)}
        for volume, naming, disk in self._volumes:
            if not found[volume]:
                self.problem = f"libvirt does not say where the volume {volume[1]} of pool {volume[0]} is"
                continue
            self._named.append((found[volume], naming))
            if disk is not None:
                self._disks.append((found[volume], disk))

    def _parse(self, text: str) -> ET.Element | None:
        if not text.strip():
            return None
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            self.problem = "a definition of libvirt's has a document type"
            return None
        try:
            return ET.fromstring(text)
        except ET.ParseError as error:
            self.problem = f"a definition of libvirt's cannot be read: {error}"
            return None

    def _add_domain(self, root: ET.Element, *, running: bool) -> None:
        name = _name(root)
        if name not in self.domains:
            self.domains.append(name)
        self._add_names(root, name, None)
        for disk in root.iterfind("devices/disk"):
            source, target = disk.find("source"), disk.find("target")
            if source is None:
                continue
            known = DomainDisk(
                name, root.findtext("uuid", ""), "" if target is None else target.get("dev", ""), running
            )
            path = source.get("file") or source.get("dev")
            if path:
                self._disks.append((path, known))
            elif source.get("pool") and source.get("volume"):
                volume = (source.get("pool", ""), source.get("volume", ""))
                self._volumes.append((volume, Naming(name, "<source>"), known))

    def _add_part(self, root: ET.Element, kind: str, domain: str) -> None:
        # libvirt's own files of snapshots have the definition inside; a snapshot of a domain that is gone has it too.
        part = _name(root)
        if kind == "checkpoint":
            self.checkpoints.append((domain, part))
        self._add_names(root, domain, f"{kind} {part}")
        for source in root.iterfind(".//disk/source[@volume]"):
            volume = (source.get("pool", ""), source.get("volume", ""))
            self._volumes.append((volume, Naming(domain, "<source>", f"{kind} {part}"), None))

    def _add_names(self, root: ET.Element, domain: str, part: str | None) -> None:
        """Take in every absolute name that stands in a definition: a file's that we do not know is not used either."""
        stack = [(root, "")]
        while stack:
            element, role = stack.pop()
            tag = element.tag.rpartition("}")[2]
            here = f"<{tag}>" if tag in _ROLES else role
            named = [value for key, value in element.attrib.items() if value.startswith("/")]
            named += [element.text.strip()] if element.text and element.text.strip().startswith("/") else []
            if tag == "arg":  # <qemu:arg value='file=/a/disk.qcow2,if=virtio'/>
                named += _PATH_IN_ARGUMENT.findall(element.get("value", ""))
                here = "<qemu:commandline>"
            self._named += [(name, Naming(domain, here or f"<{tag}>", part)) for name in named]
            stack += [(child, here) for child in element]


class _Virsh:
    """Asks ``virsh`` many questions at once."""

    def __init__(self, program: str, uri: str, timeout_s: float) -> None:
        #: What it wrote to standard error the last time.
        self.said = ""
        self._program = program
        self._uri = uri
        self._timeout_s = timeout_s

    def ask(self, commands: Sequence[str]) -> list[str]:
        """Run commands of virsh and return what each printed: nothing where it failed."""
        found: list[str] = []
        for start in range(0, len(commands), _BATCH):
            batch = commands[start : start + _BATCH]
            # Between the answers a word that nobody else can have written.
            mark = secrets.token_hex(16)
            text = self._run("; ".join(f"{command}; echo {mark}" for command in batch))
            *answers, _ = text.split(mark)
            if len(answers) < len(batch):
                answers += [""] * (len(batch) - len(answers))
            found += answers
        return found

    def _run(self, commands: str) -> str:
        # LIBVIRT_AUTOSTART: a connection to a session must not start a daemon.
        environment = {**os.environ, "LC_ALL": "C", "LIBVIRT_AUTOSTART": "0"}
        try:
            done = subprocess.run(
                [self._program, "-q", "--readonly", "-c", self._uri, commands],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout_s,
                check=False,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise OperationError(f"libvirt did not answer within {self._timeout_s:g} s") from None
        self.said = done.stderr.decode("utf-8", "replace")
        return done.stdout.decode("utf-8", "surrogateescape")


def _name(root: ET.Element | None) -> str:
    return "" if root is None else root.findtext("name", "")


def _quoted(text: str) -> str:
    """Return a word for virsh's shell, which quotes as a POSIX shell does."""
    return "'" + text.replace("'", "'\\''") + "'"


def _xml_files(directory: Path, pattern: str = "*.xml") -> Iterator[Path]:
    try:
        yield from sorted(directory.glob(pattern))
    except OSError:
        return


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _is_same(name: str, path: Path) -> bool:
    if name == str(path):
        return True
    try:
        return identity_of(os.stat(name)) == identity_of(path.stat())  # noqa: PTH116
    except (OSError, ValueError):
        return os.path.realpath(name) == os.path.realpath(path) if "\0" not in name else False
