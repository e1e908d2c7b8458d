"""What a lift costs and gains, against stock tools on the same files, in one run.

Builds chains like the experiment's (20 GiB, 6 GiB of data in the base, 75 changed clusters a layer), then measures

- building the index: wall and CPU time of the whole command, and its peak memory;
- 4 KiB strided and 64 KiB sequential reads by ``qemu-img bench`` through a chain of length 1, the whole chain, its
  index, an index of at most 64 extents, and a squash: user CPU time, wall time and QEMU's peak memory;
- squash and flatten against ``qemu-img convert -W -m 16 -t none -T none``.

Ratios are of one run; everything is read once before it is measured. Prints JSON lines as it goes, then the ratios.

    .venv/bin/python bench/lift/bench_lift.py --directory DIR [--length 300] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
from pathlib import Path

import numpy as np

from chainlift.host.process import run_tool
from chainlift.lift.lifting import lift_index, lift_squash
from chainlift.lift.restore import restore_lift
from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import find_qemu
from chainlift.units import format_ratio, parse_size

CLUSTER = 65536
DIRECT = ["-t", "none", "-T", "none", "-W", "-m", "16"]


def build(directory: Path, length: int, size: int, data: int) -> None:
    generator = np.random.default_rng(1)
    pool = generator.integers(0, 256, 64 << 20, dtype=np.uint8).tobytes()
    total = size // CLUSTER
    chosen = np.sort(generator.choice(total, data // CLUSTER, replace=False))

    def content(cluster: int) -> bytes:
        at = cluster * 4099 % (len(pool) - CLUSTER)
        return pool[at : at + CLUSTER]

    write_image(directory / "0.qcow2", virtual_size=size, clusters=chosen, data=content)
    for number in range(1, length + 1):
        clusters = np.sort(generator.choice(total, 75, replace=False))
        write_image(
            directory / f"{number}.qcow2", virtual_size=size, clusters=clusters, data=content,
            backing_file=f"{number - 1}.qcow2", backing_format="qcow2",
        )  # fmt: skip


def active(directory: Path, length: int) -> Path:
    """A chain's active layer of its own: empty, so that it can be lifted and thrown away."""
    path = directory / f"active-{length}.qcow2"
    path.unlink(missing_ok=True)
    with (directory / f"{length}.qcow2").open("rb") as below:
        below.seek(24)
        size = int.from_bytes(below.read(8), "big")
    write_image(path, virtual_size=size, backing_file=f"{length}.qcow2", backing_format="qcow2")
    return path


class Bench:
    def __init__(self, qemu_name: str, repeat: int) -> None:
        self.qemu = find_qemu(qemu_name, need=["img"])
        self.repeat = repeat
        self.rows: dict[tuple[str, str], dict[str, float]] = {}

    def run(self, what: str, on: str, argv: list[str], *, repeat: int | None = None) -> dict[str, float]:
        done = [run_tool(argv, environment=dict(self.qemu.environment)) for _ in range(repeat or self.repeat)]
        row = {
            "wall_s": statistics.median(d.wall_s for d in done),
            "user_s": statistics.median(d.cpu_user_s for d in done),
            "cpu_s": statistics.median(d.cpu_user_s + d.cpu_sys_s for d in done),
            "peak_rss_bytes": max(d.peak_rss_bytes for d in done),
        }
        self.keep(what, on, row)
        return row

    def keep(self, what: str, on: str, row: dict[str, float]) -> None:
        self.rows[what, on] = row
        sys.stdout.write(json.dumps({"what": what, "on": on, **{k: round(v, 4) for k, v in row.items()}}) + "\n")
        sys.stdout.flush()

    def reads(self, on: str, image: Path, size: int, requests: int, sequential: int) -> None:
        step = 260 * 1024
        common = ["bench", "-f", "qcow2", "-t", "writeback"]
        strided = ["-d", "1", "-c", str(requests), "-s", "4096", "-S", str(step), str(image)]
        self.run("4k", on, self.qemu.command("img", *common, *strided))
        count = min(size, sequential) // 65536
        self.run("64k", on, self.qemu.command("img", *common, "-d", "1", "-c", str(count), "-s", "64k", str(image)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="made, and removed afterwards")
    parser.add_argument("--length", type=int, default=300)
    parser.add_argument("--size", type=parse_size, default=20 << 30)
    parser.add_argument("--data", type=parse_size, default=6 << 30)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--sequential", type=parse_size, default=1 << 30)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--qemu", default="host")
    parser.add_argument("--no-copies", action="store_true", help="leave squash and flatten against convert out")
    options = parser.parse_args()
    directory, length = options.directory.absolute(), options.length
    directory.mkdir(parents=True)
    random.seed(1)
    try:
        measure(options, directory, length)
    finally:
        shutil.rmtree(directory)


