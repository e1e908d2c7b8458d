"""What libvirt's definitions name: domains, running and defined, their snapshots and their checkpoints.

The text is other people's. It is read by the standard library's parser, which resolves no external entities. A text
with a document type, which libvirt never writes, is refused before that: there are no entities at all to expand.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from chainlift.errors import ChainliftError
from chainlift.lift.neighbours.domain_xml import source_of
from chainlift.lift.neighbours.images import named_by
from chainlift.lift.neighbours.processes import Identity, identity_of

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    #: The domain's; empty where it was read in libvirt's files of snapshots.
    uuid: str = ""
    #: The disk in whose definition it is (``vda``); empty where it is in none.
    target: str = ""

    def __str__(self) -> str:
        return f"{self.part} of domain {self.domain}" if self.part else f"domain {self.domain} ({self.element})"


@dataclass(frozen=True)
class DefinedDisk:
    """A domain's disk that has an image as its active layer."""

    domain: str
    uuid: str
    #: The disk's target: ``vda``.
    target: str
    #: Whether it is the running domain's; else the one that the next start will take.
    running: bool
    #: The connection on which it was asked for; None where it was read in libvirt's files.
    uri: str | None = None


@dataclass(frozen=True)
class Store:
    """A file in a domain's definition that has ``<backingStore>`` below it: the next start believes that."""

    domain: str
    uuid: str
    #: The disk's target: ``vda``.
    target: str
    #: The connection on which it was asked for; None where it was read in libvirt's files.
    uri: str | None
    #: Whether it is the disk's active layer.
    is_active: bool


