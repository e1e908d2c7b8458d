"""One layer of a chain: a qcow2 image, or a raw file or block device at the bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.chain.linear import ExtentsFile
from chainlift.qcow2.layout import SECTOR_SIZE

if TYPE_CHECKING:
    from chainlift.chain.names import Reference
    from chainlift.qcow2.file import ImageFile
    from chainlift.qcow2.image import Image


@dataclass(frozen=True)
class Layer:
    """One layer."""

    #: As QEMU would print it: backing names joined to the overlay's directory, symbolic links as they are.
    path: str
    #: ``qcow2`` or ``raw``.
    format: str
    #: The file itself (the one with the metadata, where data lies in another).
    file: ImageFile
    #: None for a raw layer.
    image: Image | None
    #: Whether the format was said by nobody, and found by looking at the content.
    probed: bool
    #: The backing file's name as it stands in the header (or was given in a ``json:`` name); None at the bottom.
    backing_name: str | None
    #: The header's backing format.
    backing_format: str | None
    #: How it was opened: by which name, and what of its header that name overrides.
    reference: Reference

    @property
    def extents(self) -> int:
        """How many files this layer points into, where it is an index made by a lift; else 0."""
        return len(self.file.extents) if isinstance(self.file, ExtentsFile) else 0

    @property
    def virtual_size(self) -> int:
        """Bytes of the disk; QEMU rounds a raw file up to whole sectors, which read as zeros."""
        if self.image is None:
            return -(-self.file.size // SECTOR_SIZE) * SECTOR_SIZE
        return self.image.header.virtual_size

    @property
    def cluster_size(self) -> int | None:
        """Bytes in a cluster; None for a raw layer."""
        return None if self.image is None else self.image.header.cluster_size

    @property
    def unit_size(self) -> int | None:
        """Bytes in what can be allocated by itself: a subcluster or a cluster; None for a raw layer."""
        return None if self.image is None else self.image.header.subcluster_size

    @property
    def data_file(self) -> ImageFile:
        """The file that host offsets of data are offsets in."""
        return self.file if self.image is None else self.image.data_file
