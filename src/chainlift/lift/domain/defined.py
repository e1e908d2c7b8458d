"""Definitions of domains that do not run, after an image of theirs was switched at rest.

libvirt writes ``<backingStore>`` elements into a definition when it takes a snapshot, and at the next start it opens
what they name, whatever the headers say. Where there are none below an image, it follows the headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from chainlift.errors import ChainliftError
from chainlift.host.virsh import Domain, Virsh
from chainlift.lift.domain.snapshots import Place, follow, forget_below
from chainlift.lift.record.pointer import led_to

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.lift.disk import Change
    from chainlift.lift.neighbours.definitions import Definitions, Store


def bring_up_to_date(changes: Sequence[Change], definitions: Definitions) -> list[str]:
    """Let domains start on what images stand on now, and libvirt's snapshots name it.

    :param changes: that were made.
    :param definitions: as they were before.
    :return: what an operator must know or do; nothing here fails.
    """
    said: list[str] = []
    for change in changes:
        for store in dict.fromkeys(definitions.stores_of(change.owner)):
            try:
                _forget_store(store, change.owner)
                said.append(f"the definition of domain {store.domain} follows the headers below {change.owner} now")
            except (ChainliftError, OSError, ET.ParseError) as error:
                said.append(
                    f"the definition of domain {store.domain} names what {change.owner} stood on before, and it starts "
                    f"on that ({error}): remove <backingStore> below it with virsh edit {store.domain}"
                )
        disks = definitions.disks_of_domains_naming(change.owner)
        for uuid, target, uri in {(disk.uuid, disk.target, disk.uri) for disk in disks}:
            try:
                if uri is not None:
                    old = Place(change.owner, led_to(change.owner, change.old))
                    new = Place(change.owner, led_to(change.owner, change.new))
                    follow(Virsh(Domain(uuid, uri)), target, [(old, new)], changed=change.owner)
            except (ChainliftError, OSError, ET.ParseError) as error:
                said.append(f"libvirt's list of snapshots was not brought up to date: {error}")
    return said


def _forget_store(store: Store, image: Path) -> None:
    """Take what is said of the layers below an image out of a definition, as ``virsh edit`` would.

    :raise QemuError: in libvirt's words, if it refuses.
    """
    virsh = Virsh(Domain(store.uuid, store.uri))
    root = ET.fromstring(virsh.ask("dumpxml", "--inactive", "--security-info"))
    if sum(forget_below(disk, image) for disk in root.iterfind("devices/disk")):
        virsh.define(ET.tostring(root, encoding="unicode"))
