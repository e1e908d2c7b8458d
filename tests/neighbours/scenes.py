"""How a world begins: a chain of three to six layers and a linked clone, of several kinds."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.neighbours.world import World

MIB = 1 << 20


def fill(world: World, image: Path, layer: int, size: int, *, compressed: bool = False) -> None:
    """Write a few pieces with patterns of this layer's own."""
    rng = random.Random(layer)
    commands = []
    for number in range(3):
        length = rng.choice([4096, 65536, 131072])
        offset = rng.randrange(max(1, (size - length) // 4096)) * 4096
        if compressed:
            offset, length = offset // 65536 * 65536, 65536
        pattern = 16 * layer + number + 1
        commands += ["-c", f"write {'-c ' if compressed else ''}-P {pattern} {offset} {length}"]
    world.sh("qemu-io", "-f", "qcow2", *commands, image)


def create(world: World, image: Path, backing: str | None, size: int | None, options: str = "") -> None:
    back = [] if backing is None else ["-b", backing, "-F", "raw" if backing.endswith(".raw") else "qcow2"]
    more = ["-o", options] if options else []
    world.sh("qemu-img", "create", "-q", "-f", "qcow2", *back, *more, image, *([] if size is None else [size]))


def _chain(
    world: World, names: list[str], size: int, *, absolute: bool = False, options: tuple[str, ...] = ("",)
) -> None:
    pool = world.root / "pool"
    for number, name in enumerate(names):
        below = names[number - 1] if number else None
        named = f"{pool}/{below}" if below and absolute else below
        if name.endswith(".raw"):
            (pool / name).write_bytes(random.Random(number).randbytes(size))
            world.script.append(f"head -c {size} /dev/urandom > {pool / name}")
            continue
        create(world, pool / name, named, None if below else size, options[number % len(options)])
        fill(world, pool / name, number, size)


def plain(world: World) -> None:
    _chain(world, ["base.qcow2", "n1.qcow2", "n2.qcow2", "n3.qcow2"], 2 * MIB)
    create(world, world.root / "clones/n1.qcow2", "../pool/n2.qcow2", None)
    fill(world, world.root / "clones/n1.qcow2", 9, 2 * MIB)


def absolute(world: World) -> None:
    """A raw base of an odd size, absolute names, small clusters."""
    names = ["base.raw", "n1.qcow2", "n2.qcow2", "n3.qcow2", "n4.qcow2"]
    _chain(world, names, MIB + 512 * 77, absolute=True, options=("cluster_size=4k", "cluster_size=64k"))
    create(world, world.root / "clones/n1.qcow2", f"{world.root}/pool/n2.qcow2", None)


def mixed(world: World) -> None:
    """Cluster sizes, subclusters, an old version, a layer that is compressed, and one that is short."""
    kinds = ("cluster_size=64k", "cluster_size=16k", "extended_l2=on,cluster_size=64k", "compat=0.10", "")
    _chain(world, ["base.qcow2", "n1.qcow2", "n2.qcow2", "n3.qcow2", "n4.qcow2"], MIB, options=kinds)
    pool = world.root / "pool"
    create(world, pool / "n5.qcow2", "n4.qcow2", MIB // 2 + 512 * 5)
    create(world, pool / "n6.qcow2", "n5.qcow2", MIB)
    fill(world, pool / "n6.qcow2", 7, MIB, compressed=True)
    create(world, world.root / "clones/n1.qcow2", "../pool/n6.qcow2", None)


def linked(world: World) -> None:
    """OpenNebula's layout: the directory is a link to itself, the disk a link to an image."""
    pool = world.root / "pool"
    world.sh("ln", "-s", ".", pool / "pool")
    for number in range(4):
        below = f"pool/n{number - 1}.qcow2" if number else None
        image = pool / f"n{number}.qcow2"
        if below:
            world.sh("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", image, 2 * MIB)
        else:
            create(world, image, None, 2 * MIB)
        fill(world, image, number, 2 * MIB)
    world.sh("ln", "-s", "pool/n3.qcow2", world.root / "disk.0")
    create(world, world.root / "clones/n1.qcow2", f"{pool}/n2.qcow2", None)


def described(world: World) -> None:
    """A ``json:`` name that takes away what lies below, and one that says no more than a plain name."""
    _chain(world, ["base.qcow2", "n1.qcow2"], 2 * MIB)
    pool = world.root / "pool"
    file = '{"driver":"file","filename":"%s"}'
    for number, backing in ((2, ',"backing":null'), (3, "")):
        inner = file % (pool / f"n{number - 1}.qcow2")
        name = f'json:{{"driver":"qcow2","file":{inner}{backing}}}'
        create(world, pool / f"n{number}.qcow2", name, None)
        fill(world, pool / f"n{number}.qcow2", number, 2 * MIB)
    create(world, pool / "n4.qcow2", "n3.qcow2", None)
    create(world, world.root / "clones/n1.qcow2", f"{pool}/n3.qcow2", None)


def remembering(world: World) -> None:
    """Layers with internal snapshots and bitmaps."""
    _chain(world, ["base.qcow2", "n1.qcow2"], 2 * MIB)
    pool = world.root / "pool"
    world.sh("qemu-img", "snapshot", "-c", "before", pool / "n1.qcow2")
    fill(world, pool / "n1.qcow2", 5, 2 * MIB)
    create(world, pool / "n2.qcow2", "n1.qcow2", None)
    world.sh("qemu-img", "bitmap", "--add", pool / "n2.qcow2", "checkpoint")
    fill(world, pool / "n2.qcow2", 6, 2 * MIB)
    create(world, pool / "n3.qcow2", "n2.qcow2", None)
    create(world, world.root / "clones/n1.qcow2", "../pool/n1.qcow2", None)


SCENES: dict[str, Callable[[World], None]] = {
    scene.__name__: scene for scene in (plain, absolute, mixed, linked, described, remembering)
}
