"""What an image at rest names, changed by stock QEMU: it takes the lock, and the header is its own work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import OperationError
from chainlift.host.durable import sync_path
from chainlift.lift.record.pointer import named_in
from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from chainlift.lift.record.manifest import Pointer
    from chainlift.qemu.binary import Qemu


def name_backing_file(qemu: Qemu, image: Path, pointer: Pointer) -> None:
    """Make the image name this backing file.

    :param qemu: whose qemu-img writes.
    :param image: whose header is changed.
    :param pointer: what it is to name.
    :raise ImageError: if a QEMU has the image open.
    :raise QemuError: if qemu-img refuses.
    :raise OperationError: if the header does not say it afterwards.
    """
    real = os.path.realpath(image)
    driver = "host_device" if Path(real).is_block_device() else "file"
    options = f"driver=qcow2,file.driver={driver},file.filename={real.replace(',', ',,')}"
    backing_format = [] if pointer.format is None else ["-F", pointer.format]
    command = qemu.command("img", "rebase", "-u", "--image-opts", *backing_format, "-b", pointer.name, options)
    run_tool(command, environment=qemu.environment)
    if named_in(image) != pointer.name:
        raise OperationError("qemu-img rebase -u did not change the backing file name", path=image)
    try:
        sync_path(image)
    except OSError as error:
        raise OperationError(f"its header could not be synced: {error.strerror}", path=image) from error
