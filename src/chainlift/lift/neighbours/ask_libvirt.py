"""Libvirt's definitions, asked for: of ``virsh``, or read in libvirt's own files.

``virsh`` is asked, read-only, and no daemon is started for it. Where no daemon answers, its own files are read: a
host's libvirtd is often stopped while its disks are worked on.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import OperationError
from chainlift.host.process import last_lines
from chainlift.host.virsh_batch import VirshBatch
from chainlift.host.virsh_shell import quoted
from chainlift.lift.neighbours.definitions import Definitions, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TIMEOUT_S: Final = 5.0
_SYSTEM: Final = "qemu:///system"
_SESSION: Final = "qemu:///session"
#: What virsh says where nobody listens.
_NO_DAEMON: Final = ("No such file or directory", "Connection refused")
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


def read_definitions(*, timeout_s: float = _TIMEOUT_S) -> Definitions:
    """Ask libvirt: on the connection of ``LIBVIRT_DEFAULT_URI``, else the system's and an ordinary user's own.

    :param timeout_s: for each question; one that is not answered in that time is told in
        :attr:`Definitions.problem`.
    """
    found = Definitions()
    chosen = os.environ.get("LIBVIRT_DEFAULT_URI")
    for uri in [chosen] if chosen else [_SYSTEM] if os.geteuid() == 0 else [_SYSTEM, _SESSION]:
        _read_from(found, uri, timeout_s)
    return found


def _read_from(found: Definitions, uri: str, timeout_s: float) -> None:
    program = shutil.which("virsh")
    said = _NO_DAEMON[0]
    if program is not None:
        virsh = VirshBatch(program, uri, timeout_s)
        try:
            answers = virsh.ask(["uri", "list --all --uuid"])
            if answers[0]:
                found.is_there = True
                _ask_for(found, answers[1].split(), virsh, uri)
                return
        except OperationError as error:
            found.is_there, found.problem = True, error.what
            return
        said = virsh.said
    if any(text in said for text in _NO_DAEMON):
        if uri == _SYSTEM:
            read_files(found, _DOMAINS, _STATE)
    elif uri != _SESSION:  # most users have none of their own
        found.is_there, found.problem = True, f"libvirt cannot be asked: {last_lines(said, 1)}"


def read_files(found: Definitions, domains: Path, state: Path) -> None:
    """Read the definitions in libvirt's own files, where no daemon answers.

    :param domains: the directory with a file for each domain.
    :param state: the directory whose ``snapshot`` and ``checkpoint`` have a directory for each domain.
    """
    for path in _xml_files(domains):
        root = found.parse(_text_of(path))
        if root is not None and root.tag == "domain":
            found.is_there = True
            found.add_domain(root, running=False)
    for kind in ("snapshot", "checkpoint"):
        for path in _xml_files(state / kind, "*/*.xml"):
            root = found.parse(_text_of(path))
            if root is not None:
                found.add_part(root, kind, path.parent.name)
    if found.volumes:
        found.problem = (
            f"the domain {found.volumes[0][1].domain} has its disk in a storage pool, and libvirt does not run"
        )


def _ask_for(found: Definitions, uuids: Sequence[str], virsh: VirshBatch, uri: str) -> None:
    answers = virsh.ask([question.format(uuid) for uuid in uuids for question in _QUESTIONS])
    count = len(_QUESTIONS)
    parts = []
    for number, uuid in enumerate(uuids):
        now, inactive, saved, snapshots, checkpoints = answers[count * number : count * (number + 1)]
        # One that is gone meanwhile has no text; one at rest has its definition twice.
        active = found.parse(now)
        defined = found.parse(inactive)
        if active is not None and active.get("id"):
            found.add_domain(active, running=True, uri=uri)
        if defined is not None:
            found.add_domain(defined, running=False, uri=uri)
        name = name_of(active if active is not None else defined)
        # The next start takes the machine's state from a file, and with it the disks that it had then.
        if (state := found.parse(saved)) is not None:
            found.add_names(state, name, "managed save", uuid)
        for kind, names in (("snapshot", snapshots), ("checkpoint", checkpoints)):
            parts += [(name, uuid, kind, part) for part in names.splitlines() if part]
    texts = virsh.ask([f"{kind}-dumpxml {uuid} --{kind}name {quoted(part)}" for _, uuid, kind, part in parts])
    for (name, uuid, kind, _), text in zip(parts, texts, strict=True):
        root = found.parse(text)
        if root is not None:
            found.add_part(root, kind, name, uuid)
    volumes = list(dict.fromkeys(volume for volume, _, _ in found.volumes))
    answers = virsh.ask([f"vol-path --pool {quoted(pool)} --vol {quoted(volume)}" for pool, volume in volumes])
    found.place_volumes({volume: place.strip() for volume, place in zip(volumes, answers, strict=True)})


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
