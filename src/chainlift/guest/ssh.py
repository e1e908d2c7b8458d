"""A guest that is up and reached over SSH, for images without a guest agent.

One connection is made when the guest comes up and every command runs through it (``ControlMaster``, ssh_config(5)):
under emulation its key exchange takes seconds, and a new session's bookkeeping would write to the measured disk.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from chainlift.errors import GuestError, InputError, MissingToolError, OperationError
from chainlift.guest.interface import CommandResult
from chainlift.host.process import Process, last_lines, run_tool

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.qemu.process import Finished
    from chainlift.qemu.vm import VirtualMachine

#: ssh's own exit status where it, and not the command, failed.
_SSH_FAILED = 255
#: How long a guest may refuse us before we believe it: cloud images install the key while they boot.
_REFUSED_S = 60.0

# Prints how many file systems are frozen and waits to be told to thaw them, or for its connection to go. Everything
# that it needs is running by then: a frozen root file system lets no program write, and a new session would.
_FREEZE = """\
# What is mounted on another goes first.
mounts=
while read -r device mount type options rest; do
    case $device,$type,$options in
        /dev/*,ext[234],rw*|/dev/*,xfs,rw*|/dev/*,btrfs,rw*|/dev/*,f2fs,rw*) ;;
        *) continue ;;
    esac
    case $seen in *"|$device|"*) continue ;; esac
    seen="$seen|$device|"
    mounts="$mount $mounts"
done </proc/mounts
count=0
for mount in $mounts; do fsfreeze -f "$mount" && count=$((count + 1)); done
echo "$count"
read -r line
for mount in $mounts; do fsfreeze -u "$mount"; done
echo thawed
"""


@dataclass(frozen=True)
class SshLogin:
    """How to log into a guest."""

    #: The private key's file; it must not need a passphrase.
    key: Path
    #: root, or somebody who may use sudo without a password.
    user: str = "root"
    #: The port of the guest's server.
    port: int = 22

    def check(self) -> None:
        """Refuse what cannot work.

        :raise MissingToolError: if there is no ssh on this host.
        :raise InputError: if the key's file is not there or others may read it.
        """
        if shutil.which("ssh") is None:
            raise MissingToolError("there is no ssh to reach the guest with", hint="install the package openssh-client")
        if self.user.startswith("-") or not self.user or not self.user.isprintable():
            raise InputError(f"{self.user!r} is no user's name")
        try:
            with self.key.open("rb"):
                mode = self.key.stat().st_mode
        except OSError as error:
            raise InputError(f"the SSH key cannot be read: {error.strerror}", path=self.key) from error
        if mode & 0o077:
            raise InputError("others may read this SSH key, so ssh will not use it", path=self.key, hint="chmod 600 it")


class SshGuest:
    """A guest with an SSH server; implements :class:`chainlift.guest.interface.Guest`.

    :param login: as whom.
    :param work: a directory on the measured disk's file system.
    """

    def __init__(self, vm: VirtualMachine, login: SshLogin, *, device: str = "/dev/sda", work: str = "/root") -> None:
        self.vm = vm
        self.device = device
        self._login = login
        self._work = work
        self._control = vm.directory / "ssh"
        self._master: Process | None = None
        self._freezer: tuple[Process, int] | None = None

    def connect(self, timeout_s: float) -> None:
        """Wait until the guest's SSH server lets us in.

        :raise GuestError: if it does not within ``timeout_s``; the text ends with the last lines of its console.
        :raise InputError: if it answers, and refuses the user or the key for a minute.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """
        deadline = time.monotonic() + timeout_s
        refused_since: float | None = None
        said = ""
        while True:
            master = Process(self._ssh("-M", "-N", "-o", "ConnectTimeout=20"))
            while master.running and not self._control.exists() and time.monotonic() < deadline:
                time.sleep(0.05)
            if self._control.exists():
                self._master = master
                return
            said = master.stderr_tail(1) or said
            master.close()
            if not self.vm.process.running:
                raise self.vm.process.crash_error("the guest's boot")
            now = time.monotonic()
            if "Permission denied" not in said:
                refused_since = None
            elif refused_since is None:
                refused_since = now
            elif now - refused_since > _REFUSED_S or now >= deadline:
                raise InputError(
                    f"the guest lets nobody in as {self._login.user} with this key: {said}", path=self._login.key
                )
            if now >= deadline:
                raise GuestError(
                    f"the guest did not come up within {timeout_s:g} s (ssh: {said or 'no answer'}); "
                    f"its console ends: {self.vm.console_tail()}"
                )
            time.sleep(0.5)

    def run(self, command: str, timeout_s: float = 60.0) -> CommandResult:
        """Run a shell command as root.

        :raise GuestError: if it is not done after ``timeout_s`` (it is left running), or the connection is lost.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """
        try:
            finished = run_tool(self._session(command), timeout_s=timeout_s, check=False)
        except OperationError:
            if not self.vm.process.running:
                raise self.vm.process.crash_error(f"the guest's {command!r}") from None
            raise GuestError(f"the guest's {command!r} was not done after {timeout_s:g} s") from None
        if finished.returncode == _SSH_FAILED and not self._connected():
            if not self.vm.process.running:
                raise self.vm.process.crash_error(f"the guest's {command!r}")
            raise GuestError(
                f"the SSH connection to the guest was lost during {command!r}: {last_lines(finished.stderr)}"
            )
        return CommandResult(command, finished.returncode, finished.stdout, finished.stderr)

    def work_directory(self) -> str:
        """Return a directory on the measured disk's file system."""
        return self._work

    def freeze(self) -> int:
        """Freeze all file systems on disks; return how many. Nothing can be run until they are thawed."""
        if self._freezer is not None:
            raise GuestError("the guest's file systems are frozen already")
        reading, writing = os.pipe()
        try:
            # Its output is kept in a file that we poll: a pipe could block us for ever.
            helper = Process(self._session(_FREEZE), stdin=reading)
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        self._freezer = helper, writing
        deadline = time.monotonic() + 120
        while not (text := helper.stdout_so_far().strip()):
            if not helper.running or time.monotonic() > deadline:
                said = helper.stderr_tail(1)
                self._end_freezer()
                raise GuestError(f"the guest's file systems could not be frozen: {said or 'no answer'}")
            time.sleep(0.02)
        if text == "0":
            said = helper.stderr_tail(1)
            self._end_freezer()
            raise GuestError(f"the guest froze no file system: {said or 'it has none on a disk'}")
        return int(text)

    def thaw(self) -> int:
        """Undo :meth:`freeze`; return how many file systems were frozen."""
        if self._freezer is None:
            return 0
        helper = self._freezer[0]
        count = int(helper.stdout_so_far().strip())
        self._end_freezer()
        return count

    def halt(self, timeout_s: float = 120.0) -> Finished:
        """Shut down, wait for QEMU to end, return what it took.

        :raise GuestError: if QEMU still runs after ``timeout_s``.
        :raise QemuCrashed: if it did not end of its own will.
        """
        with Process(self._session("systemctl poweroff || poweroff || shutdown -P now")):
            try:
                finished = self.vm.wait(timeout_s)
            except TimeoutError:
                tail = self.vm.console_tail()
                raise GuestError(f"the guest did not shut down within {timeout_s:g} s; its console: {tail}") from None
        if self._master is not None:
            self._master.close()
        if finished.returncode != 0:
            raise self.vm.process.crash_error("the guest's shutdown")
        return finished

    def _end_freezer(self) -> None:
        assert self._freezer is not None
        helper, writing = self._freezer
        self._freezer = None
        os.close(writing)  # the end of its input: it thaws
        with helper:
            try:
                helper.wait(120)
            except TimeoutError:
                raise GuestError("the guest's file systems could not be thawed") from None

    def _connected(self) -> bool:
        return run_tool(self._ssh("-O", "check"), check=False).returncode == 0

    def _session(self, command: str) -> list[str]:
        shell = f"sh -c {quote(command)}"
        if self._login.user != "root":
            shell = f"sudo -n -- {shell}"
        # The login shell must not be replaced by ours: it turns a signal into 128 + n, which ssh would call 255.
        return [*self._ssh("-o", "ControlMaster=no"), f"{shell}; exit $?"]

    def _ssh(self, *options: str) -> list[str]:
        [host_port] = (host for host, guest in self.vm.config.forward_ports.items() if guest == self._login.port)
        return [
            # None of the person's own settings, and nothing of this guest's is remembered or asked for: it is reached
            # through QEMU's own network on the loopback.
            *("ssh", "-F", "none", "-i", str(self._login.key), "-p", str(host_port)),
            *("-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"),
            *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "GlobalKnownHostsFile=/dev/null", "-o", "ServerAliveInterval=0"),
            *("-o", f"ControlPath={self._control}", *options, f"{self._login.user}@127.0.0.1"),
        ]
