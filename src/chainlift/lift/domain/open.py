"""Finding the disk of a domain that is meant, and putting in order what a killed run has left of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, InputError
from chainlift.host.virsh import Virsh
from chainlift.lift.build.workspace import alone_in
from chainlift.lift.domain.disk import DomainDisk
from chainlift.lift.domain.leftovers import put_in_order
from chainlift.lift.neighbours.domain_xml import choose, read_disks

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.host.virsh import Domain
    from chainlift.lift.neighbours.domain_xml import DiskDefinition
    from chainlift.qemu.binary import Qemu


def open_domain_disk(
    domain: Domain,
    *,
    device: str | None = None,
    image: Path | None = None,
    qemu: Qemu | None = None,
    force: bool = False,
    directory: Path | None = None,
) -> DomainDisk:
    """Find the disk that is meant, put in order what a killed run has left, and open it.

    :param device: as virsh takes it: a target (``vda``) or the path of the active layer; also QEMU's id.
    :param image: its active layer; both None where there is only one disk.
    :param force: also where a manager keeps a record of the disk.
    :param directory: where libvirt's copy lies of an image on a block device; None: such a disk is refused.
    :raise InputError: if there is no such disk, or the domain does not run.
    :raise UnknownStateError: if what a killed run has left cannot be put in order.
    """
    virsh = Virsh(domain)
    if not virsh.is_running():
        raise InputError(f"{domain} does not run", hint="for a domain at rest, name its image instead")
    chosen = choose(read_disks(virsh.ask("dumpxml")), device=device, image=image, named=domain)
    directory = None if directory is None else directory.absolute()
    done = _put_in_order(virsh, chosen, directory)
    warnings = [f"put in order what a killed run had left: {', '.join(done)}"] if done else []
    return DomainDisk(virsh, chosen.target, qemu, force=force, directory=directory, warnings=warnings)


def _put_in_order(virsh: Virsh, disk: DiskDefinition, directory: Path | None) -> list[str]:
    assert disk.path is not None
    with ExitStack() as stack:
        try:
            stack.enter_context(alone_in([directory or disk.path.parent]))
        except ImageError:  # somebody is at work, and has left nothing yet
            return []
        return put_in_order(virsh, disk.target, directory)
