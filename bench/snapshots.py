"""How `diff` and `tree` compare with what stock tools offer: ``python bench/snapshots.py [--root DIR] [diff] [tree]``.

Ratios are from one run, of CPU time and of wall time; each program's best run counts, as in ``map_and_inspect.py``.
`diff` takes 8 GB of disk.
"""

from pathlib import Path

import numpy as np
from command import build, run
from map_and_inspect import CHAINLIFT, measure, show

from chainlift.qcow2.writer import write_image

GIB = 1 << 30
CLUSTER = 65536
LENGTH = 300


def chain_with_data(directory: Path) -> list[Path]:
    """Write the experiment's chain (20 GiB, 6 GiB of data, 75 clusters changed a layer) unless it is there.

    A layer writes anew what the base has, so that every snapshot reads the same: qemu-img compare stops at the first
    byte that differs, and says nothing of the rest.
    """
    paths = [directory / f"{number}.qcow2" for number in range(LENGTH + 1)]
    if paths[-1].exists():
        return paths
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    pool = generator.integers(0, 256, 64 << 20, dtype=np.uint8).tobytes()
    base = np.sort(generator.choice(20 * GIB // CLUSTER, 6 * GIB // CLUSTER, replace=False))

    def content(cluster: int) -> bytes:
        at = cluster * 4099 % (len(pool) - CLUSTER)
        return pool[at : at + CLUSTER]

    write_image(paths[0], virtual_size=20 * GIB, clusters=base, data=content)
    for number, path in enumerate(paths[1:]):
        chosen = np.sort(generator.choice(base, 75, replace=False))
        write_image(
            path, virtual_size=20 * GIB, clusters=chosen, data=content, backing_file=paths[number].name,
            backing_format="qcow2",
        )  # fmt: skip
    return paths


def many_images(directory: Path) -> list[Path]:
    """Write 10,000 images: 10 templates, on each 10 linked clones with 99 snapshots; 24 clusters changed in 1 GiB."""
    if directory.exists():
        return [directory]
    directory.mkdir(parents=True)
    generator = np.random.default_rng(1)
    options = {"virtual_size": 20 * GIB}
    for template in range(10):
        base = f"template{template}.qcow2"
        write_image(directory / base, clusters=np.arange(0, 40_000, 2), **options)
        for clone in range(10):
            place = directory / f"vm{template}{clone}"
            place.mkdir()
            below = f"../{base}"
            for number in range(100 if clone else 99):
                chosen = np.sort(generator.choice(GIB // CLUSTER, 24, replace=False))
                name = f"{number:03}.qcow2"
                write_image(place / name, clusters=chosen, backing_file=below, backing_format="qcow2", **options)
                below = name
    return [directory]


def bench_tree(root: Path) -> None:
    directory = root / "tree"
    build("tree", directory)
    print("tree: 10,000 images, 1,000 a template")
    for words in (["tree"], ["tree", "--json"]):
        show(f"chainlift {' '.join(words)}", measure([*CHAINLIFT, *words, str(directory)]))
    ask = ["find", str(directory), "-name", "*.qcow2", "-exec", "qemu-img", "info", "-U", "{}", ";"]
    show("qemu-img info of each", measure(ask))


def bench_diff(root: Path) -> None:
    directory = root / "diff"
    build("diff", directory)
    paths = [directory / f"{number}.qcow2" for number in range(LENGTH + 1)]
    print(f"diff: {LENGTH} layers over a base with 6 GiB, 75 clusters changed a layer")
    stock = ["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2"]
    for old in (1, LENGTH - 1):
        images = [str(paths[old]), str(paths[LENGTH])]
        theirs = measure([*stock, *images])
        show(f"qemu-img compare {old} {LENGTH}", theirs)
        show(f"chainlift diff {old} {LENGTH}", measure([*CHAINLIFT, "diff", "--json", *images]), theirs)


BENCHES = {"diff": bench_diff, "tree": bench_tree}
BUILDERS = {"diff": chain_with_data, "tree": many_images}


if __name__ == "__main__":
    run(__doc__, BENCHES, BUILDERS)
