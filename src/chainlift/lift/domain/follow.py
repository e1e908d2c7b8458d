"""libvirt's definitions of a disk, after layers have gone from its chain: they name what the headers do.

A definition may say in ``<backingStore>`` what a disk's image stands on: the one that the next start takes, and those
that snapshots and checkpoints keep of the domain as it was. Where it says nothing, libvirt reads the headers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from chainlift.errors import ChainliftError
from chainlift.host.filesystem import is_same_file
from chainlift.lift.domain.snapshots import described_anew, list_texts
from chainlift.lift.live.layers import layers_under
from chainlift.lift.neighbours.domain_xml import disk_of, source_of
from chainlift.lift.record.pointer import read_pointer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.host.virsh import Virsh


def follow_headers(virsh: Virsh, target: str) -> list[str]:
    """Take what is said of a disk's layers out of every definition where the headers say otherwise by now.

    :return: what could not be done, each as a line; nothing here fails.
    """
    said = []
    try:
        _follow_in_definition(virsh, target)
    except (ChainliftError, OSError, ET.ParseError) as error:
        said.append(f"the domain's persistent definition may name layers that are gone ({error}): virsh edit shows it")
    for kind in ("snapshot", "checkpoint"):
        try:
            for name, text in list_texts(virsh, kind):
                if _drop_other(ET.fromstring(text), target):
                    with described_anew(virsh, kind, name) as root:
                        _drop_other(root, target)
        except (ChainliftError, OSError, ET.ParseError) as error:
            said.append(f"libvirt's list of {kind}s may name layers that are gone: {error}")
    return said


def _follow_in_definition(virsh: Virsh, target: str) -> None:
    # To define a transient domain would make it persistent.
    if not virsh.is_persistent():
        return
    root = ET.fromstring(virsh.ask("dumpxml", "--inactive", "--security-info"))
    if _drop_where_other(disk_of(root, target)):
        virsh.define(ET.tostring(root, encoding="unicode"))


def _drop_other(root: ET.Element, target: str) -> bool:
    disks = [disk_of(root.find(kind), target) for kind in ("domain", "inactiveDomain")]
    return sum(_drop_where_other(disk) for disk in disks) > 0


def _drop_where_other(disk: ET.Element | None) -> bool:
    """Drop what a disk's definition says of the layers below, where it is not so; return whether it was."""
    store = None if disk is None else disk.find("backingStore")
    if disk is None or store is None or (image := _file(disk)) is None or not image.exists():
        return False
    if _is_so(image, store):
        return False
    disk.remove(store)
    return True


def _is_so(image: Path, store: ET.Element) -> bool:
    """Whether the headers lead to the files that are named; where these end early, libvirt goes on by the headers."""
    named, ends = _named(store)
    try:
        below = [layer.path for layer in layers_under(image, read_pointer(image)[1])]
    except ChainliftError:
        return False
    if len(named) > len(below) or (ends and len(named) < len(below)):
        return False
    return all(path is not None and is_same_file(path, layer) for path, layer in zip(named, below, strict=False))


def _named(store: ET.Element) -> tuple[Sequence[Path | None], bool]:
    """Return the files that are named, the uppermost first, and whether nothing is said to be below the last."""
    named: list[Path | None] = []
    element: ET.Element | None = store
    while element is not None:
        if element.find("source") is None:
            return named, True
        named.append(_file(element))
        element = element.find("backingStore")
    return named, False


def _file(element: ET.Element) -> Path | None:
    path = source_of(element)
    return None if path is None else Path(path)
