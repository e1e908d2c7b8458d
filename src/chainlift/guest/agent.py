"""The guest agent's protocol: QMP's messages without its greeting (docs/interop/qemu-ga-ref in QEMU).

The agent sits behind a virtio serial port. What we send before it is up waits in the port and is answered when it is.
"""

from __future__ import annotations

import asyncio
import base64
import random
import time
from typing import TYPE_CHECKING, Any, Self

from qemu.qmp import QMPError

from chainlift.errors import GuestError, QemuCrashed, QemuError
from chainlift.guest.interface import CommandResult
from chainlift.qemu.monitor import Client, Connection, event_loop

if TYPE_CHECKING:
    from pathlib import Path

    from qemu.qmp.message import Message

    from chainlift.qemu.process import QemuProcess


class _AgentClient(Client):
    """The library's client for a peer that does not greet, and that marks a new start with a 0xFF byte."""

    def __init__(self) -> None:
        super().__init__()
        self.await_greeting = False
        self.negotiate = False

    async def _do_recv(self) -> Message:
        from qemu.qmp.message import Message

        line = await self._readline()
        # guest-sync-delimited: 0xFF, which no JSON holds, parts what an earlier client left from our answer.
        return Message(line.rpartition(b"\xff")[2], eager=True)


class Agent(Connection):
    """The agent in a guest that is up."""

    @classmethod
    def connect(cls, socket_path: Path, process: QemuProcess, timeout_s: float) -> Self:
        """Connect to the agent's port and wait until it answers.

        :param socket_path: of the guest's port.
        :param process: the QEMU that the guest runs in.
        :param timeout_s: seconds until it must have answered.
        :raise TimeoutError: if it does not within ``timeout_s``.
        :raise QemuError: if QEMU is not there.
        :raise QemuCrashed: if QEMU ended meanwhile.
        """
        agent = cls(_AgentClient(), process)
        try:
            agent._connect(str(socket_path), timeout_s)
            agent._sync(timeout_s)
        except BaseException:
            agent.close()
            raise
        return agent

    def run(self, command: str, timeout_s: float) -> CommandResult:
        """Run a shell command; what it writes to its output is kept by the agent up to 16 MiB.

        :raise GuestError: if it is not done after ``timeout_s`` (it is left running), or the agent cannot run commands.
        """
        deadline = time.monotonic() + timeout_s
        started = time.monotonic()
        pid = self.ask("guest-exec", path="/bin/sh", arg=["-c", command], capture_output=True)["pid"]
        while True:
            status = self.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                return CommandResult(command, _status(status), _text(status, "out-data"), _text(status, "err-data"))
            now = time.monotonic()
            if now >= deadline:
                raise GuestError(f"the guest's {command!r} was not done after {timeout_s:g} s")
            # Each question costs the guest CPU time; a wait is found at most 2 % too long.
            time.sleep(min(max((now - started) * 0.02, 0.005), 0.2, deadline - now))

    def ask(self, command: str, timeout_s: float = 60.0, **arguments: object) -> Any:  # noqa: ANN401
        """Run one of the agent's own commands.

        :raise GuestError: if the agent refuses, or does not answer in time.
        :raise QemuCrashed: if QEMU ended.
        """
        try:
            return self.execute(
                command, {name.replace("_", "-"): value for name, value in arguments.items()}, timeout_s=timeout_s
            )
        except QemuCrashed:
            raise
        except QemuError as error:
            raise GuestError(f"the guest's agent: {error.what}") from None

    def tell(self, command: str, **arguments: object) -> None:
        """Send a command that is not answered when it succeeds, such as ``guest-shutdown``."""
        future = asyncio.run_coroutine_threadsafe(self._client.execute(command, arguments or None), event_loop())
        # The guest goes away instead of answering, which the library reports as an error that nobody minds.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _sync(self, timeout_s: float) -> None:
        token = random.randrange(1 << 31)
        try:
            answer = self._call(self._client.execute("guest-sync-delimited", {"id": token}), timeout_s)
        except (QMPError, OSError, EOFError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self._lost_error("the guest's boot") from None
        if answer != token:
            raise GuestError("the guest's agent answers somebody else; restart it")


def _text(status: dict[str, Any], key: str) -> str:
    return base64.b64decode(status.get(key, "")).decode(errors="replace")


def _status(status: dict[str, Any]) -> int:
    return int(status["exitcode"]) if "exitcode" in status else 128 + int(status.get("signal", 0))
