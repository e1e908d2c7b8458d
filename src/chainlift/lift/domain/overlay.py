"""New files beside a domain's disk: what libvirt copies the active layer into, and copies of layers."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ImageError, OperationError
from chainlift.host import interrupts
from chainlift.host.durable import sync_path
from chainlift.lift.build.workspace import create, failed
from chainlift.lift.ownership import Ownership
from chainlift.lift.record.overlay import OverlayMark, read_overlay_mark, write_overlay_mark

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORD: Final = "lift"
_NUMBER: Final = re.compile(rf"{_WORD}(\d+)")


def next_name(image: Path, directory: Path | None = None) -> Path:
    """Return a free name as libvirt makes them for snapshots: what follows the last dot is replaced (``disk.lift1``).

    See ``virDomainSnapshotDefAssignExternalNames()`` in libvirt's ``snapshot_conf.c``.

    :param directory: where it is free; None: the image's.
    """
    directory = directory or image.parent
    stem = image.name.rpartition(".")[0] or image.name
    names = [name for name in os.listdir(directory) if name.startswith(f"{stem}.")]  # noqa: PTH208
    taken = [0, *(int(found[1]) for name in names if (found := _NUMBER.match(name, len(stem) + 1)))]
    return directory / f"{stem}.{_WORD}{max(taken) + 1}"


def make_empty(image: Path, mark: OverlayMark, directory: Path | None = None, *, at: Path | None = None) -> Path:
    """Make an empty file with an image's owner and mode; libvirt makes an image of it.

    :param directory: where it takes the next free name; None: beside the image.
    :param at: its name, instead.
    :raise ImageError: if it cannot be made there.
    :raise OperationError: if the file system failed.
    """
    path = at or next_name(image, directory)
    try:
        with _new(path, image, mark):
            pass
        sync_path(path.parent)
    except FileExistsError as error:
        if at is not None:
            raise ImageError("exists by now", path=at) from error
        return make_empty(image, mark, directory)
    except OSError as error:
        raise _failed(error, path) from error
    return path


def copy_layer(layer: Path, mark: OverlayMark) -> Path:
    """Copy a layer that nobody writes to, holes left out; blocks are shared where the file system can.

    :return: a new file beside it.
    :raise ImageError: if it cannot be made there.
    :raise OperationError: if the file system failed.
    """
    if layer.is_block_device():
        raise ImageError(
            "lies on a block device: no copy of it can lie beside it",
            path=layer,
            hint="restore the image with its domain shut off",
        )
    path = next_name(layer)
    try:
        with _new(path, layer, mark) as descriptor:
            source = os.open(layer, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _copy(source, descriptor)
            finally:
                os.close(source)
            os.fsync(descriptor)
        sync_path(path.parent)
    except FileExistsError:
        return copy_layer(layer, mark)
    except OSError as error:
        raise _failed(error, path) from error
    return path


def find_overlays(directory: Path, domain: str, target: str) -> dict[Path, OverlayMark]:
    """Return the overlays in a directory that were made for a disk.

    :param directory: where to look.
    :param domain: its UUID.
    :param target: of the disk: ``vda``.
    :return: overlay -> what it says of itself.
    """
    found = {}
    with suppress(OSError):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_file(follow_symlinks=False):
                mark = read_overlay_mark(Path(entry.path))
                if mark is not None and (mark.domain, mark.target) == (domain, target):
                    found[Path(entry.path)] = mark
    return found


@contextmanager
def _new(path: Path, image: Path, mark: OverlayMark) -> Iterator[int]:
    """Make a file that has everything when it gets its mark, which comes before its content."""
    with interrupts.put_off():
        descriptor = create(path)
        try:
            try:
                write_overlay_mark(path, mark)
                Ownership.of(image).apply(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def _copy(source: int, destination: int) -> None:
    end = os.fstat(source).st_size
    os.ftruncate(destination, end)
    position = 0
    while position < end:
        try:
            data = os.lseek(source, position, os.SEEK_DATA)
        except OSError:  # nothing but a hole follows
            return
        position = os.lseek(source, data, os.SEEK_HOLE)
        while data < position:
            interrupts.between_steps()
            done = os.copy_file_range(source, destination, min(position - data, 64 << 20), data, data)
            if done == 0:
                raise OperationError("the layer has become shorter while it was copied")
            data += done


def _failed(error: OSError, path: Path) -> ImageError | OperationError:
    if isinstance(error, PermissionError) or not path.parent.is_dir():
        hint = "libvirt's copy lies beside the image: who makes it must be able to write there"
        return ImageError(f"cannot be made: {error.strerror}", path=path, hint=hint)
    return failed(error, path)
