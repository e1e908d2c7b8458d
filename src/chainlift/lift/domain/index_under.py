"""Whether a domain's disk stands on an index, which its monitor was told of, past libvirt."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from chainlift.errors import ChainliftError
from chainlift.lift.live.layers import layers_under
from chainlift.lift.record.manifest import read_manifest
from chainlift.lift.record.pointer import read_pointer

if TYPE_CHECKING:
    from chainlift.lift.live.seen_process import SeenProcess


def stands_on_index(process: SeenProcess, image: Path) -> bool:
    """Whether QEMU reads a disk through an index, which was made by its monitor and is known to nobody else.

    A QEMU that has an index open says so by its open files; whose it is, by the layers in its record.
    """
    layers: set[tuple[int, int]] | None = None
    for path in _open_indexes(process):
        try:
            manifest = read_manifest(path.with_suffix(".json"))
        except ChainliftError:
            continue
        if layers is None:
            found = (layer.path.stat() for layer in layers_under(image, read_pointer(image)[1]))
            layers = {(status.st_dev, status.st_ino) for status in found}
        if any((layer.identity.device, layer.identity.inode) in layers for layer in manifest.layers):
            return True
    return False


def _open_indexes(process: SeenProcess) -> list[Path]:
    found = []
    with suppress(OSError):
        for entry in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(OSError):
                path = entry.readlink()
                if path.suffix == ".vmdk" and path.with_suffix(".json").exists():
                    found.append(path)
    return found
