"""How long a chain QEMU opens and reads before it dies, found by bisection.

A read that falls through the chain recurses once a layer on the stack of one coroutine (1 MiB, ``util/coroutine-*``);
where that stack ends, QEMU gets SIGSEGV. Opening recurses on the main thread's stack, which is larger.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, QemuCrashed
from chainlift.host.process import describe_end, run_tool
from chainlift.host.scratch import ScratchDirectory
from chainlift.profiling.perf import read_samples
from chainlift.profiling.recursion import fold_recursion
from chainlift.qemu.bench import reading
from chainlift.qemu.profile import name_samples
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from chainlift.profiling.recursion import Frame
    from chainlift.qemu.binary import Qemu

#: Places of the disk that are read: at one of them at least a read falls through every layer.
_PLACES = 16
#: A chain that is not open by then counts as one that does not open.
OPEN_TIMEOUT_S = 900.0
#: Frames of the crashed stack that are told.
_FRAMES = 4


@dataclass(frozen=True)
class Attempt:
    """What happened at one length.

    :ivar open_s: seconds until the chain was open; None if it never was.
    :ivar file_descriptors: open ones then.
    :ivar signal: what ended QEMU, None if nothing did; ``SIGALRM`` where it took too long and was ended by us.
    """

    length: int
    open_s: float | None = None
    file_descriptors: int | None = None
    signal: int | None = None

    @property
    def opens(self) -> bool:
        """Whether the chain was opened."""
        return self.open_s is not None

    @property
    def reads(self) -> bool:
        """Whether every read was answered."""
        return self.opens and self.signal is None


@dataclass(frozen=True)
class Limit:
    """The longest chain for which something works.

    :ivar longest: the longest that worked, and how it went; None if not even one layer did.
    :ivar shortest_failure: the shortest that did not; None where the longest is as long as was tried.
    :ivar place: where QEMU died then, innermost function first; None where that could not be seen.
    """

    longest: Attempt | None
    shortest_failure: Attempt | None = None
    place: str | None = None


def bisect(
    attempt: Callable[[int], Attempt],
    works: Callable[[Attempt], bool],
    most: int,
    *,
    known: Iterable[Attempt] = (),
    within: int = 1,
    longest_first: bool = False,
) -> Limit:
    """Find the longest chain that works; what works at a length is taken to work at every shorter one.

    :param attempt: tries a length; asked for each at most once.
    :param most: the longest that is tried.
    :param known: what was tried before.
    :param within: stop when the limit is known to so many layers.
    :param longest_first: try it at once, where it is likely to work; a chain that took too long is not bisected then.
    """
    tried = list(known)
    good = max((found for found in tried if works(found)), key=_length, default=None)
    low = good.length if good else 0
    bad = min((found for found in tried if not works(found) and found.length > low), key=_length, default=None)
    high = bad.length if bad else most + 1
    if longest_first and high > most > low:
        found = attempt(most)
        if works(found):
            return Limit(found)
        bad, high = found, most
    if longest_first and bad and bad.signal == signal.SIGALRM:
        return Limit(good, bad)
    while high - low > within:
        middle = (low + high) // 2
        found = attempt(middle)
        if works(found):
            low, good = middle, found
        else:
            high, bad = middle, found
    if bad is None and low < most:
        # All that was tried works, and the longest is near: nothing has shown yet that it does not.
        found = attempt(most)
        return Limit(found) if works(found) else Limit(good, found)
    return Limit(good, bad)


def _length(attempt: Attempt) -> int:
    return attempt.length


def attempt_length(
    qemu: Qemu, image: Path, length: int, virtual_size: int, *, open_timeout_s: float = OPEN_TIMEOUT_S
) -> Attempt:
    """Open a chain and read a little of it all over the disk.

    :param virtual_size: bytes, of the disk.
    :param open_timeout_s: a chain that is not open by then counts as one that does not open.
    :raise QemuError: if it fails in another way than by a crash.
    """
    began = time.monotonic()
    try:
        place = (4096, _step(virtual_size))
        with reading(qemu, image, place, requests=_PLACES, open_timeout_s=open_timeout_s) as work:
            open_s = time.monotonic() - began
            descriptors = _descriptors(work.process.pid)
            work.go()
            work.wait(600)
            if work.process.running:
                return Attempt(length, open_s, descriptors, signal.SIGALRM)
            return Attempt(length, open_s, descriptors, work.process.wait().signal)
    except QemuCrashed as error:
        return Attempt(length, signal=error.signal)
    except TimeoutError:
        return Attempt(length, signal=signal.SIGALRM)


def _descriptors(pid: int) -> int | None:
    """Count a process's open files; None where it has ended already."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd")) or None  # noqa: PTH208 - names alone
    except FileNotFoundError:
        return None


def crash_place(qemu: Qemu, image: Path, virtual_size: int) -> str | None:
    """Let QEMU crash once more under perf and say where: the frames at the moment the signal was sent, folded.

    :param qemu: the one that crashes.
    :param image: on which it does.
    :param virtual_size: bytes of the disk.
    :return: the innermost function first, ``bdrv_is_inserted x412 < bdrv_co_preadv_part``; None where perf may not
        see signals (that takes root).
    """
    argv = qemu.command(
        *("img", "bench", "-f", "qcow2", "-d", "1", "-c", str(_PLACES), "-s", "4096"),
        *("-S", str(_step(virtual_size)), str(image)),
    )
    with ScratchDirectory() as folder:
        data = folder / "perf.data"
        # Where the stack pointer has already left the stack there is nothing to copy; then the program counter must do.
        for graph in ("dwarf,65528", "fp"):
            event = ["-e", "signal:signal_generate", "--filter", "sig==11 || sig==6 || sig==7", "-c", "1"]
            record = ["perf", "record", *event, "--call-graph", graph, "-o", str(data), "--"]
            try:
                run_tool([*record, *argv], check=False, environment=qemu.environment)
                stacks = name_samples(read_samples(data)).stacks
            except ChainliftError:
                return None
            for stack in fold_recursion(stacks).counts:
                if told := _tell(stack):
                    return told
    return None


def _tell(stack: tuple[Frame, ...]) -> str:
    frames = [f for f in stack if not f.label.endswith("_[k]") and not f.label.startswith(("[deeper", "[unknown"))]
    innermost = reversed(frames[-_FRAMES:])
    return " < ".join(f"{' > '.join(f.functions)} x{f.turns}" if f.turns else f.label for f in innermost)


def describe_attempt(attempt: Attempt) -> str:
    """Say in one line what happened at a length."""
    opened = f"open after {attempt.open_s:.1f} s" if attempt.open_s is not None else "not opened"
    ended = "took too long" if attempt.signal == signal.SIGALRM else f"ended by {describe_end(-(attempt.signal or 0))}"
    return f"{counted(attempt.length, 'layer')}: {opened}, " + ("every read answered" if attempt.reads else ended)


def describe_limit(limit: Limit, what: str) -> str:
    """Say in one line what stopped at which length."""
    failure = limit.shortest_failure
    if failure is None:
        return f"{what} works at every length that was tried"
    end = "took too long" if failure.signal == signal.SIGALRM else f"ended by {describe_end(-(failure.signal or 0))}"
    return f"QEMU {end} at {counted(failure.length, 'layer')}" + (f" in {limit.place}" if limit.place else "")


def _step(virtual_size: int) -> int:
    return max(4096, virtual_size // _PLACES // 4096 * 4096)
