"""What it costs to delete snapshots, against `qemu-img rebase` on the same files, in one run.

The chain is that of bench_lift.py: 20 GiB, 6 GiB of data in the base, 75 changed clusters a layer, 300 layers.

prune     `chainlift prune` to every tenth snapshot, against `qemu-img rebase` of each of these onto the one below it,
          one after another from the base up (each then has the shortest chain under it that it can have), and
          deleting the others; and against copying as many bytes as prune says it has copied, in pieces of a cluster
          from all over those files to a new one, synced. Wall and CPU time of the commands, and the peak memory of ours
drop      `chainlift drop` of one snapshot in the middle, against `qemu-img rebase` of the one above it

Every snapshot that is left is compared with what it was by a digest of what our reader reads at 20,000 places.
Prints JSON lines as it goes, then each target and what was measured. Takes some minutes and 16 GB.

With --length, --per-layer and --run the layers hold other amounts of data: 100, 1024 and 16 are 64 MiB in each of 100
layers, in pieces of 1 MiB.

    .venv/bin/python bench/lift/bench_prune.py --directory DIR [--part drop] [--rebased N] [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from bench_lift import CHAINLIFT, CLUSTER, QUICK, Bench, Scale, active, build, layers, warm

from chainlift.chain import open_chain

PARTS = ("prune", "drop")
EVERY = 10


def digest(image: Path) -> str:
    """What an image reads, at places that are the same for every image of its size."""
    found = hashlib.sha256()
    with open_chain(image) as chain:
        places = np.random.default_rng(7).integers(0, chain.virtual_size // 512, 40)
        for place in np.sort(places).tolist():
            length = min(500 * 512, chain.virtual_size - place * 512)
            found.update(chain.read(place * 512, length))
    return found.hexdigest()


def linked(source: Path, directory: Path) -> None:
    """Make the same chain once more, of files of its own but for the base, which nobody writes to."""
    directory.mkdir()
    for path in source.iterdir():
        if path.name == "0.qcow2":
            (directory / path.name).symlink_to(path)
        else:
            shutil.copyfile(path, directory / path.name)
    os.sync()


def copy_rate_s(files: list[Path], count: int, out: Path) -> float:
    """Copy so many clusters from all over some files to a new one, in order, and sync it."""
    descriptors = [os.open(path, os.O_RDONLY) for path in files]
    began = time.monotonic()
    with out.open("wb", buffering=0) as stream:
        for number in range(count):
            descriptor = descriptors[number % len(descriptors)]
            at = number // len(descriptors) * CLUSTER % max(CLUSTER, os.fstat(descriptor).st_size - CLUSTER)
            os.sendfile(stream.fileno(), descriptor, at, CLUSTER)
        os.fsync(stream.fileno())
    taken = time.monotonic() - began
    for descriptor in descriptors:
        os.close(descriptor)
    out.unlink()
    return taken


def measure_prune(bench: Bench, source: Path, directory: Path, rebased: int) -> None:
    length = bench.scale.length
    kept = list(range(EVERY, length + 1, EVERY))
    place = directory / "prune"
    linked(source, place)
    image = active(place, length, bench.scale.size)
    before = {number: digest(place / f"{number}.qcow2") for number in kept[:: len(kept) // 5]}
    keep = [word for number in kept for word in ("--keep", str(place / f"{number}.qcow2"))]
    warm(layers(place, length))
    row = bench.command("prune", f"{length} to {len(kept)}", [*CHAINLIFT, "prune", str(image), *keep])
    assert {path.name for path in place.glob("[0-9]*")} == {f"{number}.qcow2" for number in (0, *kept)}
    assert {number: digest(place / f"{number}.qcow2") for number in before} == before
    written = sum((place / f"{number}.qcow2").stat().st_blocks * 512 for number in kept)
    shutil.rmtree(place)

    linked(source, place)
    files = layers(place, length)[1:]
    warm(files)
    copied = copy_rate_s(files, written // CLUSTER, place / "copy")
    bench.keep("copying as many bytes", f"{length} to {len(kept)}", {"wall_s": copied, "bytes": written})
    rebases = []
    for below, number in zip([0, *kept], kept[:rebased], strict=False):
        argv = ["rebase", "-f", "qcow2", "-F", "qcow2", "-b", f"{below}.qcow2", str(place / f"{number}.qcow2")]
        rebases.append(bench.command("rebase", f"{number} onto {below}", bench.qemu.command("img", *argv)))
    stock, stock_cpu = (sum(each[key] for each in rebases) * len(kept) / len(rebases) for key in ("wall_s", "cpu_s"))
    row_of_all = {"wall_s": stock, "cpu_s": stock_cpu, "measured": len(rebases)}
    bench.keep("rebase of all", f"{length} to {len(kept)}", row_of_all)
    shutil.rmtree(place)
    text = f"prune of {length} to {len(kept)}"
    bench.target(f"{text} against qemu-img rebase", stock / row["wall_s"], 20, at_least=True)
    bench.target(f"{text} against qemu-img rebase, CPU", stock_cpu / row["cpu_s"], 20, at_least=True)
    bench.target(f"{text}, of the time of copying as many bytes", row["wall_s"] / copied, 1, at_least=False)
    bench.target(f"{text}, memory", row["peak_rss_bytes"] / 1e6, 150, at_least=False, unit=" MB")


def measure_drop(bench: Bench, source: Path, directory: Path) -> None:
    length, place = bench.scale.length, directory / "drop"
    linked(source, place)
    image = active(place, length, bench.scale.size)
    warm(layers(place, length))
    rows = []
    for number in range(length // 2, length // 2 + 2 * bench.repeat, 2):
        before = digest(place / f"{number + 1}.qcow2")
        rows.append(bench.command("drop (run)", str(number), [*CHAINLIFT, "drop", str(image), f"{number}.qcow2"]))
        assert digest(place / f"{number + 1}.qcow2") == before
    row = bench.median("drop", f"one of {length}", rows)
    number = length // 2 - 10
    argv = ["rebase", "-f", "qcow2", "-F", "qcow2", "-b", f"{number - 1}.qcow2", str(place / f"{number + 1}.qcow2")]
    stock = bench.command("rebase", f"one of {length}", bench.qemu.command("img", *argv))
    shutil.rmtree(place)
    bench.target(f"drop of one of {length}, wall", row["wall_s"], 1, at_least=False, unit=" s")
    bench.target(f"drop of one of {length} against qemu-img rebase", stock["wall_s"] / row["wall_s"], 1, at_least=True)
    bench.target(f"drop of one of {length}, memory", row["peak_rss_bytes"] / 1e6, 150, at_least=False, unit=" MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="made, and removed afterwards")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this; without: everything")
    parser.add_argument("--quick", action="store_true", help="all of it in small, to see that it works")
    parser.add_argument("--rebased", type=int, default=10_000, metavar="N",
                        help="let qemu-img rebase the lowest N only, and count all at their rate")  # fmt: skip
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--length", type=int, help="layers over the base")
    parser.add_argument("--per-layer", type=int, help="clusters of 64 KiB in each")
    parser.add_argument("--run", type=int, help="of them that follow each other")
    parser.add_argument("--data", type=int, metavar="GIB", help="in the base")
    parser.add_argument("--qemu", default="host")
    options = parser.parse_args()
    options.aio = "threads"
    package = Path(__file__).parents[2] / "src" / "chainlift"
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    directory, parts = options.directory.absolute(), options.part or PARTS
    chosen = {"length": options.length, "per_layer": options.per_layer, "run": options.run}
    chosen["data"] = options.data and options.data << 30
    scale = replace(QUICK if options.quick else Scale(), **{key: n for key, n in chosen.items() if n is not None})
    bench = Bench(options, scale)
    directory.mkdir(parents=True)
    try:
        source = directory / "chain"
        source.mkdir()
        build(source, bench.scale.length, bench.scale)
        if "drop" in parts:
            measure_drop(bench, source, directory)
        if "prune" in parts:
            measure_prune(bench, source, directory, options.rebased)
    finally:
        shutil.rmtree(directory)
        sys.stdout.write("\n".join(bench.verdicts) + "\n")


if __name__ == "__main__":
    main()
