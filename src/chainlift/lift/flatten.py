"""Flattening: a whole chain as one standalone image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from chainlift.chain import Kind, open_chain
from chainlift.errors import ImageError, OperationError
from chainlift.host.block_device import write_zeros
from chainlift.lift.build.copying import Copied, Copier
from chainlift.lift.build.files import ClusterFiles, files_of
from chainlift.lift.build.free_space import require_room, require_room_for_copy
from chainlift.lift.build.index import copy_fragments
from chainlift.lift.build.merge import Merger, State
from chainlift.lift.build.rewrite import rewrite
from chainlift.lift.build.workspace import failed
from chainlift.lift.destination import DeviceDestination, find_destination, refuse_existing
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.record.liftable import require_liftable
from chainlift.qcow2.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from chainlift.chain import Chain
    from chainlift.lift.build.merge import Fragments

#: Of an image made from raw layers alone.
_DEFAULT_CLUSTER = 65536


@dataclass(frozen=True)
class Flattened:
    """The image that was written."""

    #: Of the disk.
    virtual_size_bytes: int
    #: Where it ends in its file or on its device.
    file_bytes: int
    #: How the data came into it.
    copied: Copied


def flatten(
    image: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    file_format: Literal["qcow2", "raw"] = "qcow2",
    compress: Literal["zlib", "zstd"] | None = None,
    overwrite: bool = False,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Flattened:
    """Write what a guest reads from an image as one image of its own; the chain stays as it is.

    >>> done = flatten("disk.qcow2", "alone.qcow2")
    >>> done.virtual_size_bytes
    4194304
    >>> with open_chain("alone.qcow2") as chain:
    ...     chain.length
    0

    :param image: the active layer, or any other image of a chain; nobody may be writing to it.
    :param out: a file appears whole under this name, or not at all, with the owner and the mode of the image.
    :param file_format: of what is written.
    :param compress: store clusters compressed (qcow2 only).
    :param overwrite: ``out`` may be a file, which is replaced, or a block device that is large enough; what that has
        behind the image stays.
    :param rate_bytes_per_s: copy at most so fast.
    :param progress: called with the bytes copied so far.
    :return: what was written.
    :raise ImageError: if a layer cannot be read, or is being written to; if ``out`` is there and may not be written
        over, is in use, too small, or a part of the chain; nothing was touched.
    :raise OperationError: if the file system failed; nothing is left behind.
    :raise UnknownStateError: if writing onto a device failed; what was on it is lost.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    if compress is not None and file_format == "raw":
        raise ImageError("a raw image cannot be compressed", path=out, hint="leave one of the two out")
    with open_chain(image) as chain:
        require_liftable(chain)
        sources = ClusterFiles(chain)
        with (
            LayerLocks(files_of(chain, sources)) as locks,
            find_destination(out, chain, sources, overwrite=overwrite) as destination,
        ):
            size = _DEFAULT_CLUSTER if file_format == "raw" else flat_cluster_size(chain)
            is_device = isinstance(destination, DeviceDestination)
            if isinstance(destination, DeviceDestination):
                # This reads every table, too: a chain that cannot be read is found before anything is lost.
                most = _most_bytes(chain, sources, size)
                destination.require_size(chain.virtual_size if file_format == "raw" else most)
            else:
                require_room(destination.path.absolute().parent, 0)
            work = _Work(chain, sources, locks.descriptors, rate_bytes_per_s, progress)
            try:
                if compress is None and not is_device:  # compressed, nobody knows how small it gets
                    directory = destination.path.absolute().parent
                    require_room_for_copy(directory, chain, sources, locks.descriptors, size, sparse=True)
                with destination.open() as descriptor:
                    if file_format == "raw":
                        return work.write_raw(descriptor, is_device=is_device)
                    return work.write_qcow2(descriptor, out, compress, is_device=is_device)
            except OSError as error:
                raise _failed(error, out) from error


