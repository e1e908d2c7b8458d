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
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from chainlift.errors import InputError, QemuError
from chainlift.host import interrupts
from chainlift.host.closing import Closing
from chainlift.host.log import LOGGER, logged_command
from chainlift.host.virsh import complaint, find_uuid, find_virsh, run_virsh
from chainlift.host.virsh_shell import quoted
from chainlift.lift.live.seen_process import SeenProcess, read_process
from chainlift.lift.neighbours.domain_xml import read_disks
from chainlift.qemu.monitor import COMMAND_S, merge_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping

    from chainlift.host.virsh import Domain

WARNING: Final = (
    "libvirt does not learn of this: its block jobs and backups do not find the layers until the domain is started "
    "again, and an index prevents save and migration (chainlift restore --libvirt first)"
)
_LOG: Final = LOGGER.getChild("qmp")

_READ_BYTES: Final = 1 << 20
_QUICK_S: Final = 30.0
#: How long a wait goes on after an interrupt.
_LOOK_S: Final = 0.1


class VirshMonitor(Closing):
    """QEMU's monitor through libvirt. See :class:`chainlift.lift.live.qmp.Qmp`.

    :param command_s: how long a command may take, where it has no limit of its own.
    :raise MissingToolError: if there is no virsh.
    """

    def __init__(self, domain: Domain, *, command_s: float = COMMAND_S) -> None:
        self._domain = domain
        self._command_s = command_s
        self._rest = b""
        #: Answers that nobody waits for any more: an interrupt came before them.
        self._unwanted = 0
        # Lines come back with the prompt, and are not coloured or folded for a terminal.
        environment = {**os.environ, "LC_ALL": "C", "TERM": "dumb"}
        connection = [] if domain.uri is None else ["-c", domain.uri]
        self._virsh = subprocess.Popen(
            [find_virsh(), "-q", *connection],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches us alone: what was begun is undone through it
        )

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
        interrupts.between_steps()
        merged = merge_arguments(arguments, keywords)
        timeout_s = self._command_s if timeout_s is None else timeout_s
        request = json.dumps({"execute": command, **({"arguments": merged} if merged else {})})
        line = f"qemu-monitor-command {quoted(self._domain.name)} --cmd {quoted(request)}\n"
        stdin = self._virsh.stdin
        assert stdin is not None
        can_end = not interrupts.is_put_off()
        with logged_command(_LOG, command, merged), interrupts.put_off():
            try:
                stdin.write(line.encode())
                stdin.flush()
            except OSError:
                raise QemuError(f"virsh has ended before {command}") from None
            try:
                answer = self._answer(command, time.monotonic() + timeout_s, timeout_s, can_end=can_end)
            except KeyboardInterrupt:
                self._unwanted += 1
                raise
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

    def _answer(self, command: str, deadline: float, timeout_s: float, *, can_end: bool) -> dict[str, Any]:
        while True:
            line, found, self._rest = self._rest.partition(b"\n")
            if not found:
                self._rest = line + self._more(command, deadline, timeout_s, can_end=can_end)
                continue
            if line.startswith(b"{"):
                if self._unwanted:
                    self._unwanted -= 1
                    continue
                answer: dict[str, Any] = json.loads(line)
                return answer
            if line.startswith(b"error: "):
                # More of it may come: nothing else can be asked of this virsh.
                self._virsh.kill()
                said = line.removeprefix(b"error: ").decode(errors="replace")
                raise QemuError(f"libvirt, {command}: {said}", hint="see virsh list; the URI is LIBVIRT_DEFAULT_URI's")

    def _more(self, command: str, deadline: float, timeout_s: float, *, can_end: bool) -> bytes:
        stdout = self._virsh.stdout
        assert stdout is not None
        while not (ready := select.select([stdout], [], [], _LOOK_S)[0]) and time.monotonic() < deadline:
            if can_end:
                interrupts.between_steps()
        if not ready:
            self._virsh.kill()
            raise QemuError(f"libvirt did not answer {command} within {timeout_s:g} s")
        data = os.read(stdout.fileno(), _READ_BYTES)
        if not data:
            raise QemuError(f"virsh has ended during {command}")
        return data


def find_domain(domain: Domain) -> SeenProcess:
    """Look up the process of a domain, by the UUID that libvirt starts it with.

    :raise InputError: if there is no such domain, or it does not run here.
    """
    return find_process(domain, find_uuid(domain))


def find_process(domain: Domain, uuid: str) -> SeenProcess:
    """Look up the process of a domain by the UUID that libvirt starts it with.

    :raise InputError: if it does not run here.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = _words(entry)
            if ("-uuid", uuid) in pairwise(words):
                return read_process(int(entry.name))
    raise InputError(f"{domain} does not run on this machine", hint="for a domain at rest, name its image instead")


def device_of_target(domain: Domain, device: str) -> str:
    """Return the id by which QEMU knows a disk that libvirt calls by its target (``vda``): its alias.

    :param device: a target's name; anything else is returned as it is.
    :raise InputError: if libvirt does not tell.
    """
    done = run_virsh("dumpxml", "--", domain.name, uri=domain.uri, only_asks=True)
    try:
        disks = read_disks(done.stdout)
    except QemuError:
        raise InputError(f"{domain}: {complaint(done)}", hint="see virsh dumpxml") from None
    return next((disk.alias for disk in disks if disk.target == device and disk.alias), device)


def _words(process: Path) -> list[str]:
    """Return the command line of a process, empty where it cannot be read."""
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
