"""A guest that is up and reached through the QEMU guest agent, whatever system it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.errors import GuestError, QemuCrashed
from chainlift.guest.agent import Agent

if TYPE_CHECKING:
    from chainlift.guest.interface import CommandResult
    from chainlift.qemu.process import Finished
    from chainlift.qemu.vm import VirtualMachine

#: How long a guest may take for what the agent does by itself.
_AGENT_S = 120.0


class AgentGuest:
    """A guest with an agent; implements :class:`chainlift.guest.interface.Guest`.

    :param device: the measured disk, as the guest names it.
    :param work: a directory on the file system of that disk.
    :param mount: whether that is a mount point of ours, to be mounted when it is first asked for.
    """

    def __init__(
        self, vm: VirtualMachine, agent: Agent, *, device: str = "/dev/sda", work: str = "/mnt", mount: bool = False
    ) -> None:
        self.vm = vm
        self.agent = agent
        self.device = device
        self._work = work
        self._to_mount = mount

    def run(self, command: str, timeout_s: float = 60.0) -> CommandResult:
        """Run a shell command as root.

        :raise GuestError: if it is not done after ``timeout_s`` (it is left running), or the agent refuses.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """
        return self.agent.run(command, timeout_s)

    def work_directory(self) -> str:
        """Return a directory on the measured disk's file system, mounted."""
        if self._to_mount:
            self.run(f"mount -t ext4 {self.device} {self._work}", _AGENT_S).require()
            self._to_mount = False
        return self._work

    def freeze(self) -> int:
        """Freeze all file systems on disks; return how many. Only :meth:`thaw` is possible until they are thawed."""
        return int(self.agent.ask("guest-fsfreeze-freeze", _AGENT_S))

    def thaw(self) -> int:
        """Undo :meth:`freeze`; return how many file systems were frozen."""
        return int(self.agent.ask("guest-fsfreeze-thaw", _AGENT_S))

    def halt(self, timeout_s: float = 120.0) -> Finished:
        """Shut down, wait for QEMU to end, return what it took.

        :raise GuestError: if QEMU still runs after ``timeout_s``.
        :raise QemuCrashed: if it did not end of its own will.
        """
        self.agent.tell("guest-shutdown", mode="powerdown")
        try:
            finished = self.vm.wait(timeout_s)
        except TimeoutError:
            tail = self.vm.console_tail()
            raise GuestError(f"the guest did not shut down within {timeout_s:g} s; its console: {tail}") from None
        if finished.returncode != 0:
            raise self.vm.process.crash_error("the guest's shutdown")
        return finished


def connect_agent(vm: VirtualMachine, timeout_s: float) -> Agent:
    """Wait until the agent of the guest in a running machine answers.

    :raise GuestError: if it does not within ``timeout_s``, or the guest powered off or panicked instead; the text ends
        with the last lines of its console.
    :raise QemuCrashed: if QEMU crashed meanwhile.
    """
    try:
        return vm.closing.enter_context(Agent.connect(vm.agent_path, vm.process, timeout_s))
    except TimeoutError:
        what = f"the guest did not come up within {timeout_s:g} s"
    except QemuCrashed as error:
        if error.returncode != 0:
            raise
        what = "the guest stopped by itself before it was up"
    raise GuestError(f"{what}; its console ends: {vm.console_tail()}")
