"""The chains that validate the model; no calibration has seen one of them. Written without QEMU, with true data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chainlift.cost.specimens import compressible
from chainlift.qcow2.writer import write_image

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
KIB = 1 << 10


@dataclass(frozen=True)
class Spec:
    """A chain: how long, where its data are, and what is special."""

    name: str
    length: int
    #: Where most of the data are: ``base``, ``middle``, ``top``, or ``everywhere``.
    where: str
    cluster: int = 64 * KIB
    disk: int = 96 * MIB
    #: ``raw base``, ``zlib layers``, ``zstd layers``, ``subclusters``, ``clone``, or nothing.
    special: str = ""
    l2_cache_bytes: int | None = None
    #: What is measured of it: of a chain that takes long to open, less.
    sizes: tuple[str, ...] = ("4k", "64k", "4m")
    #: Whether an index is put over it before it is measured.
    lift: str = "none"


SPECS = (
    Spec("3, data in the middle", 3, "middle"),
    Spec("4, in the base", 4, "base"),
    Spec("14, at the top", 14, "top"),
    Spec("50, everywhere, 16 KiB clusters", 50, "everywhere", cluster=16 * KIB),
    Spec("70, everywhere, 256 KiB clusters", 70, "everywhere", cluster=256 * KIB),
    Spec("65, in the base, 2 MiB clusters", 65, "base", cluster=2 * MIB, disk=192 * MIB),
    Spec("20, in the middle, 2 MiB clusters", 20, "middle", cluster=2 * MIB, disk=192 * MIB),
    Spec("15 over a raw base", 15, "base", special="raw base"),
    Spec("110 over a raw base", 110, "everywhere", special="raw base"),
    Spec("24, zlib layers", 24, "everywhere", special="zlib layers"),
    Spec("30, subclusters", 30, "everywhere", special="subclusters"),
    Spec("55, linked clone", 55, "everywhere", special="clone"),
    Spec("140, linked clone", 140, "top", special="clone"),
    Spec("7, small L2 caches", 7, "base", cluster=16 * KIB, l2_cache_bytes=24 * KIB, sizes=("4k",)),
    Spec("33, small L2 caches", 33, "base", cluster=16 * KIB, l2_cache_bytes=24 * KIB, sizes=("4k",)),
    Spec("85, in the middle", 85, "middle"),
    Spec("160, everywhere", 160, "everywhere"),
    Spec("240, in the base", 240, "base"),
    Spec("330, at the top", 330, "top"),
    Spec("470, in the middle", 470, "middle", sizes=("4k", "4m")),
    Spec("620, everywhere", 620, "everywhere", sizes=("4k",)),
    Spec("800, in the base", 800, "base", sizes=("4k",)),
    Spec("190 through an index", 190, "everywhere", lift="index"),
    Spec("75 through an index", 75, "everywhere", lift="index"),
)


def drawn(seed: int, count: int = 16) -> tuple[Spec, ...]:
    """Draw chains by chance, each other than all others: nobody has chosen what they are like."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        length = round(float(np.exp(random.uniform(np.log(3), np.log(500)))))
        where = str(random.choice(("base", "middle", "top", "everywhere")))
        special = str(random.choice(("", "", "", "raw base", "subclusters", "clone", "zlib layers")))
        # Of large clusters many layers would fill the disk.
        sizes = (16, 32, 64, 64, 64, 128, 256, *((1024, 2048) if length < 60 else ()))
        cluster = 64 * KIB if special in ("subclusters", "zlib layers") else int(random.choice(sizes)) * KIB
        lift = "index" if not special and length > 10 and random.random() < 0.2 else "none"
        name = f"{number}: {length} layers, data {where}, {cluster // KIB} KiB clusters" + f", {special}" * bool(
            special
        )
        disk = int(random.choice((64, 96, 160))) * MIB
        found.append(
            Spec(
                name + ", index" * (lift == "index"), length, where, cluster, disk, special, lift=lift,
                sizes=("4k",) if length > 300 else ("4k", "64k", "4m"),
            )
        )  # fmt: skip
    return tuple(found)


def build(directory: Path, spec: Spec) -> Path:
    """Write a chain; return its active layer."""
    directory.mkdir()
    random = np.random.default_rng(1000 + spec.length)
    data = random.integers(0, 256, spec.disk, dtype=np.uint8)
    total = spec.disk // spec.cluster
    owned = _owned(spec, random, total)
    base = _base(directory, spec, data, owned[0])
    for number in range(1, spec.length + 1):
        path = directory / f"{number}.qcow2"
        clusters = owned[number]
        below = base if number == 1 else f"{number - 1}.qcow2"
        options = {"virtual_size": spec.disk, "cluster_size": spec.cluster, "backing_file": below}
        options["backing_format"] = "raw" if below.endswith(".raw") else "qcow2"
        if spec.special in ("zlib layers", "zstd layers"):
            content = compressible(len(clusters) * spec.cluster)
            write_image(path, clusters=clusters, data=content, compress=True, compression=spec.special[:4], **options)
            continue
        content = data.reshape(-1, spec.cluster)[clusters].reshape(-1)
        if spec.special == "subclusters":
            bitmaps = random.integers(1, 1 << 32, len(clusters), dtype=np.uint64)
            write_image(path, clusters=clusters, data=content, extended_l2=True, subclusters=bitmaps, **options)
        else:
            write_image(path, clusters=clusters, data=content, **options)
    return directory / f"{spec.length}.qcow2"


def _owned(spec: Spec, random: np.random.Generator, total: int) -> list[np.ndarray]:
    """Return the clusters that each file has, the base's first."""
    everything = np.arange(total)
    few = max(1, total // 200)

    def some(count: int) -> np.ndarray:
        return np.sort(random.choice(everything, min(total, count), replace=False))

    owned = [some(few) for _ in range(spec.length + 1)]
    if spec.where == "base":
        owned[0] = everything
    elif spec.where == "middle":
        owned[0], owned[spec.length // 2] = some(total // 4), some(total * 3 // 4)
    elif spec.where == "top":
        owned[0], owned[spec.length - 1] = some(total // 2), some(total * 2 // 3)
    else:
        owned[0] = some(total * 3 // 4)
        owned[1:] = [some(max(1, total // (2 * spec.length))) for _ in range(spec.length)]
    return owned


def _base(directory: Path, spec: Spec, data: np.ndarray, clusters: np.ndarray) -> str:
    if spec.special == "raw base":
        (directory / "base.raw").write_bytes(data[: spec.disk * 3 // 4].tobytes())
        return "base.raw"
    if spec.special == "clone":
        # The template's disk is smaller than the clone's, and lies elsewhere.
        (directory / "template").mkdir()
        half = clusters[clusters < spec.disk // 2 // spec.cluster]
        write_image(
            directory / "template" / "golden.qcow2", virtual_size=spec.disk // 2, cluster_size=spec.cluster,
            clusters=half, data=data.reshape(-1, spec.cluster)[half].reshape(-1),
        )  # fmt: skip
        return "template/golden.qcow2"
    write_image(
        directory / "0.qcow2", virtual_size=spec.disk, cluster_size=spec.cluster, clusters=clusters,
        data=data.reshape(-1, spec.cluster)[clusters].reshape(-1),
    )  # fmt: skip
    return "0.qcow2"
