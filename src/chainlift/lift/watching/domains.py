"""libvirt's domains: which run, what their disks stand on, and what happens to them.

``virsh`` is asked, which is on every host that has libvirt and speaks as its people know it. libvirt's Python module
has to be compiled against the libvirt that is there, and would tell no more: there is no event for a snapshot.
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

from chainlift.errors import MissingToolError, QemuError
from chainlift.host.virsh import Domain, Virsh, complaint, find_virsh, run_virsh
from chainlift.lift.live.whose import Vm
from chainlift.lift.neighbours.domain_xml import read_disks
from chainlift.lift.record.mark import read_mark
from chainlift.lift.watching.looking import Look, SeenDisk

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chainlift.lift.neighbours.domain_xml import DiskDefinition
    from chainlift.lift.record.mark import Mark

#: ``event 'lifecycle' for domain 'vm7': Stopped Destroyed``
_EVENT: Final = re.compile(r"event '([^']+)' for domain '(.*?)': (.*)")
#: The domain's number, which one that is shut off has not.
_RUNS: Final = re.compile(r"<domain [^>]*\bid='")
#: After these something else may be seen of the domain. An overlay that a snapshot puts on top is told by none.
_TELLING: Final = ("lifecycle", "block-job-2")
_ENDS: Final = ("Stopped", "Undefined", "Crashed")
#: Before virsh is started anew: libvirtd is being restarted, say.
_AGAIN_S: Final = 5.0


@dataclass(frozen=True)
class Listed:
    """The domains that run; None where libvirt does not tell, and why."""

    domains: list[Domain] | None
    error: str = ""


@dataclass(frozen=True)
class Happened:
    """Something happened to a domain."""

    where: Domain
    #: Whether it does not run any more.
    has_ended: bool


def list_domains(patterns: Sequence[str] = ()) -> list[Domain]:
    """Return the domains that run.

    :param patterns: only those whose name matches one of these, as a shell matches file names; none: all.
    :raise QemuError: in libvirt's words, if it does not tell.
    """
    done = run_virsh("list", "--name")
    if done.returncode != 0:
        raise QemuError(f"libvirt, list: {complaint(done)}")
    return [Domain(name) for name in done.stdout.splitlines() if name and is_meant(name, patterns)]


def is_meant(name: str, patterns: Sequence[str]) -> bool:
    """Whether a domain is one of those that are cared for."""
    return not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)


def look_at_domain(domain: Domain, directory: Path) -> Look:
    """Look at every qcow2 disk of a domain that runs, as libvirt knows it.

    :param directory: the state directory, for marks.
    :raise QemuError: in libvirt's words, if it does not tell, or the domain does not run.
    :raise InputError: if there is no such domain.
    """
    with closing(Virsh(domain)) as virsh:
        vm = Vm(domain.name, f"uuid {virsh.uuid}")
        text = virsh.ask_once("dumpxml")
        disks = read_disks(text)
        if _RUNS.search(text) is None:
            raise QemuError(f"{domain} does not run")
        job = _job(virsh)
        seen = []
        for disk in disks:
            if disk.device == "disk" and disk.format == "qcow2" and disk.path is not None:
                busy = disk.obstacle or job or _block_job(virsh, disk)
                mark = nearest_domain_mark(disk, vm, directory)
                seen.append(SeenDisk(disk.target, disk.alias, disk.path, len(disk.below or ()), busy, mark))
    return Look(vm, seen)


def nearest_domain_mark(disk: DiskDefinition, vm: Vm, directory: Path) -> tuple[Mark, int] | None:
    """Return the mark that counts for a disk, and how many layers above it have none; see :mod:`..live.whose`.

    :param directory: the state directory.
    """
    for depth, name in enumerate([disk.path, *(disk.below or ())]):
        mark = None if name is None else read_mark(Path(name), directory)
        if mark is not None and (depth == 0 or mark.vm is None or mark.vm == vm.identity):
            return mark, depth
    return None


def _job(virsh: Virsh) -> str | None:
    found = dict(re.findall(r"^(Job type|Operation):\s+(.*)$", virsh.ask_once("domjobinfo"), re.MULTILINE))
    if found.get("Job type", "None").strip() in ("None", "Completed"):
        return None
    return f"libvirt's job: {found.get('Operation', 'of an unknown kind').strip()}"


def _block_job(virsh: Virsh, disk: DiskDefinition) -> str | None:
    if disk.mirror is not None:
        return f"libvirt runs a {disk.mirror.job} on it"
    return "libvirt runs a block job on it" if "type=" in virsh.ask_once("blockjob", disk.target, "--raw") else None


class Events:
    """Tells what happens to domains, until it is closed. Where libvirt goes away, it is listened to again.

    :param tell: called from a thread of its own.
    """

    def __init__(self, tell: Callable[[Happened], None]) -> None:
        self._tell = tell
        self._ends = Event()
        self._virsh: subprocess.Popen[str] | None = None
        self._thread = Thread(target=self._run, name="libvirt's events", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._ends.set()
        with suppress(OSError, AttributeError):
            self._virsh.terminate()  # type: ignore[union-attr]
        self._thread.join(_AGAIN_S)

    def _run(self) -> None:
        while not self._ends.is_set():
            with suppress(OSError, MissingToolError):  # the list of domains tells of it
                self._listen()
            self._ends.wait(_AGAIN_S)

    def _listen(self) -> None:
        with subprocess.Popen(
            [find_virsh(), "-q", "event", "--all", "--loop"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C", "TERM": "dumb"},
            start_new_session=True,
        ) as virsh:
            self._virsh = virsh
            try:
                if self._ends.is_set():
                    return
                assert virsh.stdout is not None
                for line in virsh.stdout:
                    found = _EVENT.search(line)
                    if found is not None and found[1] in _TELLING:
                        self._tell(Happened(Domain(found[2]), found[3].startswith(_ENDS)))
            finally:
                virsh.terminate()
