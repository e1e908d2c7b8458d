"""Opening a disk: at rest by its image, running by its monitor."""

from __future__ import annotations

from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from chainlift.lift.disk import Disk
    from chainlift.qemu.binary import Qemu


@contextmanager
def open_disk(
    image: str | os.PathLike[str] | None = None,
    *,
    qmp: str | os.PathLike[str] | None = None,
    libvirt: str | None = None,
    device: str | None = None,
    node: str | None = None,
    qemu: Qemu | None = None,
    force: bool = False,
    timeout_s: float | None = None,
    by_monitor: bool | None = None,
    directory: Path | None = None,
) -> Iterator[Disk]:
    """Open a disk for the verbs: at rest, or in the hands of the QEMU behind a monitor. Use it as a context manager.

    >>> with open_disk("disk.qcow2") as disk:
    ...     print(disk.image.name)
    disk.qcow2
    >>> with open_disk(qmp="/run/vm7.qmp") as disk:
    ...     print(disk.image.name)
    Traceback (most recent call last):
    chainlift.errors.ImageError: /run/vm7.qmp: is no socket; name QEMU's QMP socket ...

    :param image: the image; of a running QEMU with one disk it can be left out.
    :param qmp: QEMU's QMP socket; or
    :param libvirt: a libvirt domain's name: its disk is switched by libvirt's own block copy.
    :param device: of a running QEMU: the disk by a device's or an export's name; or
    :param node: by its node.
    :param qemu: whose tools compare and switch; None: the host's.
    :param force: at rest or by libvirt: also where libvirt or another manager keeps a record of the chain.
    :param timeout_s: of a running QEMU: how many seconds to wait for its monitor to be free, and for each answer;
        None: 10 and 120.
    :param by_monitor: of a libvirt domain: work at its QEMU's monitor, past libvirt, as an index takes; None: where the
        disk stands on such an index.
    :param directory: of a libvirt domain: where its copy lies of an image on a block device; None: that is refused.
    :return: the disk, while the block lasts.
    :raise InputError: if the disk cannot be found, or must not be lifted; nothing was touched.
    :raise MissingToolError: if there is no QEMU whose tools could work on it.
    :raise QemuError: if the running QEMU or libvirt does not answer; nothing was touched.
    :raise UnknownStateError: if what a killed run has left there cannot be finished or undone.
    """
    if qmp is None and libvirt is None:
        from chainlift.lift.at_rest import DiskAtRest

        if image is None or device is not None or node is not None:
            raise InputError("a disk at rest is named by its image alone")
        yield DiskAtRest(image, qemu, force=force)
        return
    from chainlift.host.virsh import Domain
    from chainlift.lift.domain.open import open_domain_disk
    from chainlift.lift.live.disk import RunningDisk
    from chainlift.lift.live.session import open_session

    if qmp is not None and libvirt is not None:
        raise InputError("a monitor and a domain are two ways to the same thing: choose one")
    where = Path(qmp) if qmp is not None else Domain(libvirt or "")
    path = None if image is None else Path(image)
    if libvirt is not None and not by_monitor:
        if node is not None:
            raise InputError("libvirt names a disk by its target or its image, not by a node of QEMU's")
        domain_disk = open_domain_disk(
            Domain(libvirt),
            device=device,
            image=path,
            qemu=qemu or find_qemu(need=["img", "storage-daemon"]),
            force=force,
            directory=directory,
        )
        if by_monitor is False or not domain_disk.stands_on_index:
            with closing(domain_disk.virsh):
                yield domain_disk
            return
        domain_disk.virsh.close()
        device, path = domain_disk.target, None
    with open_session(where, device=device, node=node, image=path, timeout_s=timeout_s) as session:
        yield RunningDisk(session, qemu or find_qemu(need=["storage-daemon"]))
