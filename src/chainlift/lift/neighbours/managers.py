"""Recognises images whose chain a manager of virtual machines keeps its own record of.

A manager that has written down what stands on what is not asked by a change of a header, and acts on its record
afterwards. It is recognised by where an image lies and what it is called, and only where that is sure.
``docs/managers.md`` says what was read of each, and where.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
#: A volume of Proxmox's with its guest's number, and the snapshots of it where they are volumes of their own.
_PVE: Final = r"(?:vm|base)-(?P<vmid>\d+)-[^/]+"
_PVE_NAME: Final = rf"(?:snap-[^/]+-|snap_)?{_PVE}"


@dataclass(frozen=True)
class Manager:
    """A manager that keeps a record of an image's chain."""

    name: str
    #: The part of the image's name that it was recognised by.
    why: str
    #: What to do instead, a phrase.
    advice: str

    def __str__(self) -> str:
        return f"{self.name} keeps a record of this chain ({self.why})"


@dataclass(frozen=True)
class _Rule:
    name: str
    pattern: re.Pattern[str]
    advice: str
    #: A file that is beside the image, by its name: ``{}.meta``; None: the image's name is enough.
    beside: str | None = None


_PVE_ADVICE: Final = "delete snapshots in Proxmox VE, or work under the running guest"
_NOVA_ADVICE: Final = "leave the chain to nova, which removes base files that no disk names; flatten a copy instead"
_CINDER_ADVICE: Final = "delete snapshots in cinder, which refuses a volume whose backing file is not named as its own"
_OVIRT_ADVICE: Final = "merge snapshots in the engine, which writes down the parent of each volume"
_ONE_ADVICE: Final = "delete snapshots in OpenNebula, which writes new names into all of them when it copies a disk"
_CLOUDSTACK_ADVICE: Final = "delete snapshots in CloudStack, whose database has the path of each volume"

_RULES: Final = (
    _Rule("Proxmox VE", re.compile(rf"/images/(?P<directory>\d+)/{_PVE_NAME}\.(?:qcow2|raw|vmdk)$"), _PVE_ADVICE),
    _Rule("Proxmox VE", re.compile(rf"^/dev/[^/]+/{_PVE_NAME}$"), _PVE_ADVICE),
    _Rule("oVirt", re.compile(rf"^/rhev/data-center/.+/images/{_UUID}/{_UUID}$"), _OVIRT_ADVICE),
    _Rule("oVirt", re.compile(rf"^/run/vdsm/storage/{_UUID}/{_UUID}/{_UUID}$"), _OVIRT_ADVICE),
    _Rule("oVirt", re.compile(rf"/{_UUID}/images/{_UUID}/{_UUID}$"), _OVIRT_ADVICE, beside="{}.meta"),
    _Rule("OpenStack nova", re.compile(rf"/instances/{_UUID}/disk(?:\.[a-z0-9]+)?$"), _NOVA_ADVICE),
    _Rule("OpenStack nova", re.compile(r"/_base/[0-9a-f]{40}(?:_\d+)?$"), _NOVA_ADVICE),
    _Rule("OpenStack cinder", re.compile(rf"/volume-{_UUID}(?:\.(?:tmp-snap-)?{_UUID})?$"), _CINDER_ADVICE),
    _Rule("OpenNebula", re.compile(r"/datastores/\d+/\d+/disk\.\d+(?:\.snap/\d+)?$"), _ONE_ADVICE),
    _Rule("OpenNebula", re.compile(r"/datastores/\d+/[0-9a-f]{32}(?:\.snap/\d+)?$"), _ONE_ADVICE),
    _Rule(
        "CloudStack",
        re.compile(rf"^/mnt/{_UUID}/(?:snapshots/\d+/\d+/)?{_UUID}(?:\.qcow2)?$"),
        _CLOUDSTACK_ADVICE,
    ),
)


def manager_of(path: str | os.PathLike[str]) -> Manager | None:
    """Return the manager that keeps a record of an image's chain, as far as its name shows one.

    Looked at are the name that was given, where its symbolic links lead, and a device's name in its volume group.
    """
    for name in _names(os.path.abspath(path)):  # noqa: PTH100 - links stay
        for rule in _RULES:
            match = rule.pattern.search(name)
            if match is None or not _is_consistent(match):
                continue
            if rule.beside is None or Path(rule.beside.format(name)).exists():
                return Manager(rule.name, match[0].lstrip("/") if match.start() else match[0], rule.advice)
    return None


def _is_consistent(match: re.Match[str]) -> bool:
    """Whether the directory of a guest's images is that of the guest in the name, where there is one."""
    found = match.groupdict()
    return found.get("directory") in (None, found.get("vmid"))


def _names(path: str) -> Iterator[str]:
    yield path
    real = os.path.realpath(path)
    if real != path:
        yield real
    directory, _, device = real.rpartition("/")
    if directory != "/dev":
        return
    try:
        mapped = Path("/sys/block", device, "dm/name").read_text().strip()
    except OSError:
        return
    if (volume := logical_volume(mapped)) is not None:
        yield volume


def logical_volume(mapped: str) -> str | None:
    """Return the ordinary name of a logical volume that the device mapper calls so: ``vg-my--volume``.

    It writes group and volume with a dash between them, and a dash within either twice (``dm_build_dm_name()`` of LVM).
    """
    group, separator, volume = mapped.replace("--", "\0").partition("-")
    return f"/dev/{group}/{volume}".replace("\0", "-") if separator else None
