"""A disk, whoever holds it: nobody, a running QEMU, or libvirt. Every verb is written once, over this.

A verb checks, prepares (builds new files and publishes their record), compares through stock QEMU, checks again,
switches and settles; what it has prepared is discarded unless the disk has switched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Change:
    """One pointer that is to be switched: the image ``owner`` is to name ``new`` instead of ``old``.

    Both lead to chains that read the same bytes.
    """

    #: The image, anywhere in the chain; absolute.
    owner: Path
    #: What it names.
    old: Pointer
    #: What it is to name.
    new: Pointer
    #: A name for what ``old`` meant, where that itself leads nowhere any more: all was moved together.
    moved: Pointer | None = None

    @property
    def readable(self) -> Pointer:
        """What the new side is compared with."""
        return self.moved or self.old


@dataclass(frozen=True)
class Standing:
    """What one image of a chain stands on."""

    #: The image; absolute.
    image: Path
    #: As its header names it or, of a running disk, as QEMU has it open; None at the bottom.
    pointer: Pointer | None


class Disk(Protocol):
    """An image and all that it stands on, in somebody's hands or in nobody's: what the verbs take."""

    @property
    def image(self) -> Path:
        """The active layer's file; absolute, as it was named."""

    @property
    def qemu(self) -> Qemu | None:
        """Whose tools compare and switch; None compares nothing."""

    @property
    def most_extents(self) -> int | None:
        """How many extents an index should have at most, so that nobody waits for the switch; None: any number."""

    @property
    def needs_absolute_names(self) -> bool:
        """Whether later overlays get plain names only where the new pointer is absolute."""

    @property
    def keeps_bitmaps(self) -> bool:
        """Whether who holds the disk finds bitmaps of layers in the layer that replaces them."""

    @property
    def image_is_written(self) -> str | None:
        """Who writes to the image, as a phrase, so that no other file can take its place; None if nobody does."""

    @property
    def holders(self) -> frozenset[int]:
        """The processes that have the disk's layers open for the disk's sake, and close them when it is switched."""

    @property
    def known_to_libvirt_as(self) -> tuple[str, str] | None:
        """The domain's UUID and the disk's target, where :meth:`follow_headers` mends libvirt's definitions."""

    def check(self, *, for_index: bool = False) -> None:
        """Refuse a disk that must not be switched now.

        :param for_index: whether it is to be switched to an index, on which not everybody starts.
        :raise InputError: with the reason; nothing was touched.
        """

    def check_again(self) -> None:
        """Refuse what must not be switched by now, while the caller has locks of his own on the layers.

        :raise InputError: with the reason.
        """

    def reopen(self) -> None:
        """Have whoever holds the disk open its layers anew: other files that read the same have their names now.

        :raise OperationError: if that failed; the layers are open as before.
        :raise UnknownStateError: if it is not known which are open.
        """

    def follow_headers(self) -> None:
        """Have libvirt's definitions of the disk name what the headers do: layers may be gone. Nothing here fails."""

    def standing(self) -> list[Standing]:
        """Return what each image of the chain stands on, the active layer first.

        :raise ImageError: if a header cannot be read.
        """

    def compare(
        self, changes: Sequence[Change], *, content: bool = False, progress: Callable[[int], None] | None = None
    ) -> None:
        """Open the new side of each change with stock QEMU and compare it with the old.

        :param content: all that is not provably the same bytes, instead of a sample.
        :param progress: called with the bytes compared so far.
        :raise AnswerIsNo: naming the first byte that differs; nothing was switched.
        :raise QemuError: if the new side cannot be opened or read.
        """

    def set_aside(self) -> AbstractContextManager[None]:
        """Put the active layer below an overlay, where a switch would copy much; undone, where the block fails.

        :raise OperationError: if that cannot be done; everything is as before.
        """

    def switch(self, changes: Sequence[Change], *, rate_bytes_per_s: int | None = None) -> None:
        """Switch every pointer, the lowest first; all of them or none.

        :param rate_bytes_per_s: where a switch copies, it does so at most so fast.
        :raise OperationError: if one could not be switched; all are as before.
        :raise UnknownStateError: if it is not known what is left.
        """

    def has_switched(self, changes: Sequence[Change]) -> bool:
        """Whether any of the new sides may be in use; asked of the disk itself, and yes where that cannot be told."""

    def superseded(self) -> list[Path]:
        """Return files beside the image that were made for the disk and are no part of it any more."""

    def left_alone(self) -> AbstractContextManager[list[str]]:
        """Have ``chainlift watch`` leave the disk alone from before the block on; as it was, where the block fails.

        :return: what an operator should know, where that does not work.
        """

    def lifted_again(self) -> None:
        """Have ``chainlift watch`` care for the disk again: somebody has lifted it."""
