"""What a person says to a watch, whether it runs or not: pause, resume, and what is paused."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chainlift.errors import ImageError, OperationError
from chainlift.lift.record.mark import Mark, read_mark, write_mark
from chainlift.lift.watching import pauses
from chainlift.lift.watching.state import is_owned, read_state
from chainlift.lift.watching.status import time_text
from chainlift.lift.watching.where import where_of, words_of


@dataclass(frozen=True)
class Said:
    """What is meant: an image, or VMs by a name or a socket."""

    word: str
    is_image: bool

    def __str__(self) -> str:
        return self.word


def target_of(word: str) -> Said:
    """Return what is meant by a word: a socket or an image that is there, else a VM's name.

    :raise ImageError: for a path that leads to neither.
    """
    try:
        mode = os.stat(word).st_mode  # noqa: PTH116 - the word may be no path
    except OSError as error:
        if "/" in word:
            raise ImageError(f"is no socket and no image: {error.strerror}", path=word) from error
        return Said(word, is_image=False)
    if stat.S_ISSOCK(mode):
        return Said(os.path.realpath(word), is_image=False)
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return Said(os.path.abspath(word), is_image=True)  # noqa: PTH100 - as QEMU resolves names
    if "/" in word:
        raise ImageError("is no socket and no image", path=word)
    return Said(word, is_image=False)


def pause(directory: Path, said: Said) -> bool:
    """Pause it; return whether it was not yet.

    :param directory: the state directory.
    :raise OperationError: if that cannot be kept.
    """
    try:
        if not said.is_image:
            return pauses.pause(directory, said.word)
        image = Path(said.word)
        mark = read_mark(image, directory)
        if mark is None or not mark.is_paused:
            write_mark(image, Mark(is_paused=True, at_s=time.time(), why="asked"), directory)
    except OSError as error:
        raise _not_kept(error, directory) from error
    return mark is None or not mark.is_paused


def resume(directory: Path, said: Said) -> bool:
    """Let it go on; return whether it was paused itself.

    :param directory: the state directory.
    :raise OperationError: if that cannot be kept.
    """
    try:
        if not said.is_image:
            return pauses.resume(directory, [said.word])
        image = Path(said.word)
        mark = read_mark(image, directory)
        # Said also where there is none: a layer under it may have one.
        write_mark(image, Mark(is_paused=False, at_s=time.time(), why="asked"), directory)
    except OSError as error:
        raise _not_kept(error, directory) from error
    return mark is not None and mark.is_paused


def is_known(directory: Path, said: Said) -> bool:
    """Whether a watch has seen such a VM; True for an image."""
    known = read_state(directory).disks.values()
    return said.is_image or any(said.word in (entry.vm, *words_of(where_of(entry.socket), None)) for entry in known)


def known(directory: Path) -> dict[str, Any]:
    """Return what is paused by name, and the disks that a watch knows.

    :param directory: the state directory.
    """
    said, state = pauses.read_pauses(directory), read_state(directory)
    disks = []
    for entry in sorted(state.disks.values(), key=lambda entry: (entry.vm, entry.disk)):
        # What was said since the watch looked counts.
        name, mark, paused = entry.vm, read_mark(Path(entry.image), directory), None
        since = said.of_vm(where_of(entry.socket), name)
        if since is not None:
            paused = f"by command since {time_text(since)}"
        elif mark is not None and said.counts(mark, where_of(entry.socket), name):
            paused = f"{mark.why} {time_text(mark.at_s)}"
        disks.append(
            {
                "vm": name,
                "socket": entry.socket,
                "disk": entry.disk,
                "image": entry.image,
                "length": entry.length,
                "state": "paused" if paused else "short" if entry.state == "paused" else entry.state,
                "paused": paused,
                "seen_at": time_text(entry.seen_at_s),
                "indexed": entry.counts.indexed,
                "failed": entry.counts.failed,
            }
        )
    return {
        "is_watched": is_owned(directory),
        "paused": [{"what": word, "since": time_text(at_s)} for word, at_s in sorted(said.paused.items())],
        "disks": disks,
    }


def _not_kept(error: OSError, directory: Path) -> OperationError:
    return OperationError(f"cannot be written: {error.strerror}", path=error.filename or directory)
