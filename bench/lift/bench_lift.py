"""What a lift costs and gains, against stock tools on the same files, in one run.

Builds chains like the experiment's (20 GiB, 6 GiB of data in the base, 75 changed clusters a layer; the chain of 300
is the lower part of that of 1,000) and measures, by part:

index     `chainlift index` at both lengths: wall and CPU time of the whole command, and its peak memory
reads     4 KiB strided (40,000 requests) and 64 KiB sequential, by `qemu-img bench` through a chain of length 1 with
          the same content, the whole chain, its index, an index with the budget that `index` recommends (at most 32
          extents) and a squash: CPU and wall time of the requests alone (QEMU is held between opening and its first
          request), and QEMU's peak memory. --aio threads: with a thread of the pool a request, whose waking takes as
          long as all else that one layer costs; then a single layer is no more than 40 to 90 times cheaper itself
long      the same at 1,000 layers, with fewer requests: one takes 30 ms there
copies    flatten and squash against `qemu-img convert -W -m 16` of the whole chain, with sources in the page cache and
          not in it; convert reads them with direct I/O and (in the cache) also through it, and the faster one counts
          (`convert -B BASE` is no stock squash: it takes the top layer alone and leaves the middle ones out)
verify    `verify --content` of a chain with 2 GiB of data under an index that copies nothing, an index of few extents
          and a squash, against `cat` of all layers and of what the lift has copied; and the comparison through stock
          QEMU before a switch, a sample and all of it (needs a storage daemon)
reflink   flatten and squash of 6 GiB on an XFS in a file (needs root and mkfs.xfs)

Ratios are of one run. Prints JSON lines as it goes, then each target and what was measured. All parts take some ten
minutes and 22 GB.

    .venv/bin/python bench/lift/bench_lift.py --directory DIR [--part reads --part copies ...] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from chainlift.host.process import run_tool
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.build.index import GENTLE_EXTENTS, gentle_budget
from chainlift.lift.compare.stock import compare_stock
from chainlift.lift.flatten import flatten
from chainlift.lift.verbs import index, restore, squash
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.study.host_read import Pattern, host_read

CLUSTER = 65536
PARTS = ("index", "reads", "long", "copies", "verify", "reflink")
CHAINLIFT = [sys.executable, "-m", "chainlift"]
MOST = ["-W", "-m", "16", "-t", "none"]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    length: int = 300
    #: Clusters that each layer has.
    per_layer: int = 75
    #: How many of them follow each other.
    run: int = 1
    long: int = 1000
    size: int = 20 << 30
    data: int = 6 << 30
    #: In the base of the chain that is verified: with its layers there are 2 GiB.
    verified: int = 600 << 20
    requests: int = 40_000
    sequential: int = 1 << 30
    long_requests: int = 1000


QUICK = Scale(
    length=80, long=100, size=1 << 30, data=64 << 20, verified=32 << 20, requests=2000, sequential=64 << 20,
    long_requests=300,
)  # fmt: skip


def build(directory: Path, length: int, scale: Scale) -> None:
    generator = np.random.default_rng(1)
    pool = generator.integers(0, 256, 64 << 20, dtype=np.uint8).tobytes()
    total = scale.size // CLUSTER
    chosen = np.sort(generator.choice(total, scale.data // CLUSTER, replace=False))

    def content(cluster: int) -> bytes:
        at = cluster * 4099 % (len(pool) - CLUSTER)
        return pool[at : at + CLUSTER]

    write_image(directory / "0.qcow2", virtual_size=scale.size, clusters=chosen, data=content)
    for number in range(1, length + 1):
        starts = np.sort(generator.choice(total // scale.run, scale.per_layer // scale.run, replace=False)) * scale.run
        clusters = (starts[:, None] + np.arange(scale.run)).ravel()
        write_image(
            directory / f"{number}.qcow2", virtual_size=scale.size, clusters=clusters, data=content,
            backing_file=f"{number - 1}.qcow2", backing_format="qcow2",
        )  # fmt: skip
    os.sync()


def active(directory: Path, length: int, size: int) -> Path:
    """A chain's active layer of its own: empty, so that it can be lifted and thrown away."""
    path = directory / f"active-{length}.qcow2"
    path.unlink(missing_ok=True)
    write_image(path, virtual_size=size, backing_file=f"{length}.qcow2", backing_format="qcow2")
    return path


