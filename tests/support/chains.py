"""Random chains of every kind that a lift has to get right, made without QEMU."""

from __future__ import annotations

import random
import zlib
from typing import TYPE_CHECKING

import numpy as np

from chainlift.qcow2.writer import write_image

if TYPE_CHECKING:
    from pathlib import Path


def make_chain(directory: Path, seed: int, *, length: int | None = None, size: int | None = None) -> Path:
    """Make a chain in a new directory; return its active layer.

    Layers differ in version, cluster size, subclusters, compression, and virtual size (also odd ones).
    """
    rng = random.Random(seed)
    directory.mkdir()
    disk = size or rng.choice([1 << 20, 3 << 20, (5 << 20) + 512 * rng.randrange(200)])
    common = rng.choice([4096, 16384, 65536])
    name: str | None = None
    backing_format = None
    if rng.random() < 0.4:
        name, backing_format = "base.raw", "raw"
        (directory / name).write_bytes(_content(seed, rng.randrange(1, disk + 70000)))
    layers = length if length is not None else rng.randrange(2, 7)
    for number in range(layers + (name is None)):
        path = directory / f"layer{number}.qcow2"
        is_active = number == layers - (name is not None and backing_format == "raw")
        cluster = common if rng.random() < 0.7 else rng.choice([4096, 16384, 65536, 131072])
        version = 2 if rng.random() < 0.15 else 3
        extended = version == 3 and cluster >= 16384 and rng.random() < 0.25
        virtual = disk if rng.random() < 0.7 or is_active else max(512, disk // 512 * rng.randrange(1, 9) // 6 * 512)
        clusters = -(-virtual // cluster)
        chosen = sorted(rng.sample(range(clusters), min(clusters, rng.randrange(0, 12))))
        zeros = [] if version == 2 else [c for c in chosen if rng.random() < 0.2]
        data = [c for c in chosen if c not in zeros]
        compress = not extended and rng.random() < 0.35
        subclusters = None
        if extended:
            alloc = np.array([rng.getrandbits(32) for _ in data], dtype=np.uint64)
            zero = np.array([rng.getrandbits(32) & ~int(a) for a in alloc], dtype=np.uint64)
            subclusters = alloc | (zero << np.uint64(32))
        write_image(
            path,
            virtual_size=virtual,
            cluster_size=cluster,
            version=version,
            extended_l2=extended,
            compression="zstd" if version == 3 and rng.random() < 0.4 else "zlib",
            backing_file=name,
            backing_format=backing_format,
            clusters=data,
            data=lambda c, n=number, size=cluster, packed=compress: _content(seed * 1000 + n * 100 + c, size, packed),
            compress=compress and bool(data),
            subclusters=subclusters,
            zero_clusters=zeros,
        )
        name, backing_format = path.name, "qcow2"
    assert name is not None
    return directory / name


def plain_chain(directory: Path, length: int = 4, name: str = "layer{}.qcow2") -> Path:
    """Make a chain of so many layers over a base of 2 MiB; return its active layer.

    Every layer has a cluster of its own, one that all have, and hides one of the base.

    :param name: what a layer is called by its number.
    """
    directory.mkdir(exist_ok=True)
    backing = None
    for number in range(length + 1):
        path = directory / name.format(number)
        clusters = [number, 10, 20 + number] if number else list(range(32))
        write_image(
            path,
            virtual_size=4 << 20,
            clusters=clusters,
            data=lambda c, n=number: bytes([(n * 40 + c) % 251]) * 65536,
            backing_file=backing,
            backing_format=backing and "qcow2",
        )
        backing = path.name
    return path


def _content(seed: int, length: int, compressible: bool = False) -> bytes:
    rng = random.Random(zlib.crc32(str(seed).encode()))
    if compressible:
        return (rng.randbytes(37) * (length // 37 + 1))[:length]
    return rng.randbytes(length)
