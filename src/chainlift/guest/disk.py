"""The measured disk of a guest: an ext4 file system on the whole disk, and in it a file for fio to write in.

A file of gigabytes is laid down without writing it twice and without a guest: ``debugfs`` allocates its blocks, this
module marks them as written, and their content goes straight from memory to its place in the qcow2 image, past the
page cache where the file system can.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from chainlift.errors import InputError, MissingToolError, OperationError
from chainlift.host.process import run_tool
from chainlift.qcow2 import tables
from chainlift.qcow2.writer import ImageWriter
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK = 4096
CLUSTER = 65536
#: The file that is laid down: the name that fio gives the file of its job "fio".
DATA_FILE = "fio.0.0"

_CHUNK = 4 << 20
_EXTENT_MAGIC = 0xF30A
_MAX_WRITTEN = 32768  # ee_len above it: the extent is allocated and not written (EXT_INIT_MAX_LEN in fs/ext4)
_IMAP = re.compile(r"located at block (\d+), offset (0x[0-9a-f]+)")
_I_BLOCK = 40  # offset of i_block in an inode, where the extent tree's root is


# The archive's files keep their owners, which fakeroot only pretends, so it is unpacked and copied in one session.
# Device nodes stay behind: the kernel's devtmpfs has them, and an ordinary user could not make them.
_UNPACK_AND_MAKE = """\
tree=$1 archive=$2
shift 2
tar -x -f "$archive" -C "$tree" --numeric-owner --exclude='./dev/*'
exec mke2fs -d "$tree" "$@"
"""


def make_ext4_disk(
    path: Path,
    virtual_size: int,
    *,
    data_bytes: int = 0,
    data_directory: str = "/",
    archive: Path | None = None,
) -> None:
    """Make a qcow2 image of an ext4 file system, with a file of data in it.

    The content is random by the cluster, hence neither zero nor compressible, and the same on every run.

    :param path: the image; it must not exist. What is written meanwhile lies beside it under another name.
    :param virtual_size: bytes; what is no multiple of 4096 is left unused.
    :param data_bytes: size of the file :data:`DATA_FILE`; 0 for none.
    :param data_directory: where in the file system that file is.
    :param archive: a tar archive of a whole system to unpack into the file system.
    :raise InputError: if the file does not fit, or ``path`` exists.
    :raise MissingToolError: if mke2fs or debugfs is not there (package e2fsprogs), or fakeroot where we are
        not root and there is an archive.
    """
    if path.exists():
        raise InputError("exists already", path=path)
    data_bytes -= data_bytes % BLOCK
    # ext4's own tables and its journal take less than a tenth.
    if data_bytes > virtual_size * 0.9 - (32 << 20):
        raise InputError(
            f"a file of {format_bytes(data_bytes)} does not fit on a disk of {format_bytes(virtual_size)}", path=path
        )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        raw, image = Path(scratch, "raw"), Path(scratch, "image")
        with raw.open("wb") as file:
            file.truncate(virtual_size)
        # Nothing lazy: the guest's kernel would write what is left out into the snapshots. No checksums of metadata:
        # the extents are changed below. No blocks kept for root, the only user.
        options = ("-b", str(BLOCK), "-m", "0", "-O", "^metadata_csum", "-L", "chainlift")
        lazy = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
        arguments = ["-q", "-F", "-t", "ext4", *options, "-E", lazy, str(raw)]
        if archive is None:
            run_tool(["mke2fs", *arguments])
        else:
            tree = Path(scratch, "tree")
            tree.mkdir(mode=0o755)
            run_tool([*_as_root(), "sh", "-ec", _UNPACK_AND_MAKE, "sh", tree, archive, *arguments])
            shutil.rmtree(tree)
        extents = _allocate(raw, data_bytes, data_directory) if data_bytes else []
        _convert(raw, image, virtual_size, extents)
        image.rename(path)


def _as_root() -> list[str]:
    """Return what lets files belong to others in a file system that an ordinary user makes."""
    if os.geteuid() == 0:
        return []
    if shutil.which("fakeroot") is None:
        raise MissingToolError("there is no fakeroot to make a guest's disk with", hint="install the package fakeroot")
    return ["fakeroot"]


def _allocate(raw: Path, data_bytes: int, directory: str) -> list[tuple[int, int]]:
    """Allocate the blocks of the data file; return them as (first block, number of blocks)."""
    with tempfile.NamedTemporaryFile(dir=raw.parent) as empty:
        script = (
            f"cd {directory}\nwrite {empty.name} {DATA_FILE}\nfallocate {DATA_FILE} 0 {data_bytes // BLOCK - 1}\n"
            f"set_inode_field {DATA_FILE} size {data_bytes}\nimap {DATA_FILE}\n"
        )
        said = run_tool(["debugfs", "-w", "-f", "/dev/stdin", raw], input_bytes=script.encode())
    found = _IMAP.search(said.stdout)
    if found is None:
        raise OperationError(
            f"debugfs did not lay the file down: {said.stderr.strip() or said.stdout.strip()}", path=raw
        )
    with raw.open("r+b") as file, mmap.mmap(file.fileno(), 0) as disk:
        extents = _mark_written(disk, int(found[1]) * BLOCK + int(found[2], 16) + _I_BLOCK)
    if sum(count for _, count in extents) * BLOCK != data_bytes:
        raise OperationError("debugfs allocated another number of blocks than it was asked for", path=raw)
    return extents


def _mark_written(disk: mmap.mmap, node: int) -> list[tuple[int, int]]:
    """Clear the "not written" mark of every extent below a node of an extent tree (struct ext4_extent_header).

    :param node: the node's offset in bytes.
    :return: the extents as (first block, number of blocks).
    """
    magic, entries, _, depth = struct.unpack_from("<HHHH", disk, node)
    if magic != _EXTENT_MAGIC:
        raise OperationError("the file system has no extent tree where debugfs says")
    extents = []
    for entry in range(node + 12, node + 12 + 12 * entries, 12):
        if depth:  # struct ext4_extent_idx: ei_block, ei_leaf_lo, ei_leaf_hi
            low, high = struct.unpack_from("<IH", disk, entry + 4)
            extents += _mark_written(disk, (high << 32 | low) * BLOCK)
        else:  # struct ext4_extent: ee_block, ee_len, ee_start_hi, ee_start_lo
            length, high, low = struct.unpack_from("<HHI", disk, entry + 4)
            if length > _MAX_WRITTEN:
                length -= _MAX_WRITTEN
                struct.pack_into("<H", disk, entry + 4, length)
            extents.append((high << 32 | low, length))
    return extents


def _convert(raw: Path, image: Path, virtual_size: int, extents: list[tuple[int, int]]) -> None:
    """Write the qcow2 image: the clusters of ``raw`` that are not zero, and content in the extents."""
    content = _Content()
    per_cluster = CLUSTER // BLOCK
    data: list[range] = []
    with raw.open("r+b") as file:
        # Where an extent shares a cluster with metadata, its content goes into the raw file first.
        for first, count in extents:
            start, stop = -(-first // per_cluster), (first + count) // per_cluster
            inner = range(start, stop) if start < stop else range(0)
            data.append(inner)
            for block in range(first, first + count):
                if block // per_cluster not in inner:
                    file.seek(block * BLOCK)
                    file.write(content.block(block))
        file.flush()
        metadata = _nonzero_clusters(file.fileno(), virtual_size)
        with ImageWriter(image, virtual_size=virtual_size, cluster_size=CLUSTER) as writer:
            numbers: list[NDArray[np.int64]] = [metadata]
            hosts = []
            offset = writer.reserve(len(metadata))
            hosts.append(offset + np.arange(len(metadata), dtype=np.int64) * CLUSTER)
            for index, cluster in enumerate(metadata.tolist()):
                padded = os.pread(file.fileno(), CLUSTER, cluster * CLUSTER).ljust(CLUSTER, b"\0")
                writer.write(offset + index * CLUSTER, padded)
            with _direct(image) as descriptor:
                for inner in data:
                    offset = writer.reserve(len(inner))
                    numbers.append(np.arange(inner.start, inner.stop, dtype=np.int64))
                    hosts.append(offset + np.arange(len(inner), dtype=np.int64) * CLUSTER)
                    content.write(descriptor, offset, inner)
            clusters, host = np.concatenate(numbers), np.concatenate(hosts)
            order = np.argsort(clusters, kind="stable")
            writer.set_entries(clusters[order], tables.standard_entries(host[order], copied=True), None)
            writer.finish()


def _nonzero_clusters(descriptor: int, size: int) -> NDArray[np.int64]:
    """Return the numbers of the clusters of a sparse file that hold anything but zeros."""
    zeros = bytes(CLUSTER)
    found: list[int] = []
    position = 0
    while True:
        try:
            position = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:  # ENXIO: no more data
            return np.array(found, dtype=np.int64)
        end = os.lseek(descriptor, position, os.SEEK_HOLE)
        candidates = range(position // CLUSTER, -(-end // CLUSTER))
        found += [n for n in candidates if not zeros.startswith(os.pread(descriptor, CLUSTER, n * CLUSTER))]
        position = min(-(-end // CLUSTER) * CLUSTER, size)


class _Content:
    """What the data file holds: a block of random bytes, and the block's number in front of it."""

    def __init__(self) -> None:
        self._buffer = mmap.mmap(-1, _CHUNK)  # aligned to a page, as direct I/O wants it
        self._words = np.frombuffer(self._buffer, dtype=np.uint64).reshape(-1, BLOCK // 8)
        self._words[:] = np.random.default_rng(1).integers(0, 2**64, self._words.shape, dtype=np.uint64)

    def block(self, number: int) -> bytes:
        """Return one block of the disk."""
        row = self._words[number % len(self._words)].copy()
        row[0] = number
        return bytes(row.tobytes())

    def write(self, descriptor: int, offset: int, clusters: range) -> None:
        """Write the content of these clusters of the disk, one after the other, to a file at ``offset``."""
        first, last = clusters.start * CLUSTER // BLOCK, clusters.stop * CLUSTER // BLOCK
        rows = len(self._words)
        while first < last:
            # A block always has the same row of the buffer, so that each run yields the same bytes.
            row = first % rows
            count = min(rows - row, last - first)
            self._words[row : row + count, 0] = np.arange(first, first + count, dtype=np.uint64)
            view = memoryview(self._buffer)[row * BLOCK : (row + count) * BLOCK]
            while view:
                done = os.pwrite(descriptor, view, offset)
                view, offset = view[done:], offset + done
            first += count


@contextlib.contextmanager
def _direct(path: Path) -> Iterator[int]:
    """Open a file for writing past the page cache, or through it where the file system cannot."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
