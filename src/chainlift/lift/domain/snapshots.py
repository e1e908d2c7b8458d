"""libvirt's list of snapshots, after a disk was switched: which of them it can still delete, and what of the others.

A snapshot in the list names the overlay that was made for it and, in the definition of the domain as it was then, the
layer below, which has the disk's content of that moment. libvirt deletes a snapshot by merging the one into the other,
and looks for both in the chain (``qemuSnapshotDeleteExternalPrepare()`` in ``qemu_snapshot.c``).
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from chainlift.errors import QemuError
from chainlift.host.filesystem import is_same_file
from chainlift.host.virsh import find_virsh
from chainlift.host.virsh_batch import VirshBatch
from chainlift.host.virsh_shell import quoted
from chainlift.lift.neighbours.domain_xml import disk_of, source_of
from chainlift.units import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chainlift.host.virsh import Virsh

# The prefixes that libvirt itself writes.
ET.register_namespace("qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
_NAMED_AT_MOST = 3
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Place:
    """An overlay and what it stands on."""

    overlay: Path
    below: Path


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of libvirt's list, as far as one disk goes."""

    name: str
    place: Place


def list_snapshots(virsh: Virsh, target: str) -> list[Snapshot]:
    """Return the snapshots of libvirt's list that have an overlay of their own on a disk.

    :raise OperationError: if libvirt does not answer.
    """
    found = []
    for name, text in list_texts(virsh):
        with suppress(ET.ParseError):
            place = _place(ET.fromstring(text), target)
            if place is not None:
                found.append(Snapshot(name, place))
    return found


def follow(virsh: Virsh, target: str, moved: Sequence[tuple[Place, Place]], *, changed: Path | None = None) -> None:
    """Describe snapshots anew whose overlay and layer have others in their place that read the same.

    :param moved: what was in the chain, and what is now.
    :param changed: an image whose header names another file now: what definitions say of the layers below is dropped.
    :raise QemuError: in libvirt's words, if it refuses.
    """
    for name, text in list_texts(virsh):
        root = ET.fromstring(text)
        place = _place(root, target)
        new = None if place is None else next((new for old, new in moved if _is_same(old, place)), None)
        if new is None and (changed is None or not _forget(root, target, changed)):
            continue
        with described_anew(virsh, "snapshot", name) as root:
            if changed is not None:
                _forget(root, target, changed)
            if place is not None and new is not None:
                _move(root, target, place, new)


def say_left(virsh: Virsh, target: str, chain: Sequence[Path], before: Iterable[Path]) -> list[str]:
    """Say which snapshots libvirt cannot delete any more, and how to forget them.

    :param chain: the disk's images now.
    :param before: and before.
    """
    there = list(before)
    left = [
        snapshot.name
        for snapshot in list_snapshots(virsh, target)
        if not _is_in(snapshot.place.overlay, chain) and _is_in(snapshot.place.overlay, there)
    ]
    if not left:
        return []
    names = ", ".join(left[:_NAMED_AT_MOST]) + (", ..." if len(left) > _NAMED_AT_MOST else "")
    have = "has its layer" if len(left) == 1 else "have their layers"
    said = (
        f"{counted(len(left), 'snapshot')} in libvirt's list ({names}) {have} beside the chain now: their content is "
        f"whole, and restore brings them back; to forget one: virsh snapshot-delete {virsh.domain.name} NAME --metadata"
    )
    return [said]


def list_texts(virsh: Virsh, kind: str = "snapshot") -> list[tuple[str, str]]:
    """Return the name and the definition of each snapshot, or checkpoint, each after its parent.

    :param kind: ``snapshot`` or ``checkpoint``.
    :raise QemuError: in libvirt's words, if it refuses.
    """
    names = [name for name in virsh.ask(f"{kind}-list", "--name", "--topological").splitlines() if name]
    batch = VirshBatch(find_virsh(), virsh.domain.uri, _TIMEOUT_S)
    texts = batch.ask([f"{kind}-dumpxml {virsh.uuid} --{kind}name {quoted(name)}" for name in names])
    return [(name, text) for name, text in zip(names, texts, strict=True) if text.strip()]


@contextmanager
def described_anew(virsh: Virsh, kind: str, name: str) -> Iterator[ET.Element]:
    """Give the definition of a snapshot or checkpoint, whole, to be changed; libvirt takes what it is at the end.

    :param kind: ``snapshot`` or ``checkpoint``.
    :raise QemuError: in libvirt's words, if it refuses.
    """
    # With what is not for everybody's eyes: what is left out here would be gone.
    root = ET.fromstring(virsh.ask(f"{kind}-dumpxml", "--security-info", f"--{kind}name", name))
    yield root
    virsh.tell(f"{kind}-create", "/dev/stdin", "--redefine", text=ET.tostring(root, encoding="unicode"))


def _forget(root: ET.Element, target: str, image: Path) -> bool:
    """Drop what the definitions in a snapshot's say of the layers below an image; return whether there was anything."""
    disks = [disk_of(root.find(kind), target) for kind in ("domain", "inactiveDomain")]
    return sum(forget_below(disk, image) for disk in disks if disk is not None) > 0


def forget_below(disk: ET.Element, image: Path) -> bool:
    """Drop what a disk's definition says of the layers below an image; return whether there was anything."""
    element: ET.Element | None = disk
    while element is not None:
        below, path = element.find("backingStore"), source_of(element)
        if path and below is not None and is_same_file(Path(path), image):
            element.remove(below)
            return True
        element = below
    return False


def _place(root: ET.Element, target: str) -> Place | None:
    disk = next((disk for disk in _disks(root) if disk.get("name") == target), None)
    then = disk_of(root.find("domain"), target)
    if disk is None or then is None or disk.get("snapshot") != "external":
        return None
    overlay, below = source_of(disk), source_of(then)
    return None if overlay is None or below is None else Place(Path(overlay), Path(below))


def _move(root: ET.Element, target: str, old: Place, new: Place) -> None:
    for disk in _disks(root):
        if disk.get("name") == target:
            _name(disk, new.overlay)
    for kind in ("domain", "inactiveDomain"):
        then = disk_of(root.find(kind), target)
        if then is not None and is_same_file(Path(source_of(then) or ""), old.below):
            _name(then, new.below)
            # The headers say what is below.
            for store in then.findall("backingStore"):
                then.remove(store)


def _disks(root: ET.Element) -> list[ET.Element]:
    return root.findall("disks/disk")


def _name(disk: ET.Element, file: Path) -> None:
    source = disk.find("source")
    if source is None:
        raise QemuError("libvirt's snapshot names no file")
    source.attrib.pop("dev", None)
    source.set("file", str(file))
    disk.set("type", "file")


def _is_same(one: Place, other: Place) -> bool:
    return is_same_file(one.overlay, other.overlay) and is_same_file(one.below, other.below)


def _is_in(path: Path, chain: Iterable[Path]) -> bool:
    return any(is_same_file(path, layer) for layer in chain)
