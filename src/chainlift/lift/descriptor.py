"""The VMDK descriptor that lays files end to end as one linear space, and the name by which QEMU opens an index.

Traps of QEMU's parser (vmdk_parse_extents in block/vmdk.c), each avoided here: a blank line before the first extent
makes it take that extent twice; the text is read up to 1 MiB; a name is at most 511 characters and ends at a double
quote; an extent that is no multiple of the cluster size would shift the clusters of all that follow.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chainlift.errors import ImageError, OperationError

SECTOR_BYTES: Final = 512
MAX_NAME: Final = 511
#: QEMU reads one byte less than 1 MiB of a descriptor (vmdk_read_desc).
MAX_TEXT_BYTES: Final = (1 << 20) - 1
#: The qcow2 header's limit for a backing file name (qcow2 spec, section "Header", backing_file_size).
MAX_BACKING_NAME: Final = 1023

_EXTENT: Final = re.compile(r'RW (\d+) FLAT "([^"\n]{1,511})" (\d+)')
_HEAD: Final = """\
# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="twoGbMaxExtentFlat"
"""
_TAIL: Final = """\
ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
"""


@dataclass(frozen=True)
class Extent:
    """A piece of a file in the linear space.

    :param name: as it stands in the descriptor: absolute, or relative to the descriptor's directory.
    :param length: bytes in the linear space, a multiple of the cluster size; past the file's end it reads as zeros.
    :param offset: byte in the file where it begins, a multiple of 512.
    """

    name: str
    length: int
    offset: int = 0


def descriptor_text(extents: list[Extent]) -> str:
    """Write the descriptor.

    :raise ImageError: if QEMU could not read a name, or so many of them; the text says which.
    """
    lines = []
    for extent in extents:
        check_name(extent.name)
        if extent.length % SECTOR_BYTES or extent.offset % SECTOR_BYTES or extent.length <= 0:
            raise OperationError(f"an extent of {extent.length} bytes at {extent.offset} is not made of sectors")
        lines.append(f'RW {extent.length // SECTOR_BYTES} FLAT "{extent.name}" {extent.offset // SECTOR_BYTES}\n')
    total = sum(extent.length for extent in extents)
    text = _HEAD + "".join(lines) + _TAIL.format(cylinders=min(total // SECTOR_BYTES // (16 * 63), 16383))
    if len(text.encode(errors="surrogateescape")) > MAX_TEXT_BYTES:
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


def parse_descriptor(text: str) -> list[Extent]:
    """Read a descriptor that :func:`descriptor_text` wrote; anything else in it is refused.

    :raise ImageError: if it is none of ours.
    """
    if not text.startswith(_HEAD):
        raise ImageError("is not a VMDK descriptor of flat extents as chainlift writes it")
    extents = []
    for line in text[len(_HEAD) :].splitlines():
        if line.startswith("ddb."):
            continue
        match = _EXTENT.fullmatch(line)
        if match is None:
            raise ImageError(f"has a line that chainlift does not write: {line[:60]!r}")
        extents.append(Extent(match[2], int(match[1]) * SECTOR_BYTES, int(match[3]) * SECTOR_BYTES))
    return extents


def backing_name(descriptor: Path) -> str:
    """Return the ``json:`` name by which an overlay names the index behind this descriptor.

    Every node says that it is read-only: what asks QEMU for a writable one (commit, ``check -r``) is then refused.

    :param descriptor: absolute path.
    :raise ImageError: if the name is longer than a qcow2 header can hold.
    """
    name = "json:" + json.dumps(
        {
            "driver": "qcow2",
            "read-only": True,
            "file": {
                "driver": "vmdk",
                "read-only": True,
                "file": {"driver": "file", "read-only": True, "filename": str(descriptor)},
            },
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    if len(name.encode(errors="surrogateescape")) > MAX_BACKING_NAME:
        raise ImageError(
            f"the path is too long for a backing file name of {MAX_BACKING_NAME} bytes",
            path=descriptor,
            hint="move the images to a shorter path",
        )
    return name


def index_descriptor(name: str) -> Path | None:
    """Return the descriptor that a backing name stands for, or None where it is not :func:`backing_name`'s form."""
    if not name.startswith("json:"):
        return None
    try:
        options = json.loads(name[len("json:") :])
        found = Path(options["file"]["file"]["filename"])
    except (ValueError, KeyError, TypeError):
        return None
    return found if name == backing_name(found) else None
