"""The VMDK descriptor that lays files end to end as one linear space.

Traps of QEMU's parser (vmdk_parse_extents in block/vmdk.c), each avoided here: a blank line before the first extent
makes it take that extent twice; the text is read up to 1 MiB; a name is at most 511 characters and ends at a double
quote; an extent that is no multiple of the cluster size would shift the clusters of all that follow. And one of its
I/O: with ``aio=io_uring``, 7.2 hangs in a read that reaches past a file's end, so the text is as long as some sectors.
"""

from __future__ import annotations

from typing import Final

from chainlift.chain.linear import DESCRIPTOR_HEAD, MAX_DESCRIPTOR_BYTES, Extent
from chainlift.errors import ImageError, OperationError
from chainlift.qcow2.layout import SECTOR_SIZE

MAX_NAME: Final = 511

#: The largest sector of a disk.
_BLOCK: Final = 4096

_TAIL: Final = """\
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
"""


def descriptor_text(extents: list[Extent]) -> str:
    """Write the descriptor.

    :raise ImageError: if QEMU could not read a name, or so many of them; the text says which.
    """
    lines = []
    for extent in extents:
        check_name(extent.name)
        if extent.length % SECTOR_SIZE or extent.offset % SECTOR_SIZE or extent.length <= 0:
            raise OperationError(f"an extent of {extent.length} bytes at {extent.offset} is not made of sectors")
        lines.append(f'RW {extent.length // SECTOR_SIZE} FLAT "{extent.name}" {extent.offset // SECTOR_SIZE}\n')
    total = sum(extent.length for extent in extents)
    text = DESCRIPTOR_HEAD + "".join(lines) + _TAIL.format(cylinders=min(total // SECTOR_SIZE // (16 * 63), 16383))
    text += "\n" * (-len(text.encode(errors="surrogateescape")) % _BLOCK)
    if len(text.encode(errors="surrogateescape")) > MAX_DESCRIPTOR_BYTES:
        raise ImageError(
            f"the names of {len(extents)} layers do not fit into the 1 MiB that QEMU reads of a VMDK descriptor",
            hint="give --copy-budget so that fewer layers remain, or use squash",
        )
    return text


def check_name(name: str) -> None:
    """Refuse a name that a descriptor cannot carry.

    :raise ImageError: naming the layer.
    """
    if '"' in name or "\n" in name or "\r" in name or "\0" in name:
        what = "has a double quote or a line break in its name, which a VMDK descriptor cannot carry"
    elif len(name.encode(errors="surrogateescape")) > MAX_NAME:
        what = f"has a name of more than {MAX_NAME} bytes, which a VMDK descriptor cannot carry"
    else:
        return
    raise ImageError(what, path=name, hint="rename the layer (and rebase -u what lies on it), or use squash")
