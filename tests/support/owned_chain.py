"""A chain in which every block says which layer it is of, so that a reader can check each byte."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.writer import write_image

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER = 65536
BLOCK = 4096


def content(layer: int, cluster: int) -> bytes:
    """What a layer of a test chain has in a cluster: every 4 KiB block says whose it is."""
    return b"".join(
        struct.pack("<QQ", layer + 1, cluster * (CLUSTER // BLOCK) + block) * (BLOCK // 16)
        for block in range(CLUSTER // BLOCK)
    )


@dataclass
class OwnedChain:
    """A chain on disk and what a reader must see."""

    directory: Path
    #: Bottom first; the last is the active layer, which is empty.
    files: list[Path]
    virtual_size: int
    #: For each 4 KiB block the layer that has it, plus one; 0 for zeros.
    owner: np.ndarray = field(repr=False)

    @property
    def active(self) -> Path:
        return self.files[-1]

    def block(self, number: int) -> bytes:
        owner = int(self.owner[number])
        return struct.pack("<QQ", owner, number) * (BLOCK // 16) if owner else bytes(BLOCK)


def everything(chain: OwnedChain) -> bytes:
    """Return what the whole disk must read as."""
    return b"".join(chain.block(number) for number in range(chain.virtual_size // BLOCK))


def make_owned_chain(
    directory: Path,
    length: int,
    *,
    virtual_size: int = 32 << 20,
    per_layer: int = 8,
    absolute_names: bool = False,
) -> OwnedChain:
    """Write a chain of so many layers over a base, with an empty active layer on top.

    :param per_layer: how many clusters a layer has; the base has half of all.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(length)
    clusters = virtual_size // CLUSTER
    owner = np.zeros(virtual_size // BLOCK, np.int64)
    files: list[Path] = []
    for layer in range(length + 1):
        path = directory / (f"layer{layer:04}.qcow2" if layer < length else "active.qcow2")
        count = clusters // 2 if layer == 0 else 0 if layer == length else per_layer
        mine = np.sort(rng.choice(clusters, count, replace=False))
        write_image(
            path,
            virtual_size=virtual_size,
            backing_file=(str(files[-1]) if absolute_names else files[-1].name) if files else None,
            backing_format="qcow2" if files else None,
            clusters=mine,
            data=lambda cluster, layer=layer: content(layer, cluster),
        )
        for cluster in mine:
            owner[cluster * (CLUSTER // BLOCK) : (cluster + 1) * (CLUSTER // BLOCK)] = layer + 1
        files.append(path)
    return OwnedChain(directory, files, virtual_size, owner)
