"""Asking and telling libvirt by ``virsh``, which is on every host that has libvirt; errors are libvirt's own words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from chainlift.errors import InputError, MissingToolError, QemuError
from chainlift.host import interrupts
from chainlift.host.log import LOGGER, logged_command
from chainlift.host.virsh_shell import VirshShell

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG: Final = LOGGER.getChild("virsh")

#: How long a question may take; with hundreds of layers a definition is long.
ASK_S: Final = 30.0
#: How long is waited for a libvirtd that is being restarted.
AWAY_S: Final = 60.0
_AGAIN_S: Final = 0.2
#: What virsh says where its connection was cut, or nobody listens.
_AWAY: Final = (
    "failed to connect",
    "Failed to connect",
    "Cannot recv data",
    "Cannot write data",
    "End of file while reading data",
    "client socket is closed",
    "Connection reset",
    "Broken pipe",
    "Connection refused",
    "Disconnected from",
    "connection closed",
)

#: As virsh takes one.
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: What libvirt 10.8 to 11.10 says of everything once it could not read an answer of QEMU's about a long chain.
_TOO_DEEP: Final = "nesting too deep"
_OUT_OF_ORDER: Final = (
    "its chain is too long for this libvirt, which does nothing more for the running domain: shut it off, then "
    "chainlift squash its image"
)


@dataclass(frozen=True)
class Domain:
    """A domain by its name, id or UUID."""

    name: str
    #: The connection; None: the one that virsh would take (``LIBVIRT_DEFAULT_URI``).
    uri: str | None = None

    def __str__(self) -> str:
        return f"domain {self.name}"


class LibvirtAwayError(QemuError):
    """libvirt does not answer, or has closed the connection: what was asked for may have been done."""


class Virsh:
    """Commands of virsh about one domain. One process answers the questions: :meth:`close` ends it.

    :param domain: as a person names it; :attr:`uuid` is what it is called from then on.
    :raise MissingToolError: if there is no virsh.
    :raise InputError: if there is no such domain.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._shell: VirshShell | None = None
        self.uuid = find_uuid(domain, self._by_shell)

    def close(self) -> None:
        """End the process that answers; who asks more begins another one."""
        if self._shell is not None:
            self._shell.close()
        self._shell = None

    def ask(self, command: str, *words: str | os.PathLike[str]) -> str:
        """Ask something that changes nothing; a libvirtd that is being restarted is waited for.

        :raise QemuError: in libvirt's words, if it refuses.
        """
        return self._ask(command, self.uuid, *words)

    def ask_once(self, command: str, *words: str | os.PathLike[str]) -> str:
        """Ask as :meth:`ask` does, of a libvirtd that is there now.

        :raise QemuError: in libvirt's words, if it refuses.
        """
        answer = self._by_shell(command, self.uuid, *words)
        return self._run(command, self.uuid, *words, only_asks=True) if answer is None else answer

    def _ask(self, *words: str | os.PathLike[str]) -> str:
        answer = self._by_shell(*words)
        if answer is not None:
            return answer
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return self._run(*words, only_asks=True)
            except LibvirtAwayError:
                if time.monotonic() > deadline:
                    raise
                interrupts.between_steps()
                time.sleep(_AGAIN_S)

    def is_running(self) -> bool:
        """Whether the domain has a process.

        :raise QemuError: in libvirt's words; a transient domain is gone with its process.
        """
        return self.ask("domstate").strip() not in ("shut off", "crashed", "no state")

    def is_persistent(self) -> bool:
        """Whether libvirt keeps a definition of the domain that the next start takes.

        :raise QemuError: in libvirt's words, if it does not tell.
        """
        return self.uuid in self._ask("list", "--all", "--persistent", "--uuid").split()

    @cached_property
    def daemon_version(self) -> tuple[int, ...]:
        """See :func:`daemon_version`."""
        answer = self._by_shell("version", "--daemon")
        return daemon_version(self.domain.uri) if answer is None else _read_version(answer)

    def define(self, text: str) -> None:
        """Give libvirt another definition of the domain, as ``virsh edit`` would.

        :raise QemuError: in libvirt's words, if it refuses.
        """
        done = run_virsh("define", "/dev/stdin", uri=self.domain.uri, text=text)
        if done.returncode != 0:
            raise QemuError(f"libvirt, define: {complaint(done)}")

    def tell(
        self, command: str, *words: str | os.PathLike[str], text: str | None = None, timeout_s: float = ASK_S
    ) -> str:
        """Run a command once.

        :param text: what it reads as ``/dev/stdin``.
        :raise LibvirtAwayError: if nobody answers, or the connection was cut: it may have been done.
        :raise QemuError: in libvirt's words, if it refuses.
        """
        return self._run(command, self.uuid, *words, text=text, timeout_s=timeout_s)

    def _by_shell(self, *words: str | os.PathLike[str]) -> str | None:
        """Ask the virsh that is there already; None where it gives no answer that is sure."""
        if self._shell is None:
            self._shell = VirshShell(*_virsh(self.domain.uri))
        said = " ".join(os.fspath(word) for word in words[1:])
        with interrupts.put_off(), logged_command(_LOG, os.fspath(words[0]), said, only_asks=True):
            try:
                answer = self._shell.ask(words, ASK_S)
            except TimeoutError:
                self.close()
                raise _late(words[0], ASK_S) from None
        if answer is None:
            self.close()
        return answer

    def _run(
        self,
        *words: str | os.PathLike[str],
        text: str | None = None,
        timeout_s: float = ASK_S,
        only_asks: bool = False,
    ) -> str:
        done = run_virsh(*words, uri=self.domain.uri, text=text, timeout_s=timeout_s, only_asks=only_asks)
        if done.returncode == 0:
            return done.stdout
        said = complaint(done)
        kind = LibvirtAwayError if any(away in done.stderr for away in _AWAY) else QemuError
        raise kind(f"libvirt, {os.fspath(words[0])}: {said}", hint=_OUT_OF_ORDER if _TOO_DEEP in said else None)


