"""Backing file names as they stand in headers, and where they lead."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chainlift.chain import ChainPolicy, open_chain
from chainlift.chain.names import parse_name
from chainlift.errors import ImageError, InputError
from chainlift.lift.record.manifest import Pointer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.image import read_header

if TYPE_CHECKING:
    from chainlift.chain import Chain
    from chainlift.chain.names import Reference
    from chainlift.qcow2.header import Header

#: The qcow2 header's limit for a backing file name (qcow2 spec, section "Header", backing_file_size).
MAX_BACKING_NAME: Final = 1023
_POLICY: Final = ChainPolicy()


def read_pointer(path: Path) -> tuple[Header, Pointer | None]:
    """Read an image's header and the backing file it names.

    :raise ImageError: if it is no qcow2 image.
    """
    file = ImageFile(str(path))
    try:
        header = read_header(file)
    finally:
        file.close()
    if header.backing_file is None:
        return header, None
    return header, Pointer(name=os.fsdecode(header.backing_file), format=header.backing_format)


def named_in(image: Path) -> str | None:
    """Return the backing file name that stands in an image's header now.

    :raise ImageError: if it is no qcow2 image.
    """
    pointer = read_pointer(image)[1]
    return None if pointer is None else pointer.name


def open_pointer(image: Path, pointer: Pointer, policy: ChainPolicy = _POLICY) -> Chain:
    """Open the chain that a backing name in this image leads to.

    :param image: whose name it is; relative ones are relative to it.
    :param pointer: the name.
    :param policy: where the chain may lead.
    :raise ImageError: if a layer cannot be opened.
    """
    return open_chain(refer(image, pointer), policy)


def refer(image: Path, pointer: Pointer) -> Reference:
    """Return what a backing name in this image refers to.

    :raise InputError: if it is no local file.
    """
    return parse_name(pointer.name, named_in=str(image), file_format=pointer.format)


def led_to(image: Path, pointer: Pointer) -> Path:
    """Return the file that a backing name in this image leads to: of an index its descriptor.

    :raise InputError: if it is no local file.
    """
    return Path(os.path.abspath(refer(image, pointer).path))  # noqa: PTH100 - links in the name stay, as for QEMU


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
    """Return the descriptor of the index that a backing name stands for, or None where it is none.

    QEMU writes such a name in its own way (``block-stream`` down to the index, say), without the read-only options.
    """
    if not name.startswith("json:"):
        return None
    try:
        reference = parse_name(name)
    except InputError:
        return None
    return Path(reference.path) if reference.is_descriptor else None
