"""A libvirt domain's monitor: libvirt holds the QMP socket, and passes commands on for who asks ``virsh``.

``virsh qemu-monitor-command`` is on every host that has libvirt, so nothing else is needed. One virsh runs as a shell
for all commands of a session; it ends with us, because its standard input does. libvirt calls such a domain tainted
(``custom-monitor``), and learns nothing of what is done: see :data:`WARNING`.

libvirt reads the headers of a chain before it starts a domain, and refuses one that names an index ("missing parser
implementation for JSON backing volume driver 'qcow2'", 9.0). So an index is not written into the image here: it is used
until the domain is shut down, and the next start is on the chain, as libvirt knows it. A squash is written.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self
from xml.etree import ElementTree as ET

from chainlift.errors import InputError, MissingToolError, QemuError
from chainlift.lift.live.peer import Peer, look_at
from chainlift.qemu.monitor import COMMAND_S, merge_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

WARNING: Final = (
    "libvirt does not learn of this: its block jobs and backups do not find the layers until the domain is started "
    "again, and an index prevents save and migration (chainlift restore --libvirt first)"
)
_READ_BYTES: Final = 1 << 20
_QUICK_S: Final = 30.0


@dataclass(frozen=True)
class Domain:
    """A domain by its name, id or UUID; on the connection that virsh would take (``LIBVIRT_DEFAULT_URI``)."""

    name: str

    def __str__(self) -> str:
        return f"domain {self.name}"


class VirshMonitor:
    """QEMU's monitor through libvirt. See :class:`chainlift.lift.live.qmp.Qmp`.

    :param command_s: how long a command may take, where it has no limit of its own.
    :raise MissingToolError: if there is no virsh.
    """

    def __init__(self, domain: Domain, *, command_s: float = COMMAND_S) -> None:
        self._domain = domain
        self._command_s = command_s
        self._rest = b""
        # Lines come back with the prompt, and are not coloured or folded for a terminal.
        environment = {**os.environ, "LC_ALL": "C", "TERM": "dumb"}
        self._virsh = subprocess.Popen(
            [find_virsh(), "-q"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
        **keywords: object,
    ) -> Any:  # noqa: ANN401 - whatever the command returns
        """Run a command and return what it returns; as :meth:`chainlift.qemu.monitor.Monitor.execute`.

        :raise QemuError: if QEMU or libvirt refuses, or does not answer in time (what it did is then unknown).
        """
        merged = merge_arguments(arguments, keywords)
        timeout_s = self._command_s if timeout_s is None else timeout_s
        request = json.dumps({"execute": command, **({"arguments": merged} if merged else {})})
        line = f"qemu-monitor-command {_quoted(self._domain.name)} --cmd {_quoted(request)}\n"
        stdin = self._virsh.stdin
        assert stdin is not None
        try:
            stdin.write(line.encode())
            stdin.flush()
        except OSError:
            raise QemuError(f"virsh has ended before {command}") from None
        answer = self._answer(command, time.monotonic() + timeout_s, timeout_s)
        if "error" in answer:
            raise QemuError(f"{command}: {answer['error']['desc']}")
        return answer["return"]

    def close(self) -> None:
        """End virsh."""
        if self._virsh.stdin is not None:
            self._virsh.stdin.close()
        try:
            self._virsh.wait(_QUICK_S)
        except subprocess.TimeoutExpired:
            self._virsh.kill()
            self._virsh.wait()
        if self._virsh.stdout is not None:
            self._virsh.stdout.close()

    def _answer(self, command: str, deadline: float, timeout_s: float) -> dict[str, Any]:
        while True:
            line, found, self._rest = self._rest.partition(b"\n")
            if not found:
                self._rest = line + self._more(command, deadline, timeout_s)
                continue
            if line.startswith(b"{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
            if line.startswith(b"error: "):
                # More of it may come: nothing else can be asked of this virsh.
                self._virsh.kill()
                said = line.removeprefix(b"error: ").decode(errors="replace")
                raise QemuError(f"libvirt, {command}: {said}", hint="see virsh list; the URI is LIBVIRT_DEFAULT_URI's")

    def _more(self, command: str, deadline: float, timeout_s: float) -> bytes:
        stdout = self._virsh.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            self._virsh.kill()
            raise QemuError(f"libvirt did not answer {command} within {timeout_s:g} s")
        data = os.read(stdout.fileno(), _READ_BYTES)
        if not data:
            raise QemuError(f"virsh has ended during {command}")
        return data


def find_virsh() -> str:
    """Return virsh's path.

    :raise MissingToolError: if there is none.
    """
    found = shutil.which("virsh")
    if found is None:
        raise MissingToolError("there is no virsh", hint="apt-get install libvirt-clients")
    return found


def find_domain(domain: Domain) -> Peer:
    """Look up the process of a domain, by the UUID that libvirt starts it with.

    :raise InputError: if there is no such domain, or it does not run here.
    """
    done = subprocess.run(
        [find_virsh(), "-q", "domuuid", "--", domain.name],
        capture_output=True,
        text=True,
        timeout=_QUICK_S,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    uuid = done.stdout.strip()
    if done.returncode != 0 or not uuid:
        said = done.stderr.strip().splitlines() or ["virsh said nothing"]
        raise InputError(f"{domain}: {said[-1].removeprefix('error: ')}", hint="see virsh list --all")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _words(entry)
            if ("-uuid", uuid) in pairwise(words):
                return look_at(int(entry.name))
    raise InputError(f"{domain} does not run on this machine", hint="for a domain at rest, name its image instead")


def device_of_target(domain: Domain, device: str) -> str:
    """Return the id by which QEMU knows a disk that libvirt calls by its target (``vda``): its alias.

    :param device: a target's name; anything else is returned as it is.
    :raise InputError: if libvirt does not tell.
    """
    done = subprocess.run(
        [find_virsh(), "-q", "dumpxml", "--", domain.name],
        capture_output=True,
        timeout=_QUICK_S,
        check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    try:
        disks = ET.fromstring(done.stdout).findall("devices/disk")
    except ET.ParseError:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["virsh said nothing"]
        raise InputError(f"{domain}: {said[-1].removeprefix('error: ')}", hint="see virsh dumpxml") from None
    for disk in disks:
        target, alias = disk.find("target"), disk.find("alias")
        if target is not None and alias is not None and target.get("dev") == device:
            return alias.get("name", device)
    return device


def _words(process: Path) -> list[str]:
    """Return the command line of a process, empty where it cannot be read."""
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def _quoted(text: str) -> str:
    """Return a word for virsh's shell, which quotes as a POSIX shell does."""
    return "'" + text.replace("'", "'\\''") + "'"
