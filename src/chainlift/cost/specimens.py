"""Chains that are made to be measured, each to show one of the model's steps; written without QEMU, in a second.

All have true data: of holes the kernel would copy one page of zeros again and again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from chainlift.chain.descriptor import descriptor_text
from chainlift.chain.linear import Extent
from chainlift.qcow2 import tables
from chainlift.qcow2.writer import ImageWriter, write_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from chainlift.cost.parameters import Aio

    Clusters = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

MIB = 1 << 20
DISK_BYTES = 128 * MIB
CLUSTER_BYTES = 64 << 10
#: Lengths at which the plain chain is read.
LENGTHS = (10, 30, 100, 200, 300, 420, 560)
#: A chain of which requests are few.
LONG = 250
#: Files of the indexes, and how many of their clusters lie one after the other.
EXTENTS = (60, 240)
_TOGETHER = 2
#: Between reads of 4 KiB: every one in another cluster, and after some rounds every page.
STEP_BYTES = 260 << 10
#: The same where requests are few: after some thirty all of the disk was come by, and its tables are loaded.
LONG_STEP_BYTES = (4 << 20) + STEP_BYTES


@dataclass(frozen=True)
class Cell:
    """One measurement: a workload on an image."""

    name: str
    #: Of the image below the specimens' directory.
    image: str
    #: Of a request, and from one to the next, in bytes: a multiple, lest one reaches behind the disk's end.
    size: int
    step: int
    aio: Aio = "io_uring"
    #: ``read``, ``write``, or ``flush``: a write with a flush behind it.
    work: str = "read"
    #: Of all L2 caches; None: QEMU's default. The chain is then opened by nested options, so it must be short.
    l2_cache_bytes: int | None = None
    #: A QEMU may have been built without what it needs, or crash of it: then the shipped figure is taken.
    is_optional: bool = False

    @property
    def wakes_threads(self) -> bool:
        """Whether QEMU's main thread is not alone with the work: others are woken, of its pool or the kernel's."""
        return self.aio == "threads" or self.work != "read"


def small_step_bytes(layers: int) -> int:
    """Return how far it is from one read of 4 KiB to the next, in a chain of so many layers."""
    return LONG_STEP_BYTES if layers >= LONG else STEP_BYTES


def cells(lengths: Sequence[int] = LENGTHS) -> list[Cell]:
    """Return what is measured for a calibration, short chains first.

    :param lengths: at which the plain chain is read.
    """
    small, middle, large = (4 << 10, STEP_BYTES), (64 << 10, 320 << 10), (4 * MIB, 4 * MIB)
    return [
        Cell("nothing, 4k", "empty.qcow2", *small),
        Cell("nothing, 4m", "empty.qcow2", *large),
        Cell("one image, 4k", "plain/0.qcow2", *small),
        Cell("one image, 64k", "plain/0.qcow2", *middle),
        Cell("one image, 4m", "plain/0.qcow2", *large),
        Cell("one image, 4k, threads", "plain/0.qcow2", *small, aio="threads"),
        Cell("zlib, 64k clusters", "zlib.qcow2", 4 << 10, 68 << 10),
        Cell("zlib, 16k clusters", "zlib16.qcow2", 4 << 10, 20 << 10),
        Cell("zstd, 64k clusters", "zstd.qcow2", 4 << 10, 68 << 10, is_optional=True),
        *(Cell(f"plain {n}, 4k", f"plain/{n}.qcow2", 4 << 10, small_step_bytes(n)) for n in lengths),
        Cell("without tables 100, 4k", "bare/100.qcow2", *small),
        Cell("pieces 4, 64k", "few/4.qcow2", *middle),
        Cell("pieces 4, 4m", "few/4.qcow2", *large),
        Cell("pieces 60, 64k", "mixed/60.qcow2", *middle),
        Cell("pieces 60, 4m", "mixed/60.qcow2", *large),
        Cell("pieces 200, 4m", "mixed/200.qcow2", *large),
        # Half of each read has no data in any layer: what a piece takes, and what reading a file takes more.
        Cell("subclusters 4, 64k", "cut/4.qcow2", *middle),
        Cell("small clusters 30, 64k", "fine/30.qcow2", *middle),
        Cell("small clusters 30, 4m", "fine/30.qcow2", *large),
        Cell("large clusters 12, 4k", "coarse/12.qcow2", *small),
        Cell("large clusters 12, 4m", "coarse/12.qcow2", *large),
        *(Cell(f"extents {n}, 4k", f"extents{n}/1.qcow2", *small) for n in EXTENTS),
        Cell(f"extents {EXTENTS[-1]}, 4m", f"extents{EXTENTS[-1]}/1.qcow2", *large),
        # Each read is in the next slice of a table, and the cache holds 8 of 16.
        # 10.0 was seen to crash of it (SIGSEGV), now and then.
        *(
            Cell(
                f"small caches {n}, 4k",
                f"fine/{n}.qcow2",
                4 << 10,
                8 * MIB + (20 << 10),
                l2_cache_bytes=32 << 10,
                is_optional=True,
            )
            for n in (4, 30)
        ),
        Cell("write, one image", "written/0.qcow2", 4 << 10, 4 << 10, work="write"),
        Cell("write, 200 layers", "written/200.qcow2", 4 << 10, 4 << 10, work="write"),
        Cell("flush, one image", "written/0.qcow2", 4 << 10, 4 << 10, work="flush"),
        Cell("flush, 200 layers", "written/200.qcow2", 4 << 10, 4 << 10, work="flush"),
    ]


def build(directory: Path, lengths: Sequence[int] = LENGTHS) -> None:
    """Write all images; 1.2 GB."""
    random = np.random.default_rng(1)
    data = random.integers(0, 256, DISK_BYTES, dtype=np.uint8)
    write_image(directory / "empty.qcow2", virtual_size=DISK_BYTES)
    for name, cluster, compression in (
        ("zlib", 64 << 10, "zlib"), ("zlib16", 16 << 10, "zlib"), ("zstd", 64 << 10, "zstd"),
    ):  # fmt: skip
        write_image(
            directory / f"{name}.qcow2", virtual_size=8 * MIB, cluster_size=cluster, clusters=range(8 * MIB // cluster),
            data=compressible(8 * MIB), compress=True, compression=compression,  # type: ignore[arg-type]
        )  # fmt: skip
    plain = directory / "plain"
    plain.mkdir()
    everywhere = np.arange(DISK_BYTES // CLUSTER_BYTES)
    write_image(plain / "0.qcow2", virtual_size=DISK_BYTES, clusters=everywhere, data=data)
    last = [everywhere[-1:] for _ in range(max(lengths))]
    write_layers(plain, last, data)
    for name, layers in (
        ("bare", [everywhere[:0]] * 100),
        ("few", _random_layers(random, everywhere, [len(everywhere) // 4] * 4)),
        ("mixed", _random_layers(random, everywhere, [30] * 60 + [8] * 140)),
    ):
        (directory / name).mkdir()
        (directory / name / "0.qcow2").symlink_to("../plain/0.qcow2")
        write_layers(directory / name, layers, data)
    write_cut_layers(directory / "cut", data[: 32 * MIB])
    fine = directory / "fine"
    fine.mkdir()
    pieces = np.arange(DISK_BYTES // (16 << 10))
    write_image(fine / "0.qcow2", virtual_size=DISK_BYTES, cluster_size=16 << 10, clusters=pieces, data=data)
    some = [np.sort(random.choice(pieces, 60, replace=False)) for _ in range(30)]
    write_layers(fine, some, data, cluster_size=16 << 10)
    coarse = directory / "coarse"
    coarse.mkdir()
    large = np.arange(DISK_BYTES // (2 * MIB))
    write_image(coarse / "0.qcow2", virtual_size=DISK_BYTES, cluster_size=2 * MIB, clusters=large, data=data)
    write_layers(coarse, [large[-1:]] * 12, data, cluster_size=2 * MIB)
    for count in EXTENTS:
        # Of the larger one large reads are measured, too: they take what copying from all of a disk takes.
        write_index(directory / f"extents{count}", count, data if count == EXTENTS[-1] else data[: 32 * MIB])
    written = directory / "written"
    written.mkdir()
    # All of these disks is there to be written over, again and again.
    first = everywhere[: 16 * MIB // CLUSTER_BYTES]
    write_image(written / "0.qcow2", virtual_size=16 * MIB, clusters=first, data=data[: 16 * MIB])
    write_image(
        written / "200.qcow2", virtual_size=16 * MIB, clusters=first, data=data[: 16 * MIB],
        backing_file=f"../plain/{min(199, max(lengths))}.qcow2", backing_format="qcow2",
    )  # fmt: skip


def _random_layers(random: np.random.Generator, clusters: Clusters, counts: Sequence[int]) -> list[Clusters]:
    return [np.sort(random.choice(clusters, count, replace=False)) for count in counts]


def write_layers(
    directory: Path,
    layers: Sequence[Clusters],
    data: Bytes,
    *,
    cluster_size: int = CLUSTER_BYTES,
) -> None:
    """Write layers 1, 2, ... over ``0.qcow2``.

    :param layers: the clusters of each.
    :param data: of the whole disk; every layer has the same.
    """
    whole = data.reshape(-1, cluster_size)
    for number, clusters in enumerate(layers, 1):
        write_image(
            directory / f"{number}.qcow2", virtual_size=len(data), cluster_size=cluster_size, clusters=clusters,
            data=whole[clusters].reshape(-1), backing_file=f"{number - 1}.qcow2", backing_format="qcow2",
        )  # fmt: skip


def write_cut_layers(directory: Path, data: Bytes) -> None:
    """Write four layers over an empty image; each cluster of the second has half of its subclusters, drawn by chance.

    :param directory: is made, beside ``empty.qcow2``.
    :param data: of the whole disk.
    """
    directory.mkdir()
    (directory / "0.qcow2").symlink_to("../empty.qcow2")
    count = len(data) // CLUSTER_BYTES
    bitmaps = np.random.default_rng(4).integers(1, 1 << 32, count, dtype=np.uint64)
    for number, has in enumerate((0, count, 0, 0), 1):
        write_image(
            directory / f"{number}.qcow2", virtual_size=len(data), clusters=range(has),
            data=data[: has * CLUSTER_BYTES], extended_l2=True, subclusters=bitmaps[:has],
            backing_file=f"{number - 1}.qcow2", backing_format="qcow2",
        )  # fmt: skip


def write_index(directory: Path, count: int, data: Bytes) -> None:
    """Write an image whose disk is all over its file, and an overlay that reads it by way of many extents.

    :param directory: is made.
    :param count: of extents.
    :param data: what the disk reads.
    """
    directory.mkdir()
    image, descriptor = directory / "0.qcow2", directory / "0.vmdk"
    pieces = len(data) // CLUSTER_BYTES // _TOGETHER
    clusters = np.random.default_rng(3).permutation(pieces)[:, None] * _TOGETHER + np.arange(_TOGETHER)
    with ImageWriter(image, virtual_size=len(data)) as writer:
        offset = writer.reserve(clusters.size)
        writer.write(offset, data.data)
        entries = tables.standard_entries(offset + clusters.ravel() * CLUSTER_BYTES, copied=True)
        writer.set_entries(np.arange(clusters.size), entries)
        writer.finish()
    ends = np.linspace(0, -(-image.stat().st_size // CLUSTER_BYTES), count + 1).astype(int) * CLUSTER_BYTES
    descriptor.write_text(
        descriptor_text([Extent(image.name, high - low, low) for low, high in pairwise(ends.tolist())])
    )
    file = {"driver": "vmdk", "file": {"driver": "file", "filename": str(descriptor.absolute())}}
    write_image(
        directory / "1.qcow2", virtual_size=len(data), backing_format="qcow2",
        backing_file=f"json:{json.dumps({'driver': 'qcow2', 'file': file})}",
    )  # fmt: skip


def compressible(count: int) -> bytes:
    """Return bytes that get some three times smaller, as programs and text do."""
    random = np.random.default_rng(2)
    words = [random.integers(97, 123, size).astype(np.uint8).tobytes() for size in random.integers(3, 12, 4000)]
    picked = random.zipf(1.3, count // 5) % len(words)
    return b" ".join(words[n] for n in picked.tolist())[:count].ljust(count, b" ")
