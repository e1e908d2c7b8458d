"""Chains whose snapshots were taken at known times, and what every image of a directory reads through stock QEMU."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import stock
from tests.support.chains import plain_chain

from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.prune.retention import Retention
from chainlift.lift.prune.verb import drop, prune

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chainlift.lift.prune.verb import Pruned
    from chainlift.qemu.binary import Qemu

#: When the last one was taken; each is an hour older than the next.
NOW_S = 1_772_625_600


def hourly_chain(directory: Path, length: int = 8) -> list[Path]:
    """Make a chain with a snapshot every hour; return its layers, the base first."""
    plain_chain(directory, length)
    layers = [directory / f"layer{number}.qcow2" for number in range(length + 1)]
    for number, path in enumerate(layers):
        taken = NOW_S - 3600 * (length - number)
        os.utime(path, (taken, taken))
    return layers


def read_each(paths: Iterable[Path]) -> dict[Path, bytes]:
    """Return what stock QEMU reads from each image that is there."""
    return {path: stock.read(path) for path in paths if path.exists()}


def drop_layers(image: Path, qemu: Qemu | None, *layers: Path | str, **options: object) -> Pruned:
    return drop(DiskAtRest(image, qemu), layers, **options)  # type: ignore[arg-type]


def keep_layers(image: Path, qemu: Qemu | None, *layers: Path | str, **options: object) -> Pruned:
    """Prune all but these."""
    return prune(DiskAtRest(image, qemu), Retention(), keep=layers, **options)  # type: ignore[arg-type]


def held(pid: int, directory: Path) -> set[str]:
    """Return the names of the files below a directory that a process has open."""
    known = {path.stat().st_ino: path.name for path in directory.iterdir()}
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a connection that is closed meanwhile
            name = str(link.readlink())
            if name.startswith(f"{directory}/"):
                # A name that the kernel remembers may be another file's by now.
                found.add(known.get(link.stat().st_ino, f"{name}, which has no name"))
    return found


def names(paths: Iterable[Path]) -> list[str]:
    return [path.name for path in paths]