@dataclass
class Definitions:
    """All that libvirt's definitions name; asked for by :mod:`chainlift.lift.neighbours.ask_libvirt`."""

    #: Whether there is a libvirt to ask.
    is_there: bool = False
    #: Why it is not known what a libvirt that is there names; None where all is known.
    problem: str | None = None
    #: Names of the domains that were looked at.
    domains: list[str] = field(default_factory=list)
    _named: list[tuple[str, Naming]] = field(default_factory=list)
    _disks: list[tuple[str, DefinedDisk]] = field(default_factory=list)
    _stores: list[tuple[str, Store]] = field(default_factory=list)
    #: Volumes of storage pools, by pool and name, until libvirt has said where they are.
    volumes: list[tuple[tuple[str, str], Naming, DefinedDisk | None]] = field(default_factory=list)

    def naming(self, path: Path) -> list[str]:
        """Return what names a file: ``domain vm7 (<backingStore>)``, ``snapshot s1 of domain vm7``; each once."""
        return list(dict.fromkeys(str(naming) for naming in self.namings(path)))

    def namings(self, path: Path) -> list[Naming]:
        """Return each place that names a file, under whatever name."""
        return [naming for name, naming in self._named if _is_same(name, path)]

    @property
    def disks(self) -> list[tuple[str, DefinedDisk]]:
        """The disks, running domains' and others', each with its active layer as the definition names it."""
        return list(self._disks)

    def missing(self) -> dict[str, list[Naming]]:
        """Return the absolute names that lead nowhere, each with the places that have it."""
        found: dict[str, list[Naming]] = {}
        for name, naming in self._named:
            if name in found or not os.path.lexists(name):
                found.setdefault(name, []).append(naming)
        return found

    def domains_of(self, image: Path) -> list[DefinedDisk]:
        """Return the disks whose active layer an image is, of running domains and of definitions."""
        return [disk for name, disk in self._disks if _is_same(name, image)]

    def domains_over(self, image: Path) -> list[DefinedDisk]:
        """Return the disks whose active layer an image is, or which stand on it: libvirt follows the headers.

        A disk whose chain cannot be read is left out.
        """
        return [disk for name, disk in self._disks if _stands_on(Path(name), image)]

    def disks_of_domains_naming(self, image: Path) -> list[DefinedDisk]:
        """Return all disks of the domains that name an image somewhere, a snapshot's definition included."""
        domains = {naming.domain for naming in self.namings(image)}
        return [disk for _, disk in self._disks if disk.domain in domains]

    def stores_of(self, image: Path) -> list[Store]:
        """Return the disks in whose definitions something is said of what an image stands on, active layer or not."""
        return [store for name, store in self._stores if _is_same(name, image)]

    def place_volumes(self, places: Mapping[tuple[str, str], str]) -> None:
        """Take in where volumes of storage pools lie: pool and volume -> path, empty where libvirt does not say."""
        for volume, naming, disk in self.volumes:
            if not places[volume]:
                self.problem = f"libvirt does not say where the volume {volume[1]} of pool {volume[0]} is"
                continue
            self._named.append((places[volume], naming))
            if disk is not None:
                self._disks.append((places[volume], disk))
        self.volumes.clear()  # another connection knows nothing of these

    def parse(self, text: str) -> ET.Element | None:
        """Return what a text says; None, and :attr:`problem`, where that cannot be told."""
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

    def add_domain(self, root: ET.Element, *, running: bool, uri: str | None = None) -> None:
        """Take in a domain's definition.

        :param running: whether it is the running domain's.
        :param uri: the connection on which it was asked for.
        """
        name = name_of(root)
        if name not in self.domains:
            self.domains.append(name)
        self.add_names(root, name, None, root.findtext("uuid", ""))
        for disk in root.iterfind("devices/disk"):
            source, target = disk.find("source"), disk.find("target")
            if source is None:
                continue
            known = DefinedDisk(
                name, root.findtext("uuid", ""), "" if target is None else target.get("dev", ""), running, uri
            )
            if not running:
                self._add_stores(disk, known)
            path = source_of(disk)
            if path:
                self._disks.append((path, known))
            elif source.get("pool") and source.get("volume"):
                volume = (source.get("pool", ""), source.get("volume", ""))
                self.volumes.append((volume, Naming(name, "<source>"), known))

    def _add_stores(self, disk: ET.Element, known: DefinedDisk) -> None:
        element: ET.Element | None = disk
        while element is not None:
            store, path = element.find("backingStore"), source_of(element)
            if path and store is not None and store.find("source") is not None:
                found = Store(known.domain, known.uuid, known.target, known.uri, element is disk)
                self._stores.append((path, found))
            element = store

    def add_part(self, root: ET.Element, kind: str, domain: str, uuid: str = "") -> None:
        """Take in the definition of a domain's snapshot or checkpoint.

        :param kind: which of the two it is.
        :param uuid: of the domain; empty where it is not known.
        """
        # libvirt's own files of snapshots have the definition inside; a snapshot of a domain that is gone has it too.
        part = name_of(root)
        self.add_names(root, domain, f"{kind} {part}", uuid)
        for source in root.iterfind(".//disk/source[@volume]"):
            volume = (source.get("pool", ""), source.get("volume", ""))
            self.volumes.append((volume, Naming(domain, "<source>", f"{kind} {part}"), None))

    def add_names(self, root: ET.Element, domain: str, part: str | None, uuid: str) -> None:
        """Take in every absolute name that stands in a definition: a file's that we do not know is not used either.

        :param part: which of the domain's definitions it is, if not its own.
        :param uuid: of the domain; empty where it is not known.
        """
        stack = [(root, "", "")]
        while stack:
            element, role, target = stack.pop()
            tag = element.tag.rpartition("}")[2]
            if tag == "disk" and (named_target := element.find("target")) is not None:
                target = named_target.get("dev", "")
            here = f"<{tag}>" if tag in _ROLES else role
            named = [value for key, value in element.attrib.items() if value.startswith("/")]
            named += [element.text.strip()] if element.text and element.text.strip().startswith("/") else []
            if tag == "arg":  # <qemu:arg value='file=/a/disk.qcow2,if=virtio'/>
                named += _PATH_IN_ARGUMENT.findall(element.get("value", ""))
                here = "<qemu:commandline>"
            self._named += [(name, Naming(domain, here or f"<{tag}>", part, uuid, target)) for name in named]
            stack += [(child, here, target) for child in element]


def _stands_on(active: Path, image: Path) -> bool:
    """Whether the headers lead from an active layer to an image, or it is the image."""
    wanted = _identity_of(image)
    left, seen = [active], set[Identity]()
    while left:
        path = left.pop()
        identity = _identity_of(path)
        if identity is None or identity in seen:
            continue
        if identity == wanted:
            return True
        seen.add(identity)
        with suppress(ChainliftError, OSError):
            left += named_by(path)
    return False


def _identity_of(path: Path) -> Identity | None:
    try:
        return identity_of(path.stat())
    except (OSError, ValueError):
        return None


def name_of(root: ET.Element | None) -> str:
    """Return the name of what a definition is of."""
    return "" if root is None else root.findtext("name", "")


def _is_same(name: str, path: Path) -> bool:
    if name == str(path):
        return True
    try:
        return identity_of(os.stat(name)) == identity_of(path.stat())  # noqa: PTH116
    except (OSError, ValueError):
        return os.path.realpath(name) == os.path.realpath(path) if "\0" not in name else False
