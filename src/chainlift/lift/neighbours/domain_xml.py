"""What libvirt's definition of a domain says of its disks, and what it is told of a new one.

The text comes from libvirt, which has checked it; the standard library's parser resolves no external entities.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from chainlift.errors import InputError, QemuError
from chainlift.host.filesystem import is_same_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain import Layer


@dataclass(frozen=True)
class Mirror:
    """A job that writes a disk to another file as well."""

    #: ``copy`` or ``active-commit``.
    job: str
    #: The other file; None where it is none.
    path: str | None
    #: ``yes`` where it has everything, ``pivot`` or ``abort`` while it is being ended; None before.
    ready: str | None


@dataclass(frozen=True)
class DiskDefinition:
    """A disk as a domain's definition has it."""

    #: ``vda``
    target: str
    #: Its device's id in QEMU (``virtio-disk0``); empty in the definition of a domain that does not run.
    alias: str
    #: ``disk``, ``cdrom``
    device: str
    #: ``file``, ``block``, ``network``
    kind: str
    #: ``qcow2``
    format: str
    #: The active layer; None where it is no file.
    path: Path | None
    #: The files below, the uppermost first; None for one that is no file, and no list at all where there is none.
    below: tuple[str | None, ...] | None
    mirror: Mirror | None
    #: What prevents it from being switched, as a phrase.
    obstacle: str | None


def read_disks(text: str) -> list[DiskDefinition]:
    """Read the disks of a domain.

    :raise QemuError: if it is no definition.
    """
    return [_read_disk(disk) for disk in _parse(text).iterfind("devices/disk")]


def source_of(element: ET.Element) -> str | None:
    """Return the file or device that a disk, or a ``<backingStore>``, lies in; None where it is neither."""
    source = element.find("source")
    return None if source is None else source.get("file") or source.get("dev")


def disk_of(domain: ET.Element | None, target: str) -> ET.Element | None:
    """Return a disk of a domain's definition, by its target; None where there is none."""
    if domain is None:
        return None
    for disk in domain.findall("devices/disk"):
        found = disk.find("target")
        if found is not None and found.get("dev") == target:
            return disk
    return None


#: What managers write into ``<metadata>`` of the domains that they define anew from a record of their own.
_MANAGERS: Final = {
    "http://openstack.org/xmlns/libvirt/nova/": "OpenStack nova",
    "http://ovirt.org/vm/": "oVirt",
    "http://opennebula.org/xmlns/libvirt/": "OpenNebula",
    "http://kubevirt.io": "KubeVirt",
}


def managed_by(text: str) -> str | None:
    """Return the manager that has made a domain, as its definition says; None where it says nothing.

    :raise QemuError: if it is no definition.
    """
    for element in _parse(text).iterfind("metadata/*"):
        namespace = element.tag.removeprefix("{").partition("}")[0]
        for known, name in _MANAGERS.items():
            if namespace.startswith(known):
                return name
    return None


def _parse(text: str) -> ET.Element:
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise QemuError(f"libvirt's definition of the domain cannot be read: {error}") from None


def _read_disk(disk: ET.Element) -> DiskDefinition:
    driver, target, alias = disk.find("driver"), disk.find("target"), disk.find("alias")
    path = source_of(disk)
    return DiskDefinition(
        target="" if target is None else target.get("dev", ""),
        alias="" if alias is None else alias.get("name", ""),
        device=disk.get("device", "disk"),
        kind=disk.get("type", "file"),
        format="raw" if driver is None else driver.get("type", "raw"),
        path=None if path is None else Path(path),
        below=_below(disk),
        mirror=_mirror(disk.find("mirror")),
        obstacle=_obstacle(disk),
    )


def _below(disk: ET.Element) -> tuple[str | None, ...] | None:
    store = disk.find("backingStore")
    if store is None:
        return None
    found: list[str | None] = []
    while store is not None and store.find("source") is not None:
        found.append(source_of(store))
        store = store.find("backingStore")
    return tuple(found)


def _mirror(element: ET.Element | None) -> Mirror | None:
    if element is None:
        return None
    return Mirror(element.get("job", "copy"), element.get("file") or source_of(element), element.get("ready"))


def _obstacle(disk: ET.Element) -> str | None:
    if disk.find("readonly") is not None:
        return "is read-only"
    if disk.find("transient") is not None:
        return "is transient: its changes go with the domain"
    source = disk.find("source")
    if disk.find("encryption") is not None or (source is not None and source.find("encryption") is not None):
        return "is encrypted"
    if source is not None and source.find("slices") is not None:
        return "is a slice of its file"
    return None


def choose(disks: Sequence[DiskDefinition], *, device: str | None, image: Path | None, named: object) -> DiskDefinition:
    """Return the disk that is meant, as virsh finds one: by its target or its source.

    :param device: a target (``vda``), the path of an active layer, or a device's id (``virtio-disk0``); or
    :param image: its active layer; both None where there is only one.
    :param named: the domain, for errors.
    :raise InputError: if there is no such disk, or several that could be meant.
    """
    there = [disk for disk in disks if disk.device == "disk" and disk.format == "qcow2" and disk.path is not None]
    found = [disk for disk in there if _is_meant(disk, device, image)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{disk.target} ({disk.path})" for disk in there) or "none"
    if device is None and image is None and there:
        raise InputError(f"{named} has several qcow2 disks", hint=f"choose one with --device: {known}")
    what = device if device is not None else image
    wanted = "no qcow2 disk" if what is None else f"no qcow2 disk {str(what)!r}"
    raise InputError(f"{named} has {wanted}", hint=f"there are: {known}")


def _is_meant(disk: DiskDefinition, device: str | None, image: Path | None) -> bool:
    assert disk.path is not None
    if device is not None:
        return device in (disk.target, disk.alias) or (device.startswith("/") and is_same_file(Path(device), disk.path))
    return image is None or is_same_file(image, disk.path)


def copy_text(overlay: Path, layers: Sequence[Layer]) -> str:
    """Return what libvirt is told of the file that a disk is copied into: all that it stands on, to the bottom.

    libvirt opens that chain before the copy begins. Where it finds the chain by itself (``--reuse-external``), it opens
    it only when the copy has ended: QEMU then takes what the new file does not have for zeros, and with synchronous
    writes a small write of the guest hides the rest of its cluster, for good and without a word.

    :param overlay: absolute.
    :param layers: below it, top first.
    """
    disk = ET.Element("disk", type="file")
    ET.SubElement(disk, "source", file=str(overlay))
    ET.SubElement(disk, "driver", type="qcow2")
    above = disk
    for layer in layers:
        is_device = Path(layer.path).is_block_device()
        above = ET.SubElement(above, "backingStore", type="block" if is_device else "file")
        ET.SubElement(above, "format", type="raw" if layer.image is None else "qcow2")
        ET.SubElement(above, "source", {"dev" if is_device else "file": layer.path})
    ET.SubElement(above, "backingStore")
    return ET.tostring(disk, encoding="unicode")
