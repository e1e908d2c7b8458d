"""LUKS inside qcow2, made by QEMU."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: What opens such an image: ``--object SECRET``, and ``encrypt.key-secret=key0``.
SECRET = "secret,id=key0,data=abc"


def create_encrypted(path: Path, *more: str, size: str | None = "1M") -> None:
    """Create an encrypted image.

    QEMU times its key derivation, and gives up on a machine that is too busy for that ("Unable to get accurate CPU
    usage"): it is asked until it can.

    :param more: further options of ``qemu-img create``.
    """
    options = "encrypt.format=luks,encrypt.key-secret=key0,encrypt.iter-time=10"
    command = ["qemu-img", "create", "-q", "--object", SECRET, "-f", "qcow2", "-o", options, *more, str(path)]
    for _ in range(30):
        done = subprocess.run([*command, *([size] if size else [])], capture_output=True, text=True)
        if "accurate CPU usage" not in done.stderr:
            break
        time.sleep(0.2)
    assert done.returncode == 0, done.stderr
