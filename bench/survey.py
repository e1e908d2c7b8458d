"""How long a survey of 10,000 images takes: ``python bench/survey.py [--root DIR] [deep] [wide] [fleet]``.

``deep``: 100 chains of about 100 layers over 10 templates; ``wide``: 10,000 clones of 10 templates; ``fleet``: disks
with as many snapshots as disks have, most few and some hundreds. Files are sparse: 3 GB on disk each.
"""

from functools import partial
from pathlib import Path

import numpy as np
from command import build, run
from map_and_inspect import CHAINLIFT, measure, show
from snapshots import many_images

from chainlift.qcow2.writer import write_image

GIB = 1 << 30
CLUSTER = 65536
IMAGES = 10_000


def wide(directory: Path) -> None:
    """Write 10,000 images: 10 templates, and clones of them."""
    _write(directory, [1] * (IMAGES - 10))


def fleet(directory: Path) -> None:
    """Write 10,000 images: 10 templates, and clones with 0 to 800 snapshots each, of which most have few."""
    generator = np.random.default_rng(7)
    lengths: list[int] = []
    while (left := IMAGES - 10 - sum(lengths)) > 0:
        lengths.append(min(left, 1 + int(min(800, generator.pareto(0.9) * 2))))
    _write(directory, lengths)


def _write(directory: Path, lengths: list[int]) -> None:
    directory.mkdir(parents=True)
    generator = np.random.default_rng(1)
    options = {"virtual_size": 20 * GIB}
    for template in range(10):
        write_image(directory / f"template{template}.qcow2", clusters=np.arange(0, 20_000, 2), **options)
    for number, length in enumerate(lengths):
        place = directory / f"vm{number:04}"
        place.mkdir()
        below = f"../template{number % 10}.qcow2"
        for layer in range(length):
            chosen = np.sort(generator.choice(GIB // CLUSTER, 24, replace=False))
            name = "disk.qcow2" if layer == length - 1 else f"snap{layer:03}.qcow2"
            write_image(place / name, clusters=chosen, backing_file=below, backing_format="qcow2", **options)
            below = name


BUILDERS = {"deep": many_images, "wide": wide, "fleet": fleet}


def bench(what: str, root: Path) -> None:
    directory = root / what
    if not directory.exists():
        build(what, directory)
    lines = root / f"{what}.jsonl"
    lines.unlink(missing_ok=True)
    look = ["survey", str(directory), "--no-libvirt", "--json", str(lines)]
    show(f"survey of {what}", measure([*CHAINLIFT, *look], patience_s=0))
    draw = ["survey", "--before", str(lines), "--report", str(root / f"{what}.html")]
    show("its report", measure([*CHAINLIFT, *draw], patience_s=0))


if __name__ == "__main__":
    run(__doc__, {name: partial(bench, name) for name in BUILDERS}, BUILDERS)
