"""What a QEMU can do that matters to chainlift, asked of the QEMU itself."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chainlift.qemu.process import run_tool

if TYPE_CHECKING:
    from chainlift.qemu.binary import Qemu


@dataclass(frozen=True)
class Features:
    """What one QEMU can do.

    :ivar blockdev_reopen: the stable command ``blockdev-reopen`` is there (6.1 and newer): a live pivot is possible.
    :ivar vmdk: the VMDK driver is built in: an index can be read.
    """

    blockdev_reopen: bool
    vmdk: bool


def probe_features(qemu: Qemu) -> Features:
    """Ask a QEMU's system emulator and qemu-img what they know.

    :raise QemuError: if one of them does not run.
    """
    dialogue = "".join(f"{json.dumps({'execute': c})}\n" for c in ("qmp_capabilities", "query-commands", "quit"))
    machine = ("-machine", "none", "-nodefaults", "-display", "none", "-qmp", "stdio")
    environment = qemu.environment
    commands = run_tool(
        qemu.command("system", *machine), environment=environment, input_bytes=dialogue.encode(), timeout_s=60
    ).stdout
    formats = run_tool(qemu.command("img", "--help"), environment=environment, timeout_s=60).stdout
    # One line after "Supported formats:" in older releases, wrapped after "Supported image formats:" in newer ones.
    listed = re.search(r"^Supported (?:image )?formats:(.*?)^\S", formats + "\n.", re.MULTILINE | re.DOTALL)
    known = listed[1].split() if listed else []
    return Features(blockdev_reopen='"blockdev-reopen"' in commands, vmdk="vmdk" in known)
