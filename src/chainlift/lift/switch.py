"""The switch: what an image's header names as its backing file, changed by QEMU's own tool under its own locks.

Nothing else of a lift touches the image, and this is always the last step. ``qemu-img rebase -u`` rewrites the header
cluster in one write; the chain is not opened.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from chainlift.errors import ImageError, OperationError
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.record.source import read_pointer
from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from pathlib import Path

    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu


def require_writable(image: Path) -> None:
    """Refuse an image whose header cannot be changed, before anything is built for it.

    :raise ImageError: if it is read-only, or lies on a read-only file system.
    """
    if not os.access(image, os.W_OK):
        raise ImageError("cannot be written to", path=image, hint="a lift changes the name in its header")


def switch_pointer(qemu: Qemu, image: Path, pointer: Pointer) -> None:
    """Make the image name this backing file.

    :raise ImageError: if a QEMU has the image open.
    :raise QemuError: if qemu-img refuses.
    :raise OperationError: if the header does not say it afterwards.
    """
    refuse_if_open(image)
    options = f"driver=qcow2,file.driver=file,file.filename={str(image).replace(',', ',,')}"
    backing_format = [] if pointer.format is None else ["-F", pointer.format]
    command = qemu.command("img", "rebase", "-u", "--image-opts", *backing_format, "-b", pointer.name, options)
    run_tool(command, environment=qemu.environment)
    header_pointer = read_pointer(image)[1]
    if header_pointer is None or header_pointer.name != pointer.name:
        raise OperationError("qemu-img rebase -u did not change the backing file name", path=image)
    _sync(image)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
