"""How long a chain libvirt takes: the one table of what is known of its releases, and what it means for a chain.

Tried with 9.0 (QEMU 7.2), 11.3 (10.0) and 12.8 (11.1):

- A chain has at most 200 images. At the start of a domain libvirt reads the headers, and refuses one more
  (``virStorageSourceGetMetadataRecurse()``: "self-referential or too deeply nested"); so it does a snapshot that would
  make one more ("backing chains more than 200 layers deep are not supported").
- From 10.8 (json-c instead of yajl) to 11.10 an answer of QEMU's may nest 32 levels deep. That of ``query-block`` has a
  level for each image, and the description of a layer has some of its own. A domain with more does not start ("failed
  to parse JSON: nesting too deep"). Snapshots are taken all the same. Then a restart of libvirt's daemon **ends the
  domain**, and whoever asks for statistics of its disks (domblkinfo, domblkstat, domstats) puts libvirt out of order
  for it: block jobs fail from then on with the same words. Until then its block copy, block pull and block commit
  work. A saved domain is not restored. 12.0 takes 200 images again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from chainlift import facts
from chainlift.host.libvirt_version import libvirt_version
from chainlift.qcow2.layout import Autoclear, CryptMethod, ExtensionType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chainlift.chain.layer import Layer

#: Layers over the base, up to which every libvirt takes snapshots; and with which most start a domain.
MOST_SNAPSHOTS: Final = 199
#: Layers over a plain qcow2 base where nesting is what ends it.
_LONGEST_NESTED: Final = 24
#: Told from this share of the longest chain on.
_NEAR: Final = 0.75
#: Layers over the base up to which no libvirt has anything to say.
_SHORT: Final = 12


@dataclass(frozen=True)
class LibvirtLimit:
    """How long one chain may become for one libvirt."""

    version: tuple[int, ...]
    #: Layers over the base with which a domain still starts.
    longest: int
    #: Whether a daemon that is restarted ends a domain with more.
    ends_domains: bool

    def is_near(self, length: int) -> bool:
        """Whether a chain of so many layers over the base should be shortened."""
        return length >= self.longest * _NEAR

    def describe(self) -> str:
        """Say it in a phrase."""
        release = ".".join(map(str, self.version[:2]))
        ends = ", and ends one that runs when its daemon is restarted" if self.ends_domains else ""
        return f"libvirt {release} starts no domain on more than {self.longest} layers{ends}"


def libvirt_limit(version: tuple[int, ...], layers: Sequence[Layer] = (), *, above: int = 0) -> LibvirtLimit:
    """Return how long a chain may become.

    :param version: libvirt's.
    :param layers: the chain, from the top; none: one of plain qcow2 images.
    :param above: further plain layers on top of it.
    """
    if not facts.NESTS.holds(version):
        return LibvirtLimit(version, MOST_SNAPSHOTS, ends_domains=False)
    # What is deepest now stays the deepest when there are more on top.
    deepest = max((depth + _own_levels(layer) for depth, layer in enumerate(layers)), default=0) + above
    length = max(len(layers) - 1, 0) + above
    return LibvirtLimit(version, min(_LONGEST_NESTED - (deepest - length), MOST_SNAPSHOTS), ends_domains=True)


def near_limit(
    layers: Sequence[Layer], *, above: int = 0, version: tuple[int, ...] | None = None
) -> LibvirtLimit | None:
    """Return the limit of a libvirt, where a chain is near it; None anywhere else.

    :param layers: the chain, from the top.
    :param above: further plain layers on top of it.
    :param version: libvirt's; None: of the one that is installed here.
    """
    length = len(layers) - 1 + above
    if length < _SHORT or (version := version or libvirt_version()) is None:
        return None
    limit = libvirt_limit(version, layers, above=above)
    return limit if limit.is_near(length) else None


def _own_levels(layer: Layer) -> int:
    """Return how many levels more than a plain qcow2 image's a layer's description has (``ImageInfoSpecific``)."""
    if layer.image is None:
        return -1
    header = layer.image.header
    if ExtensionType.BITMAPS in header.extensions and Autoclear.BITMAPS in header.autoclear_features:
        return 3
    return {CryptMethod.LUKS: 3, CryptMethod.AES: 1}.get(header.crypt_method, 0)
