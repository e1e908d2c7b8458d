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

from chainlift.errors import ChainliftError, ImageError, UnknownStateError
from chainlift.host import interrupts
from chainlift.lift.build.header import name_backing_file
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.disk import Change, Standing
from chainlift.lift.domain.defined import bring_up_to_date
from chainlift.lift.neighbours.ask_libvirt import read_definitions
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.record.identity import absolute_name
from chainlift.lift.record.mark import read_mark, state_directory, write_mark
from chainlift.lift.record.pointer import named_in, read_pointer
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from chainlift.lift.neighbours.definitions import Definitions
    from chainlift.qemu.binary import Qemu


#: What managers have said so long ago is asked again before a switch: building and comparing take minutes.
_FRESH_S = 2.0


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
        #: What managers have said, and when; None before they were asked.
        self._definitions: Definitions | None = None
        self._asked_s = 0.0
        #: What they were asked for.
        self._is_for_index = False
        #: What an operator should know afterwards.
        self.left: list[str] = []

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

    @property
    def image_is_written(self) -> str | None:
        """Nobody has it open."""
        return None

    @property
    def holders(self) -> frozenset[int]:
        """There are none."""
        return frozenset()

    @property
    def known_to_libvirt_as(self) -> tuple[str, str] | None:
        """What definitions name stays."""
        return None

    def check(self, *, for_index: bool = False) -> None:
        """Refuse an image that a QEMU has open, that cannot be written to, or whose chain somebody else keeps."""
        _require_free(self._image)
        if not self._force and (self._definitions is None or for_index > self._is_for_index):
            self._ask_managers(for_index=for_index)

    def check_again(self) -> None:
        """Who came meanwhile has the layers open too, and is asked about them; a writer the caller's lock refuses."""

    def reopen(self) -> None:
        """Nobody has them open."""

    def follow_headers(self) -> None:
        """Do nothing: what definitions name stays."""

    def standing(self) -> list[Standing]:
        """Return what the header names; the headers below are as good for everybody."""
        return [Standing(self._image, read_pointer(self._image)[1])]

    def compare(
        self, changes: Sequence[Change], *, content: bool = False, progress: Callable[[int], None] | None = None
    ) -> None:
        """Compare both sides of each change through a storage daemon of our own.

        Parameters as :meth:`chainlift.lift.disk.Disk.compare`.
        """
        for change in changes:
            compare_stock(self.qemu, change.owner, change.readable, change.new, content=content, progress=progress)

    def set_aside(self) -> AbstractContextManager[None]:
        """Do nothing: a switch copies nothing."""
        return nullcontext()

    def switch(self, changes: Sequence[Change], *, rate_bytes_per_s: int | None = None) -> None:  # noqa: ARG002 - copies nothing
        """Switch header after header; where one fails, those before are switched back."""
        if self._definitions is not None and time.monotonic() - self._asked_s > _FRESH_S:
            self._ask_managers(for_index=self._is_for_index)
        for change in changes:
            _require_free(change.owner)
            _require_unchanged(change)
        done: list[Change] = []
        try:
            for change in changes:
                interrupts.between_steps()
                name_backing_file(self.qemu, change.owner, change.new)
                done.append(change)
        except BaseException as error:
            self._undo(changes[: len(done) + 1], error)
            raise
        # Until here, and if we are killed here, a domain starts on what its definition names, which reads the same.
        self.left += bring_up_to_date(changes, self._definitions or read_definitions())

    def has_switched(self, changes: Sequence[Change]) -> bool:
        """Whether a header names a new side, or cannot be read."""
        try:
            return any(named_in(change.owner) != change.old.name for change in changes)
        except ChainliftError:
            return True

    def superseded(self) -> list[Path]:
        """Nothing but lifts is made for the disk."""
        return []

    def left_alone(self) -> AbstractContextManager[list[str]]:
        """Nothing is running that would be lifted by itself."""
        return nullcontext([])

    def lifted_again(self) -> None:
        """Take back that it is to be left alone when it runs, if it was said."""
        mark = read_mark(self._image, state_directory())
        if mark is not None and mark.is_paused:
            with suppress(OSError):
                write_mark(self._image, replace(mark, is_paused=False, at_s=time.time()), state_directory())

    def _ask_managers(self, *, for_index: bool) -> None:
        self._definitions = _refuse_managed(self._image, for_index=for_index)
        self._is_for_index, self._asked_s = for_index, time.monotonic()

    def _undo(self, changes: Sequence[Change], cause: BaseException) -> None:
        for change in reversed(changes):
            try:
                if named_in(change.owner) != change.old.name:
                    name_backing_file(self.qemu, change.owner, change.old)
            except ChainliftError as error:
                raise UnknownStateError(
                    f"{cause}; it could not be undone ({error.what})",
                    path=change.owner,
                    hint=f"it reads the same bytes if its header names {change.old.name!r} or {change.new.name!r}",
                ) from cause


def _refuse_managed(image: Path, *, for_index: bool) -> Definitions:
    """Refuse an image of which somebody keeps a record that a change of its header does not reach.

    libvirt starts a domain on the chain that its definition names in ``<backingStore>``, whatever the headers say, and
    is told otherwise after the switch, where it answers. It follows the headers where the definition has none, and
    starts on no index, however far down.

    :return: what libvirt's definitions name.
    :raise ImageError: naming the manager or the domain.
    """
    manager = manager_of(image)
    if manager is not None:
        raise ImageError(str(manager), path=image, hint=f"{manager.advice}; --force lifts it all the same")
    definitions = read_definitions()
    for store in definitions.stores_of(image):
        if store.uri is None or for_index:
            hint = "start libvirtd, which is told of the squash then; --force goes on without"
            raise ImageError(
                f"the libvirt domain {store.domain} has what it stands on in its definition (<backingStore>), and "
                "starts on that",
                path=image,
                hint="squash it instead" if for_index else hint,
            )
    for disk in definitions.domains_over(image) if for_index else ():
        stands = "is" if disk in definitions.domains_of(image) else "is a layer of"
        raise ImageError(
            f"{stands} the disk {disk.target} of the libvirt domain {disk.domain}, which does not start on an index",
            path=image,
            hint="squash it instead, or go on with --force and restore it before the domain is started",
        )
    if definitions.problem is not None:
        hint = "see to libvirt, or go on with --force"
        raise ImageError(f"a libvirt domain may name it: {definitions.problem}", path=image, hint=hint)
    return definitions


def _require_free(image: Path) -> None:
    refuse_if_open(image)
    if not os.access(image, os.W_OK):
        raise ImageError("cannot be written to", path=image, hint="a lift changes the name in its header")


def _require_unchanged(change: Change) -> None:
    """Refuse an image whose header somebody else has changed while the lift was built."""
    if named_in(change.owner) != change.old.name:
        raise ImageError(
            "names another backing file than it did when this began", path=change.owner, hint="run it again"
        )
