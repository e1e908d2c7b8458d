"""Domains' disks that must not be switched, each told in one line before anything is touched."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, InputError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.live.layers import layers_under
from chainlift.lift.neighbours.domain_xml import managed_by
from chainlift.lift.neighbours.managers import manager_of
from chainlift.lift.record.pointer import read_pointer
from chainlift.qcow2.layout import CryptMethod

if TYPE_CHECKING:
    from chainlift.chain import Chain
    from chainlift.host.virsh import Virsh
    from chainlift.lift.live.seen_process import SeenProcess
    from chainlift.lift.neighbours.domain_xml import DiskDefinition


def refuse_uncopyable(disk: DiskDefinition, name: str, directory: Path | None = None) -> None:
    """Refuse a disk whose active layer libvirt cannot copy beside itself.

    :param name: the disk's, for errors.
    :param directory: where the copy of a block device would lie; None: nowhere.
    :raise InputError: with the reason.
    """
    image = disk.path
    assert image is not None
    if disk.obstacle is not None:
        raise InputError(f"the disk {name} {disk.obstacle}", path=image)
    if disk.kind != "file" and (disk.kind != "block" or directory is None):
        hint = "chainlift squash --lift-dir DIR has it copied into a file there; or lift it with the domain shut off"
        raise InputError("is no file: libvirt's copy could not lie beside it", path=image, hint=hint)
    header = read_pointer(image)[0]
    if header.crypt_method is not CryptMethod.NONE:
        raise ImageError("is encrypted", path=image)
    if header.data_file is not None:
        raise ImageError("has an external data file, which a copy would not have", path=image)


def refuse_managed(virsh: Virsh, image: Path) -> None:
    """Refuse a disk whose file somebody has written down: he would start the domain with the file from before.

    :raise ImageError: naming the manager.
    """
    manager = manager_of(image)
    name = manager.name if manager is not None else managed_by(virsh.ask("dumpxml"))
    if name is not None:
        raise ImageError(
            f"is {name}'s, which starts the domain with this file, not with the one that libvirt copies it into",
            path=image,
            hint="chainlift index --libvirt changes no file; --force goes on, and the manager must be told of the "
            "new file",
        )


def refuse_job(virsh: Virsh, disk: DiskDefinition, name: str) -> None:
    """Refuse a disk that libvirt is at work on.

    :param name: the disk's, for errors.
    :raise InputError: naming the job.
    """
    running = virsh.ask("blockjob", disk.target, "--raw")
    if disk.mirror is not None or "type=" in running:
        job = disk.mirror.job if disk.mirror is not None else "block job"
        hint = f"wait for it, or end it: virsh blockjob {virsh.domain.name} {disk.target}"
        raise InputError(f"libvirt runs a {job} on the disk {name}", path=disk.path, hint=hint)


def refuse_other_chain(disk: DiskDefinition, name: str, process: SeenProcess) -> list[Path]:
    """Refuse a disk whose chain is another one for libvirt, or for QEMU, than the headers say.

    :param name: the disk's, for errors.
    :return: the images, the active layer first.
    :raise ImageError: naming the first layer that differs.
    """
    image = disk.path
    assert image is not None
    named = [image, *(layer.path for layer in layers_under(image, read_pointer(image)[1]))]
    known = [str(image), *(disk.below or ())]
    for layer, other in zip_longest(named, known):
        if layer is None or other is None or not is_same_file(layer, Path(other)):
            there = "nothing" if other is None else other
            raise ImageError(
                f"libvirt's chain of {name} is not the one that the headers describe: it has {there} there",
                path=layer or image,
                hint="start the domain again, then lift it",
            )
        if process.has_open(layer) is False:
            raise ImageError(
                f"is named in the chain of {name}, and QEMU does not have this file open",
                path=layer,
                hint="it was replaced while the domain ran: start the domain again, then lift it",
            )
    return named


def refuse_strange(chain: Chain, image: Path) -> None:
    """Refuse what libvirt cannot be told of.

    :raise ImageError: naming the layer.
    """
    for layer in chain.layers:
        if layer.extents or layer.path.startswith("json:") or not layer.reference.follows_header:
            raise ImageError(
                "cannot be named to libvirt as a layer", path=layer.path, hint=f"lift {image} with its domain shut off"
            )
