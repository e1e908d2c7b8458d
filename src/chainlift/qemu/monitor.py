"""QMP, synchronously: ``qemu.qmp`` on an event loop in a thread of its own.

All connections share the one loop. Every wait has a limit, and a connection that is lost tells why:
:class:`~chainlift.errors.QemuCrashed` with the signal and QEMU's last words, where its process is ours.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import logging
import os
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from chainlift.errors import QemuError
from chainlift.host import interrupts
from chainlift.host.closing import Closing
from chainlift.host.log import LOGGER, logged_command

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping
    from os import PathLike

    from chainlift.qemu.process import QemuProcess

# What the library logs (a late reply to a request that was given up) is no news to a person.
logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())

_LOG: Final = LOGGER.getChild("qmp")

_T = TypeVar("_T")

#: How long a command may take, where nobody says otherwise.
COMMAND_S: Final = 120.0
_RETRY_S: Final = 0.02
#: After so long without an answer a QEMU that has just started is helped out of ``accept()``.
_STUCK_S: Final = 1.0

#: Events that nobody has asked for are kept up to this many; the oldest go first.
_BACKLOG = 10_000
#: How long a wait goes on after an interrupt.
_LOOK_S = 0.1


@dataclass(frozen=True)
class Event:
    """Something that QEMU reported by itself."""

    name: str
    data: Mapping[str, Any]


def merge_arguments(arguments: Mapping[str, object] | None, keywords: Mapping[str, object]) -> dict[str, object]:
    """Return a command's arguments: those that are named as QMP spells them, and those with ``_`` for ``-``."""
    return {**(arguments or {}), **{name.replace("_", "-"): value for name, value in keywords.items()}}