def measure(options: argparse.Namespace, directory: Path, length: int) -> None:
    bench = Bench(options.qemu, options.repeat)
    build(directory, length, options.size, options.data)
    chainlift = [sys.executable, "-m", "chainlift"]
    short, image = active(directory, 0), active(directory, length)
    for path in directory.glob("*.qcow2"):
        with path.open("rb", buffering=0) as stream:
            while stream.read(4 << 20):
                pass
    reading = (options.size, options.requests, options.sequential)
    bench.reads("length 1", short, *reading)
    bench.reads("chain", image, *reading)
    for _ in range(options.repeat):
        restored = bench.run("build index", "chain", [*chainlift, "index", str(image)], repeat=1)
        restore_lift(image, bench.qemu, clean=True)
    assert restored
    lift_index(image, bench.qemu)
    bench.reads("index", image, *reading)
    restore_lift(image, bench.qemu, clean=True)
    manifest = lift_index(image, bench.qemu, copy_budget_bytes=(length - 60) * 76 * CLUSTER)
    bench.keep("extents", "index of 64", {"extents": manifest.extents, "copied_bytes": manifest.copied_bytes})
    bench.reads("index of 64", image, *reading)
    restore_lift(image, bench.qemu, clean=True)
    lift_squash(image, bench.qemu)
    bench.reads("squash", image, *reading)
    restore_lift(image, bench.qemu, clean=True)
    if not options.no_copies:
        copies(bench, directory, chainlift, short, image)
    for what in ("4k", "64k"):
        for on in ("chain", "index", "index of 64", "squash"):
            row, one = bench.rows[what, on], bench.rows[what, "length 1"]
            chain = bench.rows[what, "chain"]
            bench.keep(
                f"ratios {what}", on,
                {
                    "user_of_length_1": row["user_s"] / max(one["user_s"], 0.001),
                    "wall_of_length_1": row["wall_s"] / one["wall_s"],
                    "times_cheaper_than_chain_user": chain["user_s"] / max(row["user_s"], 0.001),
                    "memory_over_length_1_of_chains": (row["peak_rss_bytes"] - one["peak_rss_bytes"])
                    / max(1, chain["peak_rss_bytes"] - one["peak_rss_bytes"]),
                },
            )  # fmt: skip


def copies(bench: Bench, directory: Path, chainlift: list[str], short: Path, image: Path) -> None:
    out = directory / "out.qcow2"
    for on, source in (("length 1", short), ("chain", image)):
        for what, argv in (
            ("convert", bench.qemu.command("img", "convert", "-O", "qcow2", *DIRECT, str(source), str(out))),
            ("flatten", [*chainlift, "flatten", str(source), str(out)]),
        ):
            done = []
            for _ in range(options_repeat(bench)):
                out.unlink(missing_ok=True)
                done.append(bench.run(what, on, argv, repeat=1))
            bench.keep(f"{what} (median)", on, {key: statistics.median(d[key] for d in done) for key in done[0]})
            out.unlink(missing_ok=True)
        ratio = bench.rows["convert (median)", on]["wall_s"] / bench.rows["flatten (median)", on]["wall_s"]
        sys.stdout.write(f"flatten is {format_ratio(ratio)} as fast as convert on {on}\n")
    # The middle alone: convert with -B keeps the base.
    base = directory / "0.qcow2"
    keep_base = ["-B", str(base), "-F", "qcow2"]
    out.unlink(missing_ok=True)
    bench.run("convert -B base", "chain", bench.qemu.command(
        "img", "convert", "-O", "qcow2", *DIRECT, *keep_base, str(image), str(out)), repeat=1)  # fmt: skip
    out.unlink(missing_ok=True)
    bench.run("squash", "chain", [*chainlift, "squash", str(image)], repeat=1)
    restore_lift(image, bench.qemu, clean=True)


def options_repeat(bench: Bench) -> int:
    return min(bench.repeat, 3)


if __name__ == "__main__":
    main()