def flat_cluster_size(chain: Chain) -> int:
    """Return the cluster size of a flattened image, in bytes: that of the active layer, 4 KiB at least."""
    return max(4096, chain.layers[0].cluster_size or _DEFAULT_CLUSTER)


def _failed(error: OSError, out: Path) -> OperationError | ImageError:
    if isinstance(error, FileExistsError):
        return ImageError("exists", path=out, hint="choose another name or remove it")
    return failed(error, out)


def _most_bytes(chain: Chain, sources: ClusterFiles, size: int) -> int:
    """Return what a qcow2 image of a chain takes at most, in bytes, compressed or not."""
    clusters = mapped = 0
    for pieces in Merger(chain, sources, size, sparse=True).pieces():
        clusters += int(pieces.count[pieces.state >= State.DATA].sum())
        mapped += int(pieces.count[pieces.state != State.HOLE].sum())
    on_disk = -(-chain.virtual_size // size)
    tables = min(mapped, -(-on_disk // (size // 8)))
    # The header; what a run of compressed clusters begins with may stay empty; L1 table; refcounts of 16 bits.
    total = 1 + clusters + 1 + tables + -(-tables * 8 // size) + 1
    blocks = -(-total // (size // 2 - 1)) + 1
    return (total + blocks + -(-blocks * 8 // size) + 1) * size


@dataclass(frozen=True)
class _Work:
    """A chain that is written to an empty file or over a device."""

    chain: Chain
    sources: ClusterFiles
    #: An open file descriptor for each file of the sources, by its path.
    descriptors: dict[str, int]
    rate_bytes_per_s: int | None
    progress: Callable[[int], None] | None

    def write_raw(self, fd: int, *, is_device: bool) -> Flattened:
        """Write a raw image; holes of a file stay holes, a device gets zeros there."""
        size = self.chain.virtual_size
        if is_device:
            self._write_zeros(fd)
        else:
            os.ftruncate(fd, size)
        with Copier(
            fd,
            clone=not is_device,
            rate_bytes_per_s=self.rate_bytes_per_s,
            skip_zeros=not is_device,
            progress=self.progress,
        ) as copier:
            for found in self._data():
                copy_fragments(self.sources.files, self.descriptors, found, copier, lambda guest: guest)
        if not is_device:
            # A piece that was cloned or padded may reach beyond the disk's end.
            os.ftruncate(fd, size)
        return Flattened(size, size, copier.done)

    def write_qcow2(
        self, fd: int, out: Path, compress: Literal["zlib", "zstd"] | None, *, is_device: bool
    ) -> Flattened:
        """Write a qcow2 image; until it is whole there is no header."""
        size = flat_cluster_size(self.chain)
        if is_device:
            write_zeros(fd, 0, size)
            os.fsync(fd)
        with ImageWriter(
            out,
            descriptor=fd,
            virtual_size=self.chain.virtual_size,
            cluster_size=size,
            compression=compress or "zlib",
        ) as writer:
            done = rewrite(
                Merger(self.chain, self.sources, size, sparse=True),
                self.sources,
                self.descriptors,
                writer,
                virtual_size=self.chain.virtual_size,
                compress=compress is not None,
                clone=not is_device,
                rate_bytes_per_s=self.rate_bytes_per_s,
                progress=self.progress,
            )
            file_bytes = writer.finish(sync=True)
        return Flattened(self.chain.virtual_size, file_bytes, done.copied)

    def _data(self) -> Iterator[Fragments]:
        for found in Merger(self.chain, self.sources, _DEFAULT_CLUSTER, sparse=True).fragments():
            yield found.take((found.kind == Kind.DATA) | (found.kind == Kind.COMPRESSED))

    def _write_zeros(self, fd: int) -> None:
        """Write zeros wherever there are no data, all of them before any data: they may share a page."""
        end = 0
        for found in self._data():
            for start, length in zip(found.start.tolist(), found.length.tolist(), strict=True):
                if start > end:
                    write_zeros(fd, end, start)
                end = start + length
        write_zeros(fd, min(end, self.chain.virtual_size), self.chain.virtual_size)
        os.fsync(fd)
