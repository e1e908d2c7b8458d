"""A disk of a running libvirt domain, switched by libvirt itself: see :class:`chainlift.lift.disk.Disk`.

An overlay is prepared over what the disk is to stand on. libvirt copies into it what the active layer has of its own,
and makes it the disk (``blockcopy --shallow``, ``blockjob --pivot``). So no header that is in use is changed, libvirt's
live and persistent definitions name the new chain, its block jobs, snapshots and backups go on working, and the old
chain lies there as it was.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, InputError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.build.free_space import require_room
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.disk import Standing
from chainlift.lift.domain import chain_limit, guard
from chainlift.lift.domain.follow import follow_headers
from chainlift.lift.domain.index_under import stands_on_index
from chainlift.lift.domain.libvirt_disk import LibvirtDisk
from chainlift.lift.domain.overlay import find_overlays
from chainlift.lift.domain.reopen import reopen
from chainlift.lift.domain.setaside import held_bytes
from chainlift.lift.domain.switch import has_switched, over_a_snapshot, switch
from chainlift.lift.live.guard import refuse_unknown_process
from chainlift.lift.neighbours.locks import is_written
from chainlift.lift.record.mark import Mark, state_directory, write_mark
from chainlift.lift.record.overlay import read_overlay_mark
from chainlift.lift.record.pointer import read_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from chainlift.lift.disk import Change


class DomainDisk(LibvirtDisk):
    """One disk of one domain, as the verbs take it."""

    @property
    def stands_on_index(self) -> bool:
        """Whether QEMU reads it through an index, which its monitor was told of, past libvirt."""
        return stands_on_index(self.process(), self.image)

    @property
    def most_extents(self) -> int | None:
        """No index is made."""
        return None

    @property
    def needs_absolute_names(self) -> bool:
        """Libvirt writes absolute names, and so do we beside it."""
        return True

    @property
    def keeps_bitmaps(self) -> bool:
        """Libvirt opens the new chain itself, and looks for bitmaps there."""
        return True

    @property
    def image_is_written(self) -> str | None:
        """QEMU has it open."""
        return f"{self.virsh.domain} writes to it"

    @property
    def holders(self) -> frozenset[int]:
        """The domain's QEMU, where it can be seen: libvirt has it close the old chain when it has pivoted."""
        pid = self.process().pid
        return frozenset() if pid is None else frozenset({pid})

    @property
    def known_to_libvirt_as(self) -> tuple[str, str] | None:
        """Definitions name the new chain after :meth:`reopen` and :meth:`follow_headers`."""
        return self.virsh.uuid, self.target

    def check_again(self) -> None:
        """Ask as :meth:`check` does, and for room: libvirt copies the active layer beside it.

        :raise InputError: with the reason; nothing was touched.
        """
        self.check()
        require_room(self.image.parent, self.image.stat().st_blocks * 512)

    def reopen(self) -> None:
        """Have libvirt open the chain that the active layer's header names anew; the active layer keeps its file.

        An overlay comes between for a moment, is copied over the new chain, and is merged into the active layer there.
        Where libvirt takes no layer more, the active layer itself is copied, and copied back to its name.

        What QEMU has open is not what the names lead to until then, so that nothing of it is asked here.

        :raise OperationError: if it could not be switched; the layers are open as before.
        :raise UnknownStateError: if it is not known which are open.
        """
        reopen(self)

    def follow_headers(self) -> None:
        """Have the persistent definition, snapshots and checkpoints of libvirt's lists name what the headers do."""
        self.left += follow_headers(self.virsh, self.target)

    def check(self, *, for_index: bool = False) -> None:
        """Refuse a disk that must not be switched now; libvirt is asked again.

        :raise InputError: with the reason; nothing was touched.
        """
        if for_index:
            raise InputError(
                f"libvirt cannot open an index: {self.virsh.domain} is indexed by its monitor alone",
                path=self.image,
                hint="chainlift index --libvirt does so; in Python, open_disk(libvirt=..., by_monitor=True)",
            )
        before = self.image
        self.ask_again()
        if not is_same_file(before, self.image):
            raise ImageError(
                f"is not the active layer of {self.name} any more, {self.image} is", path=before, hint="run it again"
            )
        guard.refuse_uncopyable(self.definition, self.name, self.directory)
        if not self.force:
            guard.refuse_managed(self.virsh, self.image)
        guard.refuse_job(self.virsh, self.definition, self.name)
        process = self.process()
        refuse_unknown_process(process, self.image)
        if self.stands_on_index:
            raise ImageError(
                "stands on an index, of which libvirt does not know",
                path=self.image,
                hint=f"chainlift restore --libvirt {self.virsh.domain.name} first",
            )
        for layer in guard.refuse_other_chain(self.definition, self.name, process)[1:]:
            if is_written(layer):
                raise ImageError(
                    "is open for writing, though it lies under the active layer", path=layer, hint="see virsh blockjob"
                )

    def standing(self) -> list[Standing]:
        """Return what the active layer's header names; the headers below are as good for libvirt."""
        return [Standing(self.image, read_pointer(self.image)[1])]

    def compare(
        self, changes: Sequence[Change], *, content: bool = False, progress: Callable[[int], None] | None = None
    ) -> None:
        """Read what the disk would stand on through a storage daemon of our own, and compare it with what it does.

        Parameters as :meth:`chainlift.lift.disk.Disk.compare`.
        """
        if self.qemu is not None:
            for change in changes:
                compare_stock(self.qemu, change.owner, change.readable, change.new, content=content, progress=progress)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Put the active layer below a snapshot, where libvirt would copy much of it; undone, where the block fails.

        :raise QemuError: in libvirt's words, if there can be no snapshot; nothing was touched.
        """
        mark = read_overlay_mark(self.image)
        if held_bytes(self.image) < self.much_bytes or (mark is not None and mark.kind == "snapshot"):
            yield
            return
        chain_limit.refuse_one_more(len(self.definition.below or ()), self.image)
        with over_a_snapshot(self):
            yield

    def switch(self, changes: Sequence[Change], *, rate_bytes_per_s: int | None = None) -> None:
        """Have libvirt switch the disk to an overlay over what the changes lead to.

        Where an image further down is to stand on something else, it and those above are copied: none that is there is
        changed.

        :param rate_bytes_per_s: libvirt copies at most so fast.
        :raise OperationError: if it could not be switched; everything is as before.
        :raise UnknownStateError: if it is not known what is left.
        """
        switch(self, changes, rate_bytes_per_s=rate_bytes_per_s)

    def has_switched(self, changes: Sequence[Change]) -> bool:  # noqa: ARG002 - the overlay says so for all of them
        """Whether the overlay may be the disk, for libvirt or at the next start."""
        return has_switched(self)

    @contextmanager
    def left_alone(self) -> Iterator[list[str]]:
        """Mark what will be the disk: who watches it may look at any time after the switch."""
        warnings = list[str]()
        yield warnings
        mark = Mark(is_paused=True, at_s=time.time(), why="restored", vm=f"uuid {self.virsh.uuid}")
        try:
            write_mark(self.image, mark, state_directory())
        except OSError as error:
            warnings.append(f"{self.image}: chainlift watch cannot be told to leave it alone ({error.strerror})")

    def lifted_again(self) -> None:
        """Do nothing: on the new active layer, another file, nobody has said that it is to be left alone."""

    def superseded(self) -> list[Path]:
        """Return the overlays that were made for this disk and are not in its chain any more."""
        chain = self.chain()
        found = find_overlays(self.image.parent, self.virsh.uuid, self.target)
        return [path for path in found if not any(is_same_file(path, layer) for layer in chain)]
