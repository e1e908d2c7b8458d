"""One action on one disk, and the one line that the journal gets of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, InputError, OperationError, UnknownStateError
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.live.watching import journal
from chainlift.lift.live.whose import ask_vm, nearest_mark
from chainlift.lift.verbs import index
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chainlift.lift.live.watching.looking import SeenDisk
    from chainlift.lift.record.mark import Mark
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Acted:
    """What came of an attempt to index a disk."""

    #: ``indexed``, ``left alone`` (somebody said so meanwhile), ``given up`` (the watch ends), ``refused`` (nothing was
    #: touched), ``failed`` (all is as before) or ``unknown`` (it is not known what is left).
    result: str
    took_s: float
    length: int
    image: str
    error: str | None = None
    extents: int | None = None
    copied_bytes: int = 0
    #: Name and time of the longest command.
    longest: tuple[str, float] | None = None
    lift: str | None = None
    #: What was left in QEMU, what was removed of older lifts.
    notes: tuple[str, ...] = ()

    @property
    def priority(self) -> int:
        """Of its line in the journal."""
        usual = {"indexed": journal.INFO, "left alone": journal.INFO, "given up": journal.NOTICE}
        return usual.get(self.result, journal.WARNING if self.result == "refused" else journal.ERROR)

    def line(self, about: str, socket: str) -> str:
        """Return the journal's line.

        :param about: VM and disk.
        """
        said = [f"{about}: index: {self.result}"]
        if self.error is not None:
            said.append(self.error)
        said.append(f"length {self.length}")
        if self.extents is not None:
            said.append(counted(self.extents, "extent"))
            said.append(f"{self.copied_bytes} bytes copied")
        said.append(f"{self.took_s:.3f} s")
        if self.longest is not None:
            said.append(f"longest command {self.longest[0]} {self.longest[1]:.4f} s")
        said += [f"image {self.image}", *([f"lift {self.lift}"] if self.lift else []), f"socket {socket}", *self.notes]
        return ", ".join(said)


class _EndingError(OperationError):
    """The watch ends; everything is as before."""


def index_disk(
    socket: Path,
    disk: SeenDisk,
    *,
    directory: Path,
    is_paused: Callable[[Mark], bool],
    ends: Callable[[], bool],
    copy_budget_bytes: int | None,
    qemu: Qemu | None,
    timeout_s: float | None,
) -> Acted:
    """Index a disk, unless somebody has said since it was looked at that it is to be left alone.

    Never raises: what went wrong is in what is returned.

    :param directory: the state directory.
    :param is_paused: whether a mark pauses the disk.
    :param ends: whether the watch is to end: asked before the switch, which is never left half done.
    """
    began = time.monotonic()
    image = str(disk.image)

    def go_on(_bytes: int = 0) -> None:
        if ends():
            raise _EndingError("the watch ends")

    def acted(result: str, error: str | None = None) -> Acted:
        return Acted(result, time.monotonic() - began, disk.length, image, error)

    try:
        go_on()
        with open_session(socket, node=disk.node, timeout_s=timeout_s) as session:
            found = nearest_mark(session.graph, disk.node, ask_vm(session.monitor, session.peer), directory)
            if found is not None and is_paused(found[0]):
                return acted("left alone")
            running = RunningDisk(session, qemu)
            # Whoever lets this run by itself asks for its old indexes to be removed.
            done = index(running, copy_budget_bytes=copy_budget_bytes, clean=True, progress=go_on)
    except _EndingError:
        return acted("given up", "the watch ends; everything is as before")
    except UnknownStateError as error:
        return acted("unknown", str(error))
    except InputError as error:
        return acted("refused", str(error))
    except ChainliftError as error:
        return acted("failed", str(error))
    except Exception as error:  # noqa: BLE001 - other VMs are to be looked after
        return acted("failed", f"{type(error).__name__}: {error}")
    manifest = done.manifest
    lift = next((known.path for known in manifest.files if known.path.endswith(".vmdk")), None)
    longest = max(running.timings.commands, key=lambda command: command[1], default=None)
    notes = [f"not cleaned up: {left}" for left in running.left]
    notes += [f"removed {path}" for path in done.tidied.removed]
    notes += [f"kept {path}: {why}" for path, why in done.tidied.kept.items()]
    return Acted(
        "indexed", time.monotonic() - began, disk.length, image,
        extents=manifest.extents, copied_bytes=manifest.copied_bytes, longest=longest, lift=lift, notes=tuple(notes),
    )  # fmt: skip
