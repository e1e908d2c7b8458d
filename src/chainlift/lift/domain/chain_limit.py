"""Refusing to leave a domain on a chain that its libvirt does not take, and warning of one that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chainlift.chain.libvirt_limits import MOST_SNAPSHOTS, libvirt_limit, near_limit
from chainlift.errors import ImageError
from chainlift.host.virsh import daemon_version
from chainlift.lift.record.pointer import open_pointer, read_pointer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.chain.layer import Layer
    from chainlift.host.virsh import Domain


def refuse_longer(version: tuple[int, ...], below: Sequence[Layer], image: Path) -> None:
    """Refuse a chain with which libvirt would not start the domain again, or end it when its daemon is restarted.

    :param version: libvirt's.
    :param below: what the active layer is to stand on, from the top.
    :param image: for the error.
    :raise ImageError: if those are too many.
    """
    limit = libvirt_limit(version, below, above=1)
    if len(below) > limit.longest:
        raise ImageError(
            f"its chain would have {len(below)} layers over the base, and {limit.describe()}",
            path=image,
            hint="squash it instead, or restore it with the domain shut off",
        )


def takes_one_more(version: tuple[int, ...], length: int) -> bool:
    """Whether libvirt takes a snapshot, and knows what to do with a chain that is longer by it.

    :param length: layers over the base, without it.
    """
    return length < libvirt_limit(version).longest


def refuse_one_more(length: int, image: Path) -> None:
    """Refuse a snapshot that libvirt does not take.

    :param length: layers over the base, without it.
    :param image: for the error.
    :raise ImageError: if those are too many.
    """
    if length >= MOST_SNAPSHOTS:
        raise ImageError(
            f"its chain has {length} layers over the base, and libvirt takes no snapshot more",
            path=image,
            hint="squash it with the domain shut off",
        )


def warn_of_index(domain: Domain, image: Path) -> str | None:
    """Return what an index does not help against: libvirt, which does not know of it, starts with the chain.

    :param image: the active layer.
    :return: None where the chain is not near the limit of the libvirt that runs the domain.
    :raise ImageError: if the chain cannot be read.
    """
    pointer = read_pointer(image)[1]
    if pointer is None:
        return None
    with open_pointer(image, pointer) as chain:
        limit = near_limit(chain.layers, above=1, version=daemon_version(domain.uri))
        if limit is None:
            return None
        return (
            f"{limit.describe()}; an index does not change the chain of {len(chain.layers)} that it starts with: "
            f"chainlift squash --libvirt {domain.name} makes that shorter"
        )
