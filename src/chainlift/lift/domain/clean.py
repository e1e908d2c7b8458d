"""Putting a domain in order: what killed runs have left in libvirt, beside its disks and at its monitor."""

from __future__ import annotations

from chainlift.errors import ChainliftError, InputError
from chainlift.host.virsh import Domain, Virsh
from chainlift.lift.domain.leftovers import put_in_order
from chainlift.lift.domain.setaside import commit_back
from chainlift.lift.live.clean import Cleaned, clean
from chainlift.lift.neighbours.domain_xml import read_disks
from chainlift.lift.tidy import remove_leftovers


def clean_domain(domain: Domain) -> Cleaned:
    """End and undo what killed runs have begun on any disk of a domain, by libvirt.

    QEMU's monitor is looked at only where somebody has used it past libvirt before: only there can anything be left,
    and libvirt calls the domain tainted from then on.

    :raise InputError: if there is no such domain, or it does not run.
    :raise QemuError: in libvirt's words, if it refuses.
    :raise UnknownStateError: if what a killed run has left cannot be finished or undone.
    """
    virsh = Virsh(domain)
    if not virsh.is_running():
        raise InputError(f"{domain} does not run", hint="for a domain at rest, name its image instead")
    done = clean(domain) if was_told_by_monitor(virsh) else Cleaned()
    for disk in read_disks(virsh.ask("dumpxml")):
        if disk.device != "disk" or disk.format != "qcow2" or disk.path is None or disk.kind not in ("file", "block"):
            continue
        try:
            done.undone += put_in_order(virsh, disk.target)
            if (overlay := commit_back(virsh, disk.target)) is not None:
                done.undone.append(f"merged {overlay} back into the layer below")
            remove_leftovers(disk.path)
            if disk.path not in done.looked_at:
                done.looked_at.append(disk.path)
        except InputError as error:
            done.refused[disk.path] = str(error)
    return done


def was_told_by_monitor(virsh: Virsh) -> bool:
    """Whether commands were given to QEMU past libvirt since the domain was started."""
    try:
        return "custom monitor" in virsh.ask("dominfo").replace("-", " ")
    except ChainliftError:
        return True
