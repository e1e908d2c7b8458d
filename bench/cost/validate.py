"""Does the cost model hold for chains that it was not fitted to? ``python bench/cost/validate.py [--qemu Q]...``.

Measures the specimens of a calibration and the chains of ``chains.py`` in the same turns, fits each QEMU's parameters
to the former alone, foresees the latter, and writes ``results/RELEASE.json``, ``table.md`` and ``docs/cost.png``.
``--draw`` makes the latter two of the first again, ``--refit`` all three of what was measured, of which each repeat is
kept. The chains that are measured here never change a parameter.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from chains import SPECS, Spec, build, drawn

from chainlift.chain import open_chain
from chainlift.chain.summarize import summarize
from chainlift.cost import Shape, predict, shape_of, specimens
from chainlift.cost.calibrate import LEAST_SPREAD, beside, fit, foreseen, run_cells, shapes_of
from chainlift.cost.measure import Runs, Span, Taken, settle
from chainlift.cost.specimens import Cell
from chainlift.cost.store import nearest_shipped
from chainlift.host.process import run_tool
from chainlift.host.scratch import ScratchDirectory
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from chainlift.cost.figures import Cost, Figure
    from chainlift.cost.measure import Settled
    from chainlift.cost.parameters import Parameters

HERE = Path(__file__).parent
QEMUS = ("debian:bullseye", "host", "debian:trixie", "debian:trixie-backports")
KIB, MIB = 1 << 10, 1 << 20
#: How often each cell is measured, by default.
ROUNDS = 5
#: The cell of an image of one cluster: what QEMU takes without a chain.
ONE = "one"
#: Bytes of a request, and from one to the next.
READS = {"4k": (4 * KIB, 260 * KIB), "64k": (64 * KIB, 320 * KIB), "4m": (4 * MIB, 4 * MIB)}


def cell(spec: Spec, size: str) -> Cell:
    """Return how a chain is read."""
    bytes_, step = READS[size]
    if size == "4k":
        step = specimens.small_step_bytes(spec.length)
    if spec.l2_cache_bytes is not None:
        step = 8 * MIB + 20 * KIB  # the next slice of 4 KiB, each time
    return Cell(f"{spec.name}, {size}", "", bytes_, step, l2_cache_bytes=spec.l2_cache_bytes)


def shape(image: Path, spec: Spec) -> Shape:
    """Return a chain's shape; of small caches the model is told that they miss, as these reads make them."""
    with open_chain(image) as chain:
        return shape_of(summarize(chain), l2_cache_bytes=None if spec.l2_cache_bytes is None else 0)


def row(qemu: str, spec: Spec, what: str, figure: Figure | None, measured: float) -> dict:
    """Return one cell as it is kept."""
    return {
        "qemu": qemu,
        "chain": spec.name,
        "what": what,
        "foreseen": None if figure is None else figure.value,
        "within": None if figure is None else [figure.low, figure.high],
        "measured": measured,
    }


def build_all(root: Path, specs: Sequence[Spec]) -> dict[Spec, tuple[Path, Shape]]:
    """Write the chains that are not there yet; return their active layers and shapes, from before they were lifted."""
    found = {}
    for number, spec in enumerate(specs):
        directory = root / str(number)
        if directory.exists():
            image = directory / f"{spec.length}.qcow2"
        else:
            image = build(root / f"{number}.new", spec)
            (root / f"{number}.new").rename(directory)
            image = directory / image.name
        plain = image
        if spec.lift == "index":
            plain = directory / "unlifted.qcow2"
            if not plain.exists():
                plain.write_bytes(image.read_bytes())
                run_tool([sys.executable, "-m", "chainlift", "index", str(image)])
        found[spec] = image, shape(plain, spec)
        print("built", spec.name, file=sys.stderr, flush=True)
    return found


def run(name: str, root: Path, chains: dict[Spec, tuple[Path, Shape]], kept: Path, rounds: int) -> None:
    """Measure a calibration's specimens and the chains in the same turns, so that one hour of the host meets both.

    :param name: of the QEMU.
    :param root: where there is room for copies of the chains.
    :param chains: that are measured.
    :param kept: directory of the results.
    :param rounds: how often each cell is measured.
    """
    qemu = find_qemu(name, need=("img",))
    with ScratchDirectory() as directory, tempfile.TemporaryDirectory(dir=root) as place:
        specimens.build(directory)
        write_image(directory / "one.qcow2", virtual_size=64 * MIB)
        cells: list[Cell] = [*specimens.cells(), Cell(ONE, "one.qcow2", *READS["4k"])]
        for number, (spec, (image, _)) in enumerate(chains.items()):
            written = fresh(image, spec, Path(place) / str(number))
            cells += [replace(cell(spec, size), image=str(written), is_optional=True) for size in spec.sizes]
        # How fast memory is changes by the minute: reads of one size are near each other.
        cells.sort(key=lambda c: (c.wakes_threads, c.size, c.name))
        runs = run_cells(qemu, directory, shapes_of(directory, cells), report, rounds)
    results = {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "rounds": rounds,
        "qemu": qemu.version_text,
        "runs": {cell.name: kept_runs(taken) for cell, taken in runs.items() if taken.many},
    }
    kept.mkdir(exist_ok=True)
    path = kept / f"{short(qemu.version_text)}.json"
    write(path, results)
    conclude(path, chains)


