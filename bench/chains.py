"""The chains that benchmarks use, written without QEMU: the experiment's shape, longer, and larger."""

import argparse
from pathlib import Path

import numpy as np

from chainlift.qcow2.writer import write_image

GIB = 1 << 30
CLUSTER = 65536


def build(directory: Path, length: int, *, virtual_size: int, base_bytes: int, file_bytes: int, changed: int) -> Path:
    """Write a chain unless it is there; return its active layer.

    The base holds ``base_bytes`` in runs like a file system's; every layer changes ``changed`` clusters at random
    within ``file_bytes``. Data are holes: only metadata matter here.
    """
    active = directory / f"{length}.qcow2"
    if active.exists():
        return active
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(length)
    clusters = virtual_size // CLUSTER
    runs = np.sort(rng.choice(clusters // 64, base_bytes // CLUSTER // 64, replace=False))
    base = (runs[:, None] * 64 + np.arange(64)).ravel()
    write_image(directory / "0.qcow2", virtual_size=virtual_size, clusters=base)
    for index in range(1, length + 1):
        chosen = np.sort(rng.choice(file_bytes // CLUSTER, changed, replace=False))
        write_image(
            directory / f"{index}.qcow2",
            virtual_size=virtual_size,
            clusters=chosen,
            backing_file=f"{index - 1}.qcow2",
            backing_format="qcow2",
        )
    return active


def experiment(root: Path, length: int) -> Path:
    """Return the experiment's chain: 20 GiB, 6 GiB in the base, 75 clusters changed a layer in a 10 GiB file."""
    return build(
        root / f"experiment-{length}",
        length,
        virtual_size=20 * GIB,
        base_bytes=6 * GIB,
        file_bytes=10 * GIB,
        changed=75,
    )


def large(root: Path, length: int) -> Path:
    """Return a sparse chain over 1 TiB: a layer changes 75 clusters anywhere in 1 TiB."""
    return build(root / f"large-{length}", length, virtual_size=1 << 40, base_bytes=GIB, file_bytes=1 << 40, changed=75)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=["experiment", "large"])
    parser.add_argument("root", type=Path)
    parser.add_argument("length", type=int)
    arguments = parser.parse_args()
    shape = experiment if arguments.shape == "experiment" else large
    print(shape(arguments.root, arguments.length))
