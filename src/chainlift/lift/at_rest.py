"""A disk at rest: nobody has the image open, and ``qemu-img rebase -u`` switches the name in its header.

Nothing else of a lift touches an image, and this is always the last step. QEMU's own tool rewrites the header cluster
in one write, under QEMU's own locks; the chain is not opened.
"""

from __future__ import annotations

import os
import time
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError, ImageError, OperationError, UnknownStateError
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.disk import Change, Standing
from chainlift.lift.neighbours.libvirt import Definitions
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.record.identity import absolute_name
from chainlift.lift.record.mark import read_mark, state_directory, write_mark
from chainlift.lift.record.pointer import led_to, read_pointer
from chainlift.qemu.binary import find_qemu
from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu


class DiskAtRest:
    """An image that no QEMU has open. See :class:`chainlift.lift.disk.Disk`.

    :param image: as a person names it; a symbolic link is followed as QEMU follows it.
    :param qemu: with ``qemu-img``, and for a comparison ``qemu-storage-daemon``; None: the host's, when it is needed.
    :param force: also where libvirt or another manager keeps a record of the chain.
    """

    def __init__(self, image: str | os.PathLike[str], qemu: Qemu | None = None, *, force: bool = False) -> None:
        self._image = Path(absolute_name(os.fspath(image)))
        self._qemu = qemu
        self._force = force
        #: Whether managers were asked already: they answer once for a verb.
        self._is_checked = False

    @property
    def image(self) -> Path:
        """The active layer's file."""
        return self._image

    @property
    def qemu(self) -> Qemu:
        """Whose tools compare and switch.

        :raise MissingToolError: if the host has none.
        """
        if self._qemu is None:
            self._qemu = find_qemu(need=["img", "storage-daemon"])
        return self._qemu

    @property
    def most_extents(self) -> int | None:
        """Nobody waits for a switch."""
        return None

    @property
    def needs_absolute_names(self) -> bool:
        """Names are relative where the image and its layers may be moved together."""
        return False

    @property
    def keeps_bitmaps(self) -> bool:
        """Who opens the image next reads them from the new layer."""
        return True

    def check(self, *, for_index: bool = False) -> None:
        """Refuse an image that a QEMU has open, that cannot be written to, or whose chain somebody else keeps."""
        _require_free(self._image)
        if not self._force and not self._is_checked:
            _refuse_managed(self._image, for_index=for_index)
            self._is_checked = True

    def standing(self) -> list[Standing]:
        """Return what the header names; the headers below are as good for everybody."""
        return [Standing(self._image, read_pointer(self._image)[1])]

    def compare(
        self, changes: Sequence[Change], *, content: bool = False, progress: Callable[[int], None] | None = None
    ) -> None:
        """Compare both sides of each change through a storage daemon of our own."""
        for change in changes:
            compare_stock(self.qemu, change.owner, change.readable, change.new, content=content, progress=progress)

    def switch(self, changes: Sequence[Change]) -> None:
        """Switch header after header; where one fails, those before are switched back."""
        for change in changes:
            _require_free(change.owner)
            _require_unchanged(change)
        done: list[Change] = []
        try:
            for change in changes:
                _switch(self.qemu, change.owner, change.new)
                done.append(change)
        except BaseException as error:
            self._undo(changes[: len(done) + 1], error)
            raise

    def has_switched(self, changes: Sequence[Change]) -> bool:
        """Whether a header names a new side, or cannot be read."""
        try:
            return any(_named(change.owner) != change.old.name for change in changes)
        except ChainliftError:
            return True

    def left_alone(self) -> AbstractContextManager[list[str]]:
        """Nothing is running that would be lifted by itself."""
        return nullcontext([])

    def lifted_again(self) -> None:
        """Take back that it is to be left alone when it runs, if it was said."""
        mark = read_mark(self._image, state_directory())
        if mark is not None and mark.is_paused:
            with suppress(OSError):
                write_mark(self._image, replace(mark, is_paused=False, at_s=time.time()), state_directory())

    def _undo(self, changes: Sequence[Change], cause: BaseException) -> None:
        for change in reversed(changes):
            try:
                if _named(change.owner) != change.old.name:
                    _switch(self.qemu, change.owner, change.old)
            except ChainliftError as error:
                raise UnknownStateError(
                    f"{cause}; it could not be undone ({error.what})",
                    path=change.owner,
                    hint=f"it reads the same bytes if its header names {change.old.name!r} or {change.new.name!r}",
                ) from cause


def _refuse_managed(image: Path, *, for_index: bool) -> None:
    """Refuse an image of which somebody keeps a record that a change of its header does not reach.

    libvirt starts a domain on the chain that its definition names in ``<backingStore>``, whatever the headers say; it
    follows the headers where the definition has none, and starts on no index.

    :raise ImageError: naming the manager or the domain.
    """
    manager = manager_of(image)
    if manager is not None:
        raise ImageError(str(manager), path=image, hint=f"{manager.advice}; --force lifts it all the same")
    definitions = Definitions.read()
    if not definitions.is_there:
        return
    below = led_to(image, pointer) if (pointer := read_pointer(image)[1]) is not None else None
    for naming in () if below is None else definitions.namings(below):
        if naming.element == "<backingStore>" and naming.part is None:
            raise ImageError(
                f"the libvirt domain {naming.domain} has what it stands on in its definition (<backingStore>), and "
                "starts on that",
                path=image,
                hint="lift it under the running domain (--libvirt), or with --force, and correct it with virsh edit",
            )
    for disk in definitions.domains_of(image) if for_index else ():
        raise ImageError(
            f"is the disk {disk.target} of the libvirt domain {disk.domain}, which does not start on an index",
            path=image,
            hint="squash it instead, or go on with --force and restore it before the domain is started",
        )
    if definitions.problem is not None:
        hint = "see to libvirt, or go on with --force"
        raise ImageError(f"a libvirt domain may name it: {definitions.problem}", path=image, hint=hint)


def _require_free(image: Path) -> None:
    refuse_if_open(image)
    if not os.access(image, os.W_OK):
        raise ImageError("cannot be written to", path=image, hint="a lift changes the name in its header")


def _require_unchanged(change: Change) -> None:
    """Refuse an image whose header somebody else has changed while the lift was built."""
    if _named(change.owner) != change.old.name:
        raise ImageError(
            "names another backing file than it did when this began", path=change.owner, hint="run it again"
        )


def _named(image: Path) -> str | None:
    pointer = read_pointer(image)[1]
    return None if pointer is None else pointer.name


def _switch(qemu: Qemu, image: Path, pointer: Pointer) -> None:
    """Make the image name this backing file.

    :raise ImageError: if a QEMU has the image open.
    :raise QemuError: if qemu-img refuses.
    :raise OperationError: if the header does not say it afterwards.
    """
    real = os.path.realpath(image)
    driver = "host_device" if Path(real).is_block_device() else "file"
    options = f"driver=qcow2,file.driver={driver},file.filename={real.replace(',', ',,')}"
    backing_format = [] if pointer.format is None else ["-F", pointer.format]
    command = qemu.command("img", "rebase", "-u", "--image-opts", *backing_format, "-b", pointer.name, options)
    run_tool(command, environment=qemu.environment)
    if _named(image) != pointer.name:
        raise OperationError("qemu-img rebase -u did not change the backing file name", path=image)
    _sync(image)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OperationError(f"its header could not be synced: {error.strerror}", path=path) from error
    finally:
        os.close(descriptor)