def write(path: Path, results: dict) -> None:
    """Keep results, a line for each of what a release has many of."""
    parts = []
    for name, value in results.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        elif isinstance(value, dict):
            text = "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()) + "\n}"
        parts.append(f"{json.dumps(name)}: {text}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def kept_runs(runs: Runs) -> list[list[list]]:
    """Return all that was measured of a cell as plain values: of few requests, and of many."""

    def span(one: Span) -> list:
        return [float(f"{one.cpu_s:.6g}"), one.slowdown and round(one.slowdown, 4)]

    return [
        [[run.requests, *span(run.work), *span(run.opening), run.resident_bytes] for run in kind]
        for kind in (runs.few, runs.many)
    ]


def runs_of(kept: list[list[list]]) -> Runs:
    """Return what :func:`kept_runs` made plain values of."""
    return Runs(*([Taken(r[0], Span(*r[1:3]), Span(*r[3:5]), r[5]) for r in kind] for kind in kept))


def report(done: int, planned: int, name: str) -> None:
    """Say how far it is."""
    print(f"{done}/{planned} {name}", file=sys.stderr, flush=True)


def conclude(kept: Path, chains: dict[Spec, tuple[Path, Shape]]) -> None:
    """Fit the parameters to what was measured of the specimens, and put beside it what they foresee of the chains."""
    results = json.loads(kept.read_text())
    runs = {name: runs_of(one) for name, one in results["runs"].items()}
    settled = settle(runs)
    with ScratchDirectory() as directory:
        specimens.build(directory)
        shapes = shapes_of(directory, specimens.cells())
    theirs = beside(shapes, {one: settled[one.name] for one in shapes if one.name in settled})
    fitted = fit(results["qemu"], theirs)
    results["parameters"] = asdict(fitted)
    results["specimens"] = {m.cell.name: foreseen(m.cell, m.shape, fitted) for m in theirs}
    results["cells"] = cells_of(results["qemu"], chains, settled, fitted)
    of_chains = {cell(spec, size).name for spec in chains for size in spec.sizes}
    # Of an image that takes long to open there may be one repeat.
    results["halves_agree"] = halves_agree(
        runs, [name for name in of_chains if name in runs and len(runs[name].many) > 1]
    )
    write(kept, results)


def cells_of(
    version_text: str, chains: dict[Spec, tuple[Path, Shape]], settled: dict[str, Settled], parameters: Parameters
) -> list[dict]:
    """Return what parameters foresee of all chains, beside what was measured."""
    found = []
    for spec, (_, shape_) in chains.items():
        cost = predict(shape_, parameters, spec.lift, aio="io_uring")  # type: ignore[arg-type]
        of_spec = {size: taken for size in spec.sizes if (taken := settled.get(cell(spec, size).name))}
        found += rows(short(version_text), spec, cost, of_spec, settled[ONE].resident_bytes)
    return found


def as_shipped(kept: Path, chains: dict[Spec, tuple[Path, Shape]]) -> dict:
    """Return what the parameters that chainlift brings along foresee of what was measured: of another run's fit."""
    results = json.loads(kept.read_text())
    settled = settle({name: runs_of(one) for name, one in results["runs"].items()})
    return {**results, "cells": cells_of(results["qemu"], chains, settled, nearest_shipped(results["qemu"]))}


def halves_agree(runs: dict[str, Runs], names: Iterable[str]) -> float:
    """Return in which part of the cells two halves of the repeats agree within 20 %: no model can do better."""
    halves = [settle({name: Runs(one.few, one.many[n::2]) for name, one in runs.items()}) for n in (0, 1)]
    return share_near(halves[0][name].request_cpu_s / halves[1][name].request_cpu_s for name in names)


def share_near(ratios: Iterable[float]) -> float:
    """Return which part of ratios is within 20 % of 1."""
    return float(np.mean([1 / 1.2 <= ratio <= 1.2 for ratio in ratios]))


def rows(qemu: str, spec: Spec, cost: Cost, taken: dict[str, Settled], one_bytes: int) -> Iterator[dict]:
    """Yield the cells of one chain, what was foreseen and what was measured."""
    for size, settled in taken.items():
        yield row(qemu, spec, f"{size} read", getattr(cost, f"read_{size}_cpu_s"), settled.request_cpu_s)
    if taken and spec.l2_cache_bytes is None:  # options that nest make opening another thing
        yield row(qemu, spec, "open", cost.open_cpu_s, taken["4k"].open_cpu_s)
        if spec.lift == "none":
            # Buffers of a request are not the chain's: of reads of 4 KiB, over one image of one cluster.
            yield row(qemu, spec, "memory", cost.memory_bytes, taken["4k"].resident_bytes - one_bytes)


def fresh(image: Path, spec: Spec, place: Path) -> Path:
    """Write a chain anew before it is measured: what lies in the page cache for long may come back in small pages.

    Specimens of a calibration are as fresh. Files below an index have their place in its names, so each is replaced.
    """
    for path in sorted(image.parent.rglob("*")):
        copy = place / path.relative_to(image.parent)
        if path.is_dir():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb", buffering=0) as source, copy.open("xb", buffering=0) as target:
            size, at = path.stat().st_size, 0
            while at < size:
                try:
                    at = os.lseek(source.fileno(), at, os.SEEK_DATA)
                except OSError:  # nothing but a hole
                    break
                end = os.lseek(source.fileno(), at, os.SEEK_HOLE)
                while at < end:
                    at += os.pwrite(target.fileno(), os.pread(source.fileno(), min(4 * MIB, end - at), at), at)
            target.truncate(size)
        if spec.lift != "none":
            copy.rename(path)
    return place / image.name if spec.lift == "none" else image


def short(version_text: str) -> str:
    """Return a release as people name it."""
    return ".".join(version_text.split(".")[:2])


def ship(results: Path) -> None:
    """Make the parameters that chainlift brings along of those that were fitted here."""
    kept = [json.loads(path.read_text())["parameters"] for path in results.glob("*.json")]
    for one in kept:
        one["spread"] = {name: max(least, one["spread"][name]) for name, least in LEAST_SPREAD.items()}
    kept.sort(key=lambda one: tuple(map(int, one["qemu"].split(".")[:2])))
    text = json.dumps({"releases": [{**one, "origin": "shipped"} for one in kept]}, indent=1)
    (HERE.parents[1] / "src/chainlift/cost/shipped.json").write_text(text + "\n")


def load(found: list[dict]) -> dict:
    """Return what was found, release by release."""
    found.sort(key=lambda one: tuple(map(int, one["cells"][0]["qemu"].split("."))))
    return {"made": ", ".join(f"{o['cells'][0]['qemu']}: {o['made']}, {o['rounds']} rounds" for o in found),
            "halves_agree": {one["cells"][0]["qemu"]: one.get("halves_agree") for one in found},
            "cells": [cell for one in found for cell in one["cells"]]}  # fmt: skip


def known(cells: list[dict]) -> list[dict]:
    """Return the cells that have both figures."""
    return [c for c in cells if c["foreseen"] and c["measured"] and c["measured"] > 0]


def summary(results: dict) -> Iterator[str]:
    """Yield the table of how well the model does, release by release and quantity by quantity."""
    releases = list(dict.fromkeys(c["qemu"] for c in results["cells"]))
    yield f"Made {results['made']}; foreseen over measured."
    yield ""
    yield "| | " + " | ".join(releases) + " |"
    yield "|---" * (len(releases) + 1) + "|"
    groups = {"reads": lambda c: c["what"].endswith("read"), "opening": lambda c: c["what"] == "open",
              "memory": lambda c: c["what"] == "memory", "all": bool}  # fmt: skip
    for title, chosen in groups.items():
        cells = []
        for release in releases:
            ratios = [
                c["foreseen"] / c["measured"] for c in known(results["cells"]) if c["qemu"] == release and chosen(c)
            ]
            if not ratios:
                cells.append("-")
                continue
            worst = max(ratios, key=lambda ratio: abs(np.log(ratio)))
            cells.append(f"{share_near(ratios):.0%} of {len(ratios)} within 20 %, worst {worst:.2f}")
        yield f"| {title} | " + " | ".join(cells) + " |"
    said = {release: [c for c in known(results["cells"]) if c["qemu"] == release] for release in releases}
    shares = [np.mean([c["within"][0] <= c["measured"] <= c["within"][1] for c in cells]) for cells in said.values()]
    yield "| in the range that is said | " + " | ".join(f"{share:.0%}" for share in shares) + " |"
    halves = [results["halves_agree"][release] for release in releases]
    if None not in halves:  # of results from before the repeats were kept it is not known
        yield "| halves of the repeats agree on a read within 20 % | " + " | ".join(f"{h:.0%}" for h in halves) + " |"
    yield ""
    yield "| chain | | " + " | ".join(f"{r} measured | ratio" for r in releases) + " |"
    yield "|---" * (2 * len(releases) + 2) + "|"
    by_place = {(c["chain"], c["what"], c["qemu"]): c for c in results["cells"]}
    for chain, what in dict.fromkeys((c["chain"], c["what"]) for c in results["cells"]):
        parts = []
        for release in releases:
            found = by_place.get((chain, what, release))
            if found is None or not found["foreseen"] or not found["measured"]:
                parts.append("- | not known" if found else "- | -")
            else:
                parts.append(f"{told(what, found['measured'])} | {found['foreseen'] / found['measured']:.2f}")
        yield f"| {chain} | {what} | " + " | ".join(parts) + " |"


def told(what: str, value: float) -> str:
    """Return a measured value with its unit."""
    if what == "memory":
        return f"{value / MIB:.1f} MiB"
    return f"{value:.2f} s" if what == "open" else f"{value * 1e6:,.1f} µs"


def draw(results: dict, path: Path) -> None:
    """Draw foreseen against measured, a point a cell."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams.update({"font.size": 8})
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    colours = dict(zip(dict.fromkeys(c["qemu"] for c in results["cells"]), ("C0", "C1", "C2", "C3"), strict=False))
    for axis, (title, unit, scale, chosen) in zip(axes, (
        ("CPU of a read", "µs", 1e6, lambda c: c["what"].endswith("read")),
        ("CPU of opening", "s", 1.0, lambda c: c["what"] == "open"),
        ("memory", "MiB", 1 / MIB, lambda c: c["what"] == "memory"),
    ), strict=True):  # fmt: skip
        cells = [c for c in known(results["cells"]) if chosen(c)]
        for release, colour in colours.items():
            xy = [(c["measured"] * scale, c["foreseen"] * scale) for c in cells if c["qemu"] == release]
            axis.plot(*zip(*xy, strict=True), "o", ms=2.5, color=colour, label=release, alpha=0.8)
        low = min(min(c["measured"], c["foreseen"]) for c in cells) * scale * 0.8
        high = max(max(c["measured"], c["foreseen"]) for c in cells) * scale * 1.25
        line = np.array([low, high])
        axis.plot(line, line, color="grey", lw=0.6)
        axis.fill_between(line, line / 1.2, line * 1.2, color="grey", alpha=0.2, lw=0)
        axis.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title,
                 xlabel=f"measured, {unit}", ylabel=f"foreseen, {unit}")  # fmt: skip
    axes[0].legend(title="QEMU", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--qemu", action="append", help="default: 5.2, 7.2, 10.0 and 11.1 of Debian")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    parser.add_argument("--refit", action="store_true",
                        help="measure nothing; fit anew to what was measured, after a change of the model")  # fmt: skip
    parser.add_argument("--shipped", action="store_true",
                        help="measure nothing; print what the shipped parameters foresee of it")  # fmt: skip
    parser.add_argument("--ship", action="store_true", help="measure nothing; make shipped.json of what was kept")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often each cell is measured")
    parser.add_argument("--chains", type=Path, help="a directory that keeps the chains from run to run")
    parser.add_argument("--seed", type=int, help="chains drawn by chance, and not those of the table: drawn-SEED.md")
    arguments = parser.parse_args()
    name = "results" if arguments.seed is None else f"drawn-{arguments.seed}"
    results = HERE / name
    if not (arguments.draw or arguments.ship):
        with tempfile.TemporaryDirectory(prefix="cost-bench-", dir="/var/tmp") as scratch:
            root = arguments.chains or Path(scratch)
            root.mkdir(exist_ok=True)
            chains = build_all(root, SPECS if arguments.seed is None else drawn(arguments.seed))
            if arguments.shipped:
                found = [as_shipped(path, chains) for path in results.glob("*.json")]
                print(*summary(load(found)), sep="\n")
                sys.exit()
            if arguments.refit:
                for path in sorted(results.glob("*.json")):
                    conclude(path, chains)
            else:
                for qemu in arguments.qemu or QEMUS:
                    run(qemu, root, chains, results, arguments.rounds)
    if arguments.ship:
        ship(results)
    found = load([json.loads(path.read_text()) for path in results.glob("*.json")])
    text = "\n".join(summary(found)) + "\n"
    (HERE / ("table.md" if arguments.seed is None else f"{name}.md")).write_text(text)
    if arguments.seed is None:
        draw(found, HERE.parents[1] / "docs" / "cost.png")
    print(text)