def layers(directory: Path, length: int) -> list[Path]:
    return [directory / f"{number}.qcow2" for number in range(length + 1)]


def warm(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while stream.read(4 << 20):
                pass


def cool(paths: list[Path]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


class Bench:
    def __init__(self, options: argparse.Namespace, scale: Scale) -> None:
        self.qemu = find_qemu(options.qemu, need=["img"])
        self.repeat, self.aio = options.repeat, options.aio
        self.scale = scale
        self.rows: dict[tuple[str, str], dict[str, float]] = {}
        self.verdicts: list[str] = []

    def command(self, what: str, on: str, argv: list[str]) -> dict[str, float]:
        done = run_tool(argv, environment=dict(self.qemu.environment))
        row = {"wall_s": done.wall_s, "cpu_s": done.cpu_user_s + done.cpu_sys_s, "peak_rss_bytes": done.peak_rss_bytes}
        return self.keep(what, on, row)

    def keep(self, what: str, on: str, row: dict[str, float]) -> dict[str, float]:
        self.rows[what, on] = row
        sys.stdout.write(json.dumps({"what": what, "on": on, **{k: round(v, 4) for k, v in row.items()}}) + "\n")
        sys.stdout.flush()
        return row

    def median(self, what: str, on: str, rows: list[dict[str, float]]) -> dict[str, float]:
        return self.keep(what, on, {key: statistics.median(row[key] for row in rows) for key in rows[0]})

    def target(self, text: str, measured: float, limit: float, *, at_least: bool, unit: str = "x") -> None:
        held = measured >= limit if at_least else measured <= limit
        relation = ">=" if at_least else "<="
        self.verdicts.append(
            f"{'holds' if held else 'MISSED':7} {text}: {measured:.3g}{unit} ({relation} {limit:g}{unit})"
        )

    def reads(self, on: str, image: Path, *, requests: int, sequential: int, repeat: int | None = None) -> None:
        for pattern in (
            Pattern("4k", 4096, 260 << 10, 1, min(requests, self.scale.size // (260 << 10) * 4)),
            Pattern("64k", CLUSTER, CLUSTER, 1, sequential // CLUSTER),
        ):
            rows = []
            for _ in range(repeat or self.repeat):
                found = host_read(
                    self.qemu, image, pattern, cache="writeback", aio=self.aio, budget_s=1e6, request_s=1e-6
                )
                if found.metrics is None:
                    sys.stdout.write(f"{pattern.variant} on {on}: {found.crash}\n")
                    return
                user = found.metrics.get("cpu_user_s", 0.0)
                kept = ("wall_s", "requests", "peak_rss_bytes", "open_s")
                cpu = {"cpu_s": user + found.metrics.get("cpu_sys_s", 0.0), "cpu_user_s": user}
                rows.append({**cpu, **{key: found.metrics[key] for key in kept}})
            self.median(f"reads {pattern.variant}", on, rows)

    def compare_reads(self, kinds: list[str], one: str, chain: str) -> None:
        for what in ("reads 4k", "reads 64k"):
            if (what, chain) not in self.rows:
                continue
            base, slow = self.rows[what, one], self.rows[what, chain]
            for on in kinds:
                row = self.rows[what, on]
                memory = (row["peak_rss_bytes"] - base["peak_rss_bytes"]) / max(
                    1, slow["peak_rss_bytes"] - base["peak_rss_bytes"]
                )
                self.keep(f"ratios {what}", on, {
                    "cpu_of_length_1": row["cpu_s"] / base["cpu_s"],
                    "wall_of_length_1": row["wall_s"] / base["wall_s"],
                    "cheaper_than_chain_cpu": slow["cpu_s"] / row["cpu_s"],
                    "cheaper_than_chain_cpu_user": slow["cpu_user_s"] / max(row["cpu_user_s"], 1e-3),
                    "cheaper_than_chain_wall": slow["wall_s"] / row["wall_s"],
                    "memory_of_chains": memory,
                })  # fmt: skip


def measure_index(bench: Bench, directory: Path, length: int, limit_s: float) -> None:
    image = active(directory, length, bench.scale.size)
    warm(layers(directory, length))
    rows = []
    for _ in range(max(3, bench.repeat)):
        rows.append(bench.command("index (run)", f"{length} layers", [*CHAINLIFT, "index", str(image)]))
        restore(DiskAtRest(image, bench.qemu), clean=True)
    row = bench.median("index", f"{length} layers", rows)
    bench.target(f"index of {length} layers, wall", row["wall_s"], limit_s, at_least=False, unit=" s")
    bench.target(f"index of {length} layers, memory", row["peak_rss_bytes"] / 1e6, 150, at_least=False, unit=" MB")


def measure_reads(bench: Bench, directory: Path) -> None:
    scale, length = bench.scale, bench.scale.length
    image = active(directory, length, scale.size)
    warm(layers(directory, length))
    amount = {"requests": scale.requests, "sequential": scale.sequential}
    # A chain of length 1 with the same content: where the base alone is hit, fewer requests find data.
    flat, short = directory / "flat.qcow2", directory / "short.qcow2"
    flatten(image, flat)
    write_image(short, virtual_size=scale.size, backing_file=flat.name, backing_format="qcow2")
    warm([flat])
    bench.reads("length 1", short, **amount)
    short.unlink()
    flat.unlink()
    bench.reads("chain", image, **amount, repeat=1)
    manifest = index(DiskAtRest(image, bench.qemu)).manifest
    bench.reads("index", image, **amount)
    budget = gentle_budget([layer.visible_clusters for layer in manifest.layers]) * CLUSTER
    few = index(DiskAtRest(image, bench.qemu), copy_budget_bytes=budget).manifest
    bench.keep("extents", "index of few", {"extents": few.extents, "copied_bytes": few.copied_bytes})
    warm([Path(file.path) for file in few.files])  # what was copied went round the page cache
    bench.reads("index of few", image, **amount)
    restore(DiskAtRest(image, bench.qemu), clean=True)
    squashed = squash(DiskAtRest(image, bench.qemu)).manifest
    warm([Path(file.path) for file in squashed.files])
    bench.reads("squash", image, **amount)
    restore(DiskAtRest(image, bench.qemu), clean=True)
    bench.compare_reads(["index", "index of few", "squash"], "length 1", "chain")
    for what in ("4k", "64k"):
        row, text = bench.rows[f"ratios reads {what}", "index"], f"{what} reads through the index, {length} layers"
        # The kernel's share of a request (the read, two switches of threads) is no smaller at length 1.
        bench.target(f"{text}, QEMU's own CPU", row["cheaper_than_chain_cpu_user"], 40, at_least=True)
        bench.target(f"{text}, CPU with the kernel's", row["cheaper_than_chain_cpu"], 40, at_least=True)
        for on in ("index of few", "squash"):
            row = bench.rows[f"ratios reads {what}", on]
            bench.target(f"{what} reads through {on} over length 1, CPU", row["cpu_of_length_1"], 1.25, at_least=False)
            bench.target(
                f"{what} reads through {on} over length 1, wall", row["wall_of_length_1"], 1.25, at_least=False
            )
    assert few.extents <= GENTLE_EXTENTS
    for on in ("index", "index of few", "squash"):
        share = bench.rows["ratios reads 4k", on]["memory_of_chains"]
        bench.target(f"QEMU's memory through {on}, of the chain's", share, 1 / 20, at_least=False)


def measure_long(bench: Bench, directory: Path) -> None:
    scale, length = bench.scale, bench.scale.long
    short, image = active(directory, 0, scale.size), active(directory, length, scale.size)
    warm(layers(directory, length))
    amount = {"requests": scale.long_requests, "sequential": scale.long_requests * CLUSTER}
    bench.reads("length 1, few", short, **amount)
    bench.reads(f"chain of {length}", image, **amount, repeat=1)
    index(DiskAtRest(image, bench.qemu))
    bench.reads(f"index of {length}", image, **amount)
    restore(DiskAtRest(image, bench.qemu), clean=True)
    bench.compare_reads([f"index of {length}"], "length 1, few", f"chain of {length}")
    for what in ("4k", "64k"):
        row = bench.rows.get((f"ratios reads {what}", f"index of {length}"))
        if row is not None:
            text = f"{what} reads through the index, CPU, {length} layers"
            bench.target(text, row["cheaper_than_chain_cpu"], 150, at_least=True)


def measure_copies(bench: Bench, directory: Path) -> None:
    scale, out = bench.scale, directory / "out.qcow2"
    for length in (0, scale.length):
        image, sources = active(directory, length, scale.size), layers(directory, length)
        on = f"{length or 1} layers"

        def convert(*flags: str, source: Path = image) -> list[str]:
            return bench.qemu.command("img", "convert", "-O", "qcow2", *MOST, *flags, str(source), str(out))

        ours = [*CHAINLIFT, "flatten", str(image), str(out)]
        for state in ("warm", "cold"):
            ways = {"convert -T none": convert("-T", "none"), "flatten": ours}
            if state == "warm":
                ways["convert"] = convert()
            if length:
                ways["squash"] = [*CHAINLIFT, "squash", str(image)]
            walls = {}
            for what, argv in ways.items():
                (warm if state == "warm" else cool)(sources)
                walls[what] = bench.command(f"{what}, {state}", on, argv)["wall_s"]
                out.unlink(missing_ok=True)
                if what == "squash":
                    restore(DiskAtRest(image, bench.qemu), clean=True)
            stock = min(wall for what, wall in walls.items() if what.startswith("convert"))
            for what in sorted(walls.keys() & {"flatten", "squash"}):
                text = f"{what} against convert, {state}, {on}"
                bench.target(text, stock / walls[what], 2 if length else 1, at_least=True)


def measure_verify(bench: Bench, directory: Path) -> None:
    scale = replace(bench.scale, data=bench.scale.verified)
    build(directory, scale.length, scale)
    image, sources = active(directory, scale.length, scale.size), layers(directory, scale.length)
    qemu = find_qemu(bench.qemu.label, need=["img", "storage-daemon"])
    # As a live index chooses: at most 1 GiB is copied to have few extents.
    lifts = {
        "index": lambda: index(DiskAtRest(image, bench.qemu)).manifest,
        "index of few": lambda: index(DiskAtRest(image, bench.qemu), copy_budget_bytes=1 << 30).manifest,
        "squash": lambda: squash(DiskAtRest(image, bench.qemu)).manifest,
    }
    for on, lift in lifts.items():
        manifest = lift()
        copied = [Path(file.path) for file in manifest.files]
        warm([*sources, *copied])
        for what, argv in {
            "cat": ["sh", "-c", 'exec cat -- "$@" >/dev/null', "sh", *map(str, [*sources, *copied])],
            "cat of what was copied": ["sh", "-c", 'exec cat -- "$@" >/dev/null', "sh", *map(str, copied)],
            "verify": [*CHAINLIFT, "verify", str(image)],
            "verify --content": [*CHAINLIFT, "verify", "--content", str(image)],
        }.items():
            rows = [bench.command(f"{what} (run)", on, argv) for _ in range(bench.repeat)]
            bench.median(what, on, rows)
        for what in ("sample", "content"):
            began = time.monotonic()
            done = compare_stock(qemu, image, manifest.original, manifest.lifted, content=what == "content")
            row = {"wall_s": time.monotonic() - began, "pieces": done.pieces, "content_bytes": done.content_bytes}
            bench.keep(f"stock QEMU, {what}", on, row)
        whole, copy = bench.rows["verify --content", on], bench.rows["cat of what was copied", on]
        bench.keep("verify --content without verify", on, {
            "wall_s": whole["wall_s"] - bench.rows["verify", on]["wall_s"],
            "cpu_s": whole["cpu_s"] - bench.rows["verify", on]["cpu_s"],
            "copied_bytes": manifest.copied_bytes, "cat_of_both_sides_cpu_s": 2 * copy["cpu_s"],
        })  # fmt: skip
        text = f"verify --content of {on}, {scale.length} layers"
        bench.target(text, whole["wall_s"], 3, at_least=False, unit=" s")
        restore(DiskAtRest(image, bench.qemu), clean=True)


def measure_reflinks(bench: Bench, directory: Path) -> None:
    scale = bench.scale
    disk, place = directory / "xfs", directory / "mount"
    place.mkdir()
    with disk.open("wb") as stream:
        stream.truncate(max(2 * scale.data, 512 << 20))
    for argv in (["mkfs.xfs", "-q", str(disk)], ["mount", "-o", "loop", str(disk), str(place)]):
        if shutil.which(argv[0]) is None or subprocess.run(argv, capture_output=True, check=False).returncode:
            sys.stdout.write(f"no reflinks measured: {argv[0]} failed (needs root, xfsprogs and a loop device)\n")
            return
    try:
        build(place, 20, scale)
        image = active(place, 20, scale.size)
        on = f"XFS, {scale.data >> 20} MiB"
        for what in ("flatten", "flatten -O raw"):
            out = place / "out"
            row = bench.command(what, on, [*CHAINLIFT, *what.split(), str(image), str(out)])
            out.unlink()
            bench.target(f"{what} with reflinks", row["wall_s"], 2, at_least=False, unit=" s")
        row = bench.command("squash", on, [*CHAINLIFT, "squash", str(image)])
        bench.target("squash with reflinks", row["wall_s"], 2, at_least=False, unit=" s")
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, required=True, help="made, and removed afterwards")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this; without: everything")
    parser.add_argument("--quick", action="store_true", help="all of it in small, to see that it works")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--qemu", default="host")
    parser.add_argument("--aio", choices=("threads", "io_uring", "native"), default="io_uring", help="of QEMU's reads")
    options = parser.parse_args()
    # As pip does when it installs a package; an environment may forbid Python to do so by itself.
    package = Path(__file__).parents[2] / "src" / "chainlift"
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    directory, parts = options.directory.absolute(), options.part or PARTS
    scale = QUICK if options.quick else Scale()
    bench = Bench(options, scale)
    directory.mkdir(parents=True)
    chains = directory / "chains"
    try:
        if {"index", "reads", "long", "copies"} & set(parts):
            chains.mkdir()
            build(chains, scale.long if {"index", "long"} & set(parts) else scale.length, scale)
            if "index" in parts:
                measure_index(bench, chains, scale.length, 0.5)
                measure_index(bench, chains, scale.long, 1.0)
            if "reads" in parts:
                measure_reads(bench, chains)
            if "long" in parts:
                measure_long(bench, chains)
            if "copies" in parts:
                measure_copies(bench, chains)
            shutil.rmtree(chains)
        if "verify" in parts:
            chains.mkdir()
            measure_verify(bench, chains)
            shutil.rmtree(chains)
        if "reflink" in parts:
            measure_reflinks(bench, directory)
    finally:
        shutil.rmtree(directory)
        sys.stdout.write("\n".join(bench.verdicts) + "\n")


if __name__ == "__main__":
    main()