class Client(QMPClient):
    """The library's client, for long lines: the description of a chain of 1,000 layers takes megabytes."""

    def __init__(self) -> None:
        super().__init__()
        self.readbuflen = 256 << 20  # since 0.0.4
        self._limit = 256 << 20  # 0.0.3

    # The library's hooks print each message, indented, whether or not anybody listens to its log: half of the time that
    # the edges of a chain of 300 take.
    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Connection(Closing):
    """A connection that requests go through; :class:`Monitor` and the guest agent's client are ones.

    :param client: not connected yet.
    :param process: the QEMU at the other end, where it is ours: its end explains a lost connection.
    :param command_s: how long a command may take, where it has no limit of its own.
    """

    def __init__(self, client: QMPClient, process: QemuProcess | None = None, *, command_s: float = COMMAND_S) -> None:
        self._client = client
        self._process = process
        self._command_s = command_s
        #: The process that listens on the socket; None where it is in another PID namespace.
        self.peer_pid: int | None = None
        self._changed = threading.Condition()
        self._lost = False
        self._events: deque[Event] = deque(maxlen=_BACKLOG)
        self._tasks: list[asyncio.Task[None]] = []

    def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout_s: float | None = None,
        **keywords: object,
    ) -> Any:  # noqa: ANN401 - whatever the command returns
        """Run a command and return what it returns.

        :param arguments: named as QMP spells them.
        :param timeout_s: how long to wait for the answer; None: as long as the connection's commands may take.
        :param keywords: more arguments, where ``_`` stands for ``-``.
        :raise QemuError: if QEMU refuses (its words) or does not answer in time (what it did is then unknown).
        :raise QemuCrashed: if QEMU ended before it answered.
        :raise Interrupted: before the command is sent; the wait for its answer is only interrupted where nobody puts
            that off (:mod:`chainlift.host.interrupts`).
        """
        interrupts.between_steps()
        merged = merge_arguments(arguments, keywords)
        timeout_s = self._command_s if timeout_s is None else timeout_s
        with logged_command(_LOG, command, merged):
            try:
                return self._call(self._client.execute(command, merged or None), timeout_s)
            except ExecuteError as error:
                raise QemuError(f"{command}: {error}") from None
            except TimeoutError:
                raise QemuError(f"{command} was not answered within {timeout_s:g} s") from None
            except (QMPError, OSError, EOFError):
                raise self._lost_error(command) from None

    def close(self) -> None:
        """Let go of the connection; what runs at the other end goes on."""
        for task in self._tasks:
            event_loop().call_soon_threadsafe(task.cancel)
        self._tasks.clear()
        # A connection that was lost reports that once more when it is closed.
        with interrupts.put_off(), contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            self._call(self._client.disconnect(), 10.0)

    def _call(self, coroutine: Coroutine[Any, Any, _T], timeout_s: float) -> _T:
        deadline = time.monotonic() + timeout_s
        can_end = not interrupts.is_put_off()
        # A wait that is left in the middle may keep its lock, and then the loop's thread would stand still for ever.
        with interrupts.put_off():
            future = asyncio.run_coroutine_threadsafe(coroutine, event_loop())
            try:
                while (left := deadline - time.monotonic()) > 0:
                    if concurrent.futures.wait([future], min(left, _LOOK_S)).done:
                        break
                    if can_end:
                        interrupts.between_steps()
                return future.result(0)
            except concurrent.futures.TimeoutError:
                future.cancel()
                raise TimeoutError from None
            except KeyboardInterrupt:
                future.cancel()
                raise

    def _connect(self, address: str, timeout_s: float) -> None:
        """Connect, waiting for the socket to appear, and begin to listen."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._connect_once(address, deadline)
                break
            except (TimeoutError, ConnectError, OSError) as error:
                if self._process is not None and not self._process.running:
                    raise self._process.crash_error("its start") from None
                if time.monotonic() >= deadline:
                    raise _busy(address, timeout_s) from error
                if self._process is None:
                    raise QemuError(f"cannot connect: {_cause(error)}", path=address) from None
                time.sleep(_RETRY_S)
        self._call(self._listen(), 10.0)

    def _connect_once(self, address: str, deadline: float) -> None:
        """Connect once, and wait for QEMU's greeting.

        The library would not do: on a socket whose queue is full it goes on without a connection ("Invalid argument").
        """
        connected = _open_socket(address, deadline)
        try:
            self.peer_pid = _peer_pid(connected)
            self._call(self._negotiate(connected, address), max(deadline - time.monotonic(), 0.1))
        except BaseException:
            connected.close()
            raise

    async def _negotiate(self, connected: socket.socket, address: str) -> None:
        """Wait for QEMU's greeting and its first answer.

        In a QEMU that has just begun to listen, the main loop and the monitor's thread may both go to accept us. The
        second stands in ``accept()`` until one client more comes (seen in 7.2, one start of 200 on a busy host).
        """
        made = asyncio.ensure_future(self._client.connect(connected))
        try:
            while not (await asyncio.wait({made}, timeout=_STUCK_S))[0]:
                if self._process is not None:  # ours, and just started
                    with contextlib.suppress(OSError):
                        _open_socket(address, 0.0).close()
            made.result()
        finally:
            made.cancel()
            await asyncio.gather(made, return_exceptions=True)

    async def _listen(self) -> None:
        listener = EventListener()
        self._client.register_listener(listener)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._collect(listener)), loop.create_task(self._watch())]

    async def _collect(self, listener: EventListener) -> None:
        async for message in listener:
            data: Any = message.get("data", {})
            with self._changed:
                self._events.append(Event(str(message["event"]), data))
                self._changed.notify_all()

    async def _watch(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        with self._changed:
            self._lost = True
            self._changed.notify_all()

    def _lost_error(self, what: str) -> QemuError:
        if self._process is not None:
            return self._process.crash_error(what)
        return QemuError(f"the connection was lost during {what}")


class Monitor(Connection):
    """QEMU's monitor."""

    @classmethod
    def connect(
        cls,
        socket_path: str | PathLike[str],
        process: QemuProcess | None = None,
        timeout_s: float = 120.0,
        *,
        command_s: float = COMMAND_S,
    ) -> Self:
        """Connect to the monitor's UNIX socket.

        :param process: the QEMU, where we have started it: then the socket may be still to come (QEMU opens its disks
            first, which takes a long chain half a minute).
        :param timeout_s: how long to wait for QEMU's greeting.
        :param command_s: how long each command may take.
        :raise QemuError: if nobody answers there.
        :raise QemuCrashed: if the process ends meanwhile.
        """
        monitor = cls(Client(), process, command_s=command_s)
        monitor._connect(str(socket_path), timeout_s)
        return monitor

    def events(self, *names: str) -> list[Event]:
        """Take the events that have come since they were last asked for: all, or those of these names."""
        with self._changed:
            taken = [event for event in self._events if not names or event.name in names]
            kept = [event for event in self._events if names and event.name not in names]
            self._events.clear()
            self._events.extend(kept)
        return taken

    def wait_event(
        self,
        name: str | Collection[str],
        match: Callable[[Mapping[str, Any]], bool] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Event:
        """Wait for an event, one that has already come included, and take it; others stay.

        :param name: its name, or several.
        :param match: what its data must satisfy.
        :param timeout_s: None waits as long as QEMU runs.
        :raise TimeoutError: if it does not come.
        :raise QemuCrashed: if QEMU ends before it comes.
        """
        names = {name} if isinstance(name, str) else set(name)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while True:
                for index, event in enumerate(self._events):
                    if event.name in names and (match is None or match(event.data)):
                        del self._events[index]
                        return event
                if self._lost:
                    break
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(f"no event {' or '.join(sorted(names))} within {timeout_s:g} s")
                self._changed.wait(left)
        raise self._lost_error(f"the wait for {' or '.join(sorted(names))}")


#: Seconds, and tries, for tasks to end when the process does.
_END_S, _END_ROUNDS = 1.0, 5
_loop_lock = threading.Lock()
_running_loop: asyncio.AbstractEventLoop | None = None


def event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that all connections share, in a thread that ends with us."""
    global _running_loop  # noqa: PLW0603 - one for the process, made when it is first needed
    with _loop_lock:
        if _running_loop is None:
            _running_loop = asyncio.new_event_loop()
            threading.Thread(target=_running_loop.run_forever, name="qmp", daemon=True).start()
            atexit.register(_end_tasks, _running_loop)
        return _running_loop


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """End what still waits in the loop when the process ends.

    An interruption while a connection is made or let go of leaves it open. Python would then destroy its tasks as they
    are, and write pages about it behind our one line.
    """
    loop.set_exception_handler(lambda _loop, _context: None)
    with contextlib.suppress(concurrent.futures.TimeoutError):
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result(_END_S)


async def _cancel_all() -> None:
    for _ in range(_END_ROUNDS):  # a task of the library's begins another one in order to disconnect
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_END_S / _END_ROUNDS)


def _open_socket(address: str, deadline: float) -> socket.socket:
    """Connect to a UNIX socket; where its queue is full, wait for a place in it.

    QEMU's queue has two places (``listen()`` with a backlog of 1), and it takes nobody out while it has a client.

    :raise TimeoutError: if there is no place by then.
    :raise OSError: if nobody listens.
    """
    there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    while True:
        try:
            there.connect(address)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                there.close()
                raise TimeoutError from None
            time.sleep(_RETRY_S)
        except BaseException:
            there.close()
            raise
        else:
            return there


def _peer_pid(connected: socket.socket) -> int | None:
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid or None


def _busy(address: str, timeout_s: float) -> QemuError:
    return QemuError(
        f"is busy: another client is connected, or QEMU does not answer (waited {timeout_s:g} s)",
        path=address,
        hint="QMP serves one client at a time: give each a socket of its own, or wait longer",
    )


def _cause(error: BaseException) -> str:
    cause = error.__cause__ or getattr(error, "exc", None) or error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def _forget_loop() -> None:
    global _loop_lock, _running_loop  # noqa: PLW0603
    _loop_lock = threading.Lock()
    _running_loop = None


# A process that is forked from ours has the loop but not its thread: nobody would ever answer.
os.register_at_fork(after_in_child=_forget_loop)
