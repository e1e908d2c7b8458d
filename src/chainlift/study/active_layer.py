"""The active layer of a run: a throw-away copy of the layer whose length is to be measured.

The chain itself is never opened for writing, so the length is exact and the layers above stay valid. Copies lie in a
scratch directory beside the chains, on the same file system; one that a killed study has left is removed by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING

from chainlift.qemu.process import run_tool
from chainlift.study.lifts import apply_lift

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chainlift.qemu.binary import Qemu
    from chainlift.results.model import Lift
    from chainlift.study.chain_store import ChainDirectory


_READ_AHEAD_BYTES = 128 << 10


@contextmanager
def scratch_directory(chains: Path) -> Iterator[Path]:
    """Make a scratch directory beside the chains; it goes when the block ends, and leftovers of others go first."""
    root = chains / "scratch"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("a") as door:
        # Held while directories appear and disappear, so that none is seen between its making and its lock.
        fcntl.flock(door, fcntl.LOCK_EX)
        remove_leftovers(root)
        path = Path(mkdtemp(prefix="study-", dir=root))
        lock = (path / "lock").open("a")
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(door, fcntl.LOCK_UN)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        lock.close()


def remove_leftovers(root: Path) -> None:
    """Remove every scratch directory whose study is gone: whose lock nobody holds."""
    for path in root.glob("study-*"):
        with (path / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path, ignore_errors=True)


class ActiveLayers:
    """Makes the throw-away active layers of a study's runs.

    A disk is lifted once for all runs on it; each gets a copy of the lifted active layer.

    :param scratch: a directory on the chain's file system.
    """

    def __init__(self, chain: ChainDirectory, scratch: Path) -> None:
        self._chain = chain
        self._scratch = scratch
        self._lifted: dict[tuple[str, int, str], Path] = {}

    @contextmanager
    def copy(self, qemu: Qemu, length: int, lift: Lift) -> Iterator[Path]:
        """Copy layer ``length`` and yield the copy, ``active.qcow2`` in a directory of its own that goes afterwards.

        :param length: at least 1; the layers below keep their places and are named absolutely.
        :raise ChainliftError: if the lift refuses this chain, or fails.
        """
        directory = Path(mkdtemp(prefix="run-", dir=self._scratch))
        try:
            image = directory / "active.qcow2"
            if lift == "none":
                self._copy_layer(qemu, length, image)
            else:
                lifted = self._lifted_layer(qemu, length, lift)
                copy_sparse(lifted, image)
                _name_backing_absolutely(qemu, lifted, image)
            yield image
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _copy_layer(self, qemu: Qemu, length: int, image: Path) -> None:
        copy_sparse(self._chain.layer(length), image)
        _rebase(qemu, image, str(self._chain.layer(length - 1).absolute()))

    def _lifted_layer(self, qemu: Qemu, length: int, lift: Lift) -> Path:
        wanted = (qemu.label, length, lift)
        if wanted not in self._lifted:
            image = Path(mkdtemp(prefix="lifted-", dir=self._scratch)) / "active.qcow2"
            self._copy_layer(qemu, length, image)
            apply_lift(lift, image, qemu)
            self._lifted[wanted] = image
        return self._lifted[wanted]


def _name_backing_absolutely(qemu: Qemu, lifted: Path, image: Path) -> None:
    """Make the copy of a lifted overlay find what the original's relative name means."""
    info = run_tool(
        qemu.command("img", "info", "-U", "-f", "qcow2", "--output=json", str(lifted)), environment=qemu.environment
    )
    name = json.loads(info.stdout)["backing-filename"]
    if not name.startswith(("/", "json:")):
        _rebase(qemu, image, str(lifted.parent / name))


def _rebase(qemu: Qemu, image: Path, backing: str) -> None:
    run_tool(
        qemu.command("img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, str(image)),
        environment=qemu.environment,
    )


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file, its holes as holes."""
    with source.open("rb") as reader, target.open("xb") as writer:
        size = os.fstat(reader.fileno()).st_size
        writer.truncate(size)
        position = 0
        while position < size:
            try:
                start = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:
                break  # ENXIO: a hole up to the end
            end = os.lseek(reader.fileno(), start, os.SEEK_HOLE)
            while start < end:
                copied = os.copy_file_range(reader.fileno(), writer.fileno(), end - start, start, start)
                if copied == 0:
                    break
                start += copied
            position = end


def read_through(paths: list[Path]) -> None:
    """Read files once, so that the host's page cache holds them and every length finds the same."""
    buffer = bytearray(4 << 20)
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass


def keep_cached(paths: list[Path]) -> None:
    """Ask the kernel to read what the page cache has lost meanwhile of files that were read before."""
    for path in paths:
        with path.open("rb") as stream:
            # The kernel caps one request at the device's read-ahead (force_page_cache_ra() in mm/readahead.c).
            for offset in range(0, os.fstat(stream.fileno()).st_size, _READ_AHEAD_BYTES):
                os.posix_fadvise(stream.fileno(), offset, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
