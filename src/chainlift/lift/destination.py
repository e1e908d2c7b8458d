"""Where a flattened image goes: a new file, in the place of a file that is there, or onto a block device."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import ChainliftError, ImageError, UnknownStateError
from chainlift.host import interrupts
from chainlift.host.block_device import made_of, openers
from chainlift.host.durable import sync_path
from chainlift.lift.build.workspace import create
from chainlift.lift.neighbours.images import NEW_SUFFIX, find_users
from chainlift.lift.neighbours.locks import is_open_in_qemu
from chainlift.lift.neighbours.processes import OpenFiles, describe_holders
from chainlift.lift.ownership import Ownership
from chainlift.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from chainlift.chain import Chain
    from chainlift.lift.build.files import ClusterFiles

_MOMENT_S: Final = 0.5


@dataclass(frozen=True)
class FileDestination:
    """A file that appears whole under its name, or not at all."""

    #: Links followed.
    path: Path
    #: The image whose owner and mode it gets.
    image: str
    #: The file that it takes the place of; None where there is none.
    replaces: os.stat_result | None

    @property
    def temporary(self) -> Path:
        """What it is called while it is written."""
        return self.path.with_name(self.path.name + NEW_SUFFIX)

    @contextmanager
    def open(self) -> Iterator[int]:
        """Give a descriptor of an empty file; it gets its name when the block ends well, else nothing is left of it.

        :raise FileExistsError: if the name was taken meanwhile.
        """
        # A killed run's leftover has no other use.
        self.temporary.unlink(missing_ok=True)
        descriptor = create(self.temporary)
        try:
            try:
                yield descriptor
                Ownership.of(Path(self.image)).apply(descriptor)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            self._give_name()
        except BaseException:
            with suppress(OSError):
                self.temporary.unlink()
            raise

    def _give_name(self) -> None:
        with interrupts.put_off():
            interrupts.between_steps()
            self._name()
            interrupts.too_late()

    def _name(self) -> None:
        if self.replaces is None:
            os.link(self.temporary, self.path)  # unlike a rename it refuses a name that was taken meanwhile
            try:
                self.temporary.unlink()
                sync_path(self.path.parent)
            except BaseException:
                self.path.unlink()
                raise
            return
        now = self.path.stat()
        if (now.st_dev, now.st_ino) != (self.replaces.st_dev, self.replaces.st_ino):
            raise ImageError("was replaced by another file meanwhile", path=self.path, hint="look at it first")
        _refuse_in_use(self.path)
        self.temporary.replace(self.path)
        try:
            sync_path(self.path.parent)
        except OSError as error:
            raise UnknownStateError(
                f"is the new image, and whether it stays so after a power cut is unknown: {error.strerror}",
                path=self.path,
                hint="see what is wrong with its file system",
            ) from error


@dataclass(frozen=True)
class DeviceDestination:
    """A block device that nobody else has."""

    path: Path
    #: Open for reading and writing, and claimed (O_EXCL): it cannot be mounted meanwhile.
    descriptor: int
    size_bytes: int

    def require_size(self, needed_bytes: int) -> None:
        """Refuse a device that is too small.

        :raise ImageError: if it is.
        """
        if needed_bytes > self.size_bytes:
            raise ImageError(
                f"has {format_bytes(self.size_bytes)}, and up to {format_bytes(needed_bytes)} are needed",
                path=self.path,
                hint="choose a larger one",
            )

    @contextmanager
    def open(self) -> Iterator[int]:
        """Give its descriptor; what is written in the block is on the device when it ends well.

        :raise UnknownStateError: if it does not: the device has neither what it had nor the image.
        """
        try:
            yield self.descriptor
            os.fsync(self.descriptor)
        except BaseException as error:
            reason = "it was interrupted" if isinstance(error, KeyboardInterrupt) else _reason(error)
            raise UnknownStateError(
                f"writing onto it failed: {reason}; it has neither what it had before nor the whole image",
                path=self.path,
                hint="flatten onto it again; the image and its layers are as before",
            ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, ChainliftError) else type(error).__name__


@contextmanager
def find_destination(
    out: Path, chain: Chain, sources: ClusterFiles, *, overwrite: bool
) -> Iterator[FileDestination | DeviceDestination]:
    """Look at what has the name, and refuse what must not be written over. Nothing is changed.

    :param out: a name that is free; or, with ``overwrite``, a regular file or a block device. Links are followed.
    :raise ImageError: if it is there and is not to be overwritten, is in use, or is a part of the chain.
    """
    image = chain.layers[0].path
    refuse_existing(out, overwrite=overwrite)
    if not (out.exists() or out.is_symlink()):
        yield FileDestination(out, image, None)
        return
    target = out.resolve()
    try:
        there = target.stat()
    except OSError as error:
        raise ImageError(f"cannot be looked at: {error.strerror}", path=out) from error
    files = {file.identity: file.path for file in (*(layer.file for layer in chain.layers),
                                                   *(source.file for source in sources.files))}  # fmt: skip
    if stat.S_ISBLK(there.st_mode):
        with _device(out, there.st_rdev, files) as device:
            yield device
        return
    if not stat.S_ISREG(there.st_mode):
        raise ImageError("is neither a regular file nor a block device", path=out, hint="choose another name")
    _refuse_layer({(there.st_dev, there.st_ino)}, files, out)
    _refuse_in_use(target)
    for user in find_users([target], [target.parent]).get(target, []):
        raise ImageError(f"{user} stands on it", path=out, hint="choose another name")
    yield FileDestination(target, image, there)


def refuse_existing(out: Path, *, overwrite: bool) -> None:
    """Refuse a name that is taken.

    :raise ImageError: if it is, and what has it is not to be overwritten.
    """
    if overwrite or not (out.exists() or out.is_symlink()):
        return
    temporary = out.with_name(out.name + NEW_SUFFIX)
    if temporary.exists() and temporary.samefile(out):
        temporary.unlink()  # a run was killed between giving the name and taking the temporary one away
    raise ImageError("exists", path=out, hint="choose another name, or give --overwrite")


@contextmanager
def _device(out: Path, number: int, files: Mapping[tuple[int, ...], str]) -> Iterator[DeviceDestination]:
    _refuse_layer(made_of(number), files, out)
    if who := _lasting_openers(number):
        raise ImageError(f"is open in {', '.join(who[:3])}", path=out, hint="close it there first")
    _refuse_in_use(out)
    try:
        descriptor = os.open(out, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise ImageError(f"cannot be opened for writing: {error.strerror}", path=out) from error
        what = "is mounted, or a part of another device"
        raise ImageError(what, path=out, hint="choose a device that is free") from error
    try:
        if os.fstat(descriptor).st_rdev != number:
            raise ImageError("was replaced meanwhile", path=out, hint="look at it first")
        yield DeviceDestination(out, descriptor, os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)


def _lasting_openers(number: int) -> list[str]:
    """Name who has a device open for more than a moment: udev, blkid and losetup look at every one now and then."""
    deadline = time.monotonic() + _MOMENT_S
    while (who := openers(number)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return who


def _refuse_layer(written: set[tuple[int, ...]], files: Mapping[tuple[int, ...], str], out: Path) -> None:
    for identity in written & files.keys():
        raise ImageError(f"the chain reads {files[identity]} from it", path=out, hint="choose another name")


def _refuse_in_use(path: Path) -> None:
    if is_open_in_qemu(path):
        who = describe_holders(OpenFiles.look().holders(path)) or "a QEMU"
        raise ImageError(f"is open in {who}", path=path, hint="choose another name, or stop it first")
