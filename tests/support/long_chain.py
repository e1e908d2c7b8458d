"""Chains of empty layers, made in no time."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from chainlift.qcow2.writer import write_image

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def make_long_chain(directory: Path, length: int, base: str = "qcow2") -> list[Path]:
    """Make a chain of so many empty layers in a new directory; return all files, the base first.

    :param base: ``qcow2``, ``raw``, or ``bitmap``: a qcow2 image with one. It has data in its first cluster.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "base"]
    if base == "raw":
        files[0].write_bytes(b"B" * 65536 + bytes(MIB - 65536))
    else:
        write_image(files[0], virtual_size=MIB, clusters=[0], data=b"B" * 65536)
    if base == "bitmap":
        subprocess.run(["qemu-img", "bitmap", "--add", files[0], "one"], check=True)
    for number in range(1, length + 1):
        backing_format = "raw" if number == 1 and base == "raw" else "qcow2"
        files.append(directory / f"layer{number}.qcow2")
        write_image(files[-1], virtual_size=MIB, backing_file=str(files[-2]), backing_format=backing_format)
    return files
