"""One disk of a running domain as libvirt has it: its definition, asked anew whenever it may have changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.errors import InputError
from chainlift.lift.domain.blockcopy import read_disk
from chainlift.lift.live.libvirt_monitor import find_process
from chainlift.lift.neighbours.domain_xml import read_disks
from chainlift.lift.record.overlay import OverlayMark

if TYPE_CHECKING:
    from collections.abc import Callable

    from chainlift.host.virsh import Virsh
    from chainlift.lift.domain.blockcopy import BlockCopy
    from chainlift.lift.live.seen_process import SeenProcess
    from chainlift.lift.neighbours.domain_xml import DiskDefinition
    from chainlift.qemu.binary import Qemu

#: From this much on, what the active layer has of its own is put below a snapshot first: it is squashed with the
#: others, beside the VM, and QEMU copies what was written since.
MUCH_BYTES: Final = 256 << 20


@dataclass
class LibvirtDisk:
    """One disk of one domain.

    :param virsh: asks and tells its libvirt.
    :param target: the disk's, as libvirt calls it.
    :param qemu: whose tools compare and write headers; the running one does not.
    :param much_bytes: see :data:`MUCH_BYTES`.
    """

    virsh: Virsh
    target: str
    qemu: Qemu | None
    much_bytes: int = MUCH_BYTES
    #: Also where a manager keeps a record of the disk.
    force: bool = False
    #: Where a new active layer is made whose image lies on a block device; None: such a disk is refused.
    directory: Path | None = None
    #: What an operator should know before.
    warnings: list[str] = field(default_factory=list)
    #: What an operator should know afterwards.
    left: list[str] = field(default_factory=list)
    #: What was done, for people: begins with a semicolon.
    outcome: str = ""
    #: Called with what was reached, in order; a test's place to stop.
    after: Callable[[str], None] | None = None
    #: What switches the disk, or has switched it.
    copy: BlockCopy | None = None

    def __post_init__(self) -> None:
        self.definition = self._read()

    @property
    def image(self) -> Path:
        """The active layer's file; absolute, as libvirt names it."""
        path = self.definition.path
        assert path is not None
        return path

    @property
    def name(self) -> str:
        """The disk's, for errors."""
        return f"{self.target} of {self.virsh.domain}"

    @property
    def elsewhere(self) -> Path | None:
        """Where new files lie that cannot lie beside the image."""
        return self.directory if self.definition.kind == "block" else None

    def ask_again(self) -> None:
        """Ask libvirt which image the disk is now, and what it stands on.

        :raise InputError: if the domain does not run any more, or has no such disk.
        """
        self.definition = self._read()

    def _read(self) -> DiskDefinition:
        disk = read_disk(self.virsh, self.target)
        if disk is None or disk.path is None:
            raise InputError(f"{self.virsh.domain} does not run, or has no disk {self.target} any more")
        return disk

    def chain(self) -> list[Path]:
        """Return the active layer and all below it that libvirt knows of."""
        return [self.image, *(Path(name) for name in self.definition.below or () if name is not None)]

    def all_disks(self) -> list[DiskDefinition]:
        """Return all disks of the domain."""
        return read_disks(self.virsh.ask("dumpxml"))

    def process(self) -> SeenProcess:
        """Return the domain's QEMU, as far as it can be seen."""
        return find_process(self.virsh.domain, self.virsh.uuid)

    def mark(self, kind: str, over: str | None = None) -> OverlayMark:
        """Return what says of a new file that it was made for this disk."""
        return OverlayMark(kind, self.virsh.uuid, self.target, over)  # type: ignore[arg-type]

    def reached(self, what: str) -> None:
        """Tell who waits for it how far a switch is."""
        if self.after is not None:
            self.after(what)