def run_virsh(
    *words: str | os.PathLike[str],
    uri: str | None = None,
    text: str | None = None,
    timeout_s: float = ASK_S,
    only_asks: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run virsh to its end. Ctrl-C reaches us alone: what was begun is undone through libvirt.

    :param uri: the connection; None: the one that virsh would take.
    :param only_asks: whether the command changes nothing: for the log.
    :raise MissingToolError: if there is none.
    :raise LibvirtAwayError: if it does not end in time.
    """
    command, environment = _virsh(uri)
    said = " ".join(os.fspath(word) for word in words[1:])
    with interrupts.put_off(), logged_command(_LOG, os.fspath(words[0]), said, only_asks=only_asks):
        try:
            return subprocess.run(
                [*command, *words],
                input=text or "",
                capture_output=True,
                text=True,
                errors="surrogateescape",
                timeout=timeout_s,
                check=False,
                env=environment,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise _late(words[0], timeout_s) from None


def _virsh(uri: str | None) -> tuple[list[str], dict[str, str]]:
    """Return a command line to which commands are added, and its environment: nothing is coloured or folded."""
    connection = [] if uri is None else ["-c", uri]
    return [find_virsh(), "-q", *connection], {**os.environ, "LC_ALL": "C", "TERM": "dumb"}


def _late(command: str | os.PathLike[str], timeout_s: float) -> LibvirtAwayError:
    return LibvirtAwayError(f"libvirt did not answer virsh {command} within {timeout_s:g} s")


def daemon_version(uri: str | None = None) -> tuple[int, ...]:
    """Return the version of the libvirt that answers; (0,) where it does not tell.

    :param uri: the connection; None: the one that virsh would take.
    """
    return _read_version(run_virsh("version", "--daemon", uri=uri, only_asks=True).stdout)


def _read_version(text: str) -> tuple[int, ...]:
    found = re.search(r"daemon: (\d+)\.(\d+)\.(\d+)", text)
    return (0,) if found is None else tuple(map(int, found.groups()))


def find_virsh() -> str:
    """Return virsh's path.

    :raise MissingToolError: if there is none.
    """
    found = shutil.which("virsh")
    if found is None:
        raise MissingToolError("there is no virsh", hint="apt-get install libvirt-clients")
    return found


def find_uuid(domain: Domain, ask: Callable[..., str | None] | None = None) -> str:
    """Return a domain's UUID.

    :param ask: answers a command where it can, else None; None: a virsh of its own is run.
    :raise InputError: if there is no such domain.
    """
    # domuuid takes no UUID; for dominfo, a libvirtd that was just started first asks every emulator what it can.
    words = ("dominfo" if _UUID.fullmatch(domain.name.lower()) else "domuuid", "--", domain.name)
    answer = None if ask is None else ask(*words)
    if answer is not None and (found := _UUID.search(answer.rpartition("UUID:")[2])):
        return found[0]
    done = run_virsh(*words, uri=domain.uri, only_asks=True)
    found = _UUID.search(done.stdout.rpartition("UUID:")[2])
    if done.returncode != 0 or found is None:
        raise InputError(f"{domain}: {complaint(done)}", hint="see virsh list --all")
    return found[0]


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return what libvirt said against something, in one line."""
    lines = [line.removeprefix("error: ").strip() for line in done.stderr.splitlines()]
    # virsh says what it could not do, and then why.
    said = [line for line in lines if line and not line.startswith(("Failed to ", "Disconnected from"))]
    return said[-1] if said else next((line for line in reversed(lines) if line), "virsh said nothing")
