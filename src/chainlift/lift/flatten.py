"""Flattening: a whole chain as one standalone image."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from chainlift.chain import Kind, open_chain
from chainlift.errors import ImageError, OperationError
from chainlift.lift.build.copying import Copied, Copier
from chainlift.lift.build.files import Sources
from chainlift.lift.build.index import copy_fragments
from chainlift.lift.build.merge import Merger
from chainlift.lift.build.rewrite import rewrite
from chainlift.lift.build.room import require_room, require_room_for_copy
from chainlift.lift.build.workspace import failed, sync_directory
from chainlift.lift.neighbours.images import NEW_SUFFIX
from chainlift.lift.neighbours.locks import LayerLocks
from chainlift.lift.prepare import files_of
from chainlift.lift.record.source import require_liftable
from chainlift.qcow2.writer import ImageWriter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from chainlift.chain import Chain

#: Of an image made from raw layers alone.
_DEFAULT_CLUSTER = 65536


@dataclass(frozen=True)
class Flattened:
    """What was written."""

    virtual_size_bytes: int
    file_bytes: int
    copied: Copied


def flatten_chain(
    image: str | os.PathLike[str],
    out: Path,
    *,
    file_format: Literal["qcow2", "raw"] = "qcow2",
    compress: Literal["zlib", "zstd"] | None = None,
    rate_bytes_per_s: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Flattened:
    """Write what a guest reads from an image as one image of its own.

    :param out: must not exist; it appears whole, or not at all.
    :param compress: store clusters compressed (qcow2 only).
    :raise ImageError: if a layer cannot be read, or is being written to.
    :raise OperationError: if the file system failed; nothing is left behind.
    """
    temporary = out.with_name(out.name + NEW_SUFFIX)
    if out.exists() or out.is_symlink():
        if temporary.exists() and temporary.samefile(out):
            temporary.unlink()  # a run was killed between giving the name and taking the temporary one away
        raise ImageError("exists", path=out, hint="choose another name or remove it")
    if compress is not None and file_format == "raw":
        raise ImageError("a raw image cannot be compressed", path=out, hint="leave one of the two out")
    with open_chain(image) as chain:
        require_liftable(chain)
        sources = Sources(chain)
        with LayerLocks(files_of(chain, sources)) as locks:
            directory = out.absolute().parent
            require_room(directory, 0)
            try:
                # A killed run's leftover has no other use.
                temporary.unlink(missing_ok=True)
                size = _DEFAULT_CLUSTER if file_format == "raw" else flat_cluster_size(chain)
                if compress is None:  # nobody knows how small it gets
                    require_room_for_copy(directory, chain, sources, locks.descriptors, size, sparse=True)
                if file_format == "raw":
                    copied = _write_raw(chain, sources, locks.descriptors, temporary, rate_bytes_per_s, progress)
                else:
                    copied = _write_qcow2(
                        chain, sources, locks.descriptors, temporary, compress, rate_bytes_per_s, progress
                    )
                size = temporary.stat().st_size
                os.link(temporary, out)  # unlike a rename it refuses a name that was taken meanwhile
                temporary.unlink()
                sync_directory(out.parent)
            except BaseException as error:
                with suppress(OSError):
                    temporary.unlink()
                if isinstance(error, OSError):
                    raise _failed(error, out) from error
                raise
            return Flattened(chain.virtual_size, size, copied)


def flat_cluster_size(chain: Chain) -> int:
    """Return the cluster size of a flattened image, in bytes: that of the active layer, 4 KiB at least."""
    return max(4096, chain.layers[0].cluster_size or _DEFAULT_CLUSTER)


def _failed(error: OSError, out: Path) -> OperationError | ImageError:
    if isinstance(error, FileExistsError):
        return ImageError("exists", path=out, hint="choose another name or remove it")
    return failed(error, out)


def _write_raw(
    chain: Chain,
    sources: Sources,
    descriptors: dict[str, int],
    path: Path,
    rate_bytes_per_s: int | None,
    progress: Callable[[int], None] | None,
) -> Copied:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(fd, chain.virtual_size)
        with Copier(fd, rate_bytes_per_s=rate_bytes_per_s, skip_zeros=True, progress=progress) as copier:
            for found in Merger(chain, sources, _DEFAULT_CLUSTER, sparse=True).fragments():
                with_data = found.take((found.kind == Kind.DATA) | (found.kind == Kind.COMPRESSED))
                copy_fragments(sources.files, descriptors, with_data, copier, lambda guest: guest)
        # A piece that was cloned or padded may reach beyond the disk's end.
        os.ftruncate(fd, chain.virtual_size)
        os.fsync(fd)
        return copier.done
    finally:
        os.close(fd)


def _write_qcow2(
    chain: Chain,
    sources: Sources,
    descriptors: dict[str, int],
    path: Path,
    compress: Literal["zlib", "zstd"] | None,
    rate_bytes_per_s: int | None,
    progress: Callable[[int], None] | None,
) -> Copied:
    size = flat_cluster_size(chain)
    with ImageWriter(
        path, virtual_size=chain.virtual_size, cluster_size=size, compression=compress or "zlib"
    ) as writer:
        done = rewrite(
            Merger(chain, sources, size, sparse=True),
            sources,
            descriptors,
            writer,
            virtual_size=chain.virtual_size,
            compress=compress is not None,
            rate_bytes_per_s=rate_bytes_per_s,
            progress=progress,
        )
        writer.finish(sync=True)
    return done.copied
