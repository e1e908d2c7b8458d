"""Opening a disk: at rest by its image, running by its monitor."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import InputError
from chainlift.qemu.binary import find_qemu

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
) -> Iterator[Disk]:
    """Open a disk for the verbs: at rest, or in the hands of the QEMU behind a monitor.

    >>> with open_disk("disk.qcow2") as disk:
    ...     index(disk)

    :param image: the image; of a running QEMU with one disk it can be left out.
    :param qmp: QEMU's QMP socket; or
    :param libvirt: a libvirt domain's name.
    :param device: of a running QEMU: the disk by a device's or an export's name; or
    :param node: by its node.
    :param qemu: whose tools compare and switch; None: the host's.
    :param timeout_s: of a running QEMU: how long to wait for its monitor to be free, and for each answer;
        None: 10 and 120.
    :param force: at rest: also where libvirt or another manager keeps a record of the chain.
    :raise InputError: if the disk cannot be found, or must not be lifted; nothing was touched.
    """
    if qmp is None and libvirt is None:
        from chainlift.lift.at_rest import DiskAtRest

        if image is None or device is not None or node is not None:
            raise InputError("a disk at rest is named by its image alone")
        yield DiskAtRest(image, qemu, force=force)
        return
    from chainlift.lift.live.disk import RunningDisk
    from chainlift.lift.live.gentle import be_gentle
    from chainlift.lift.live.libvirt import Domain
    from chainlift.lift.live.session import open_session

    if qmp is not None and libvirt is not None:
        raise InputError("a monitor and a domain are two ways to the same thing: choose one")
    where = Path(qmp) if qmp is not None else Domain(libvirt or "")
    be_gentle()
    path = None if image is None else Path(image)
    with open_session(where, device=device, node=node, image=path, timeout_s=timeout_s) as session:
        yield RunningDisk(session, qemu or find_qemu(need=["storage-daemon"]))
