"""How `map` and `inspect` compare with qemu-img: ``python bench/map_and_inspect.py [--root DIR] [--quick]``.

Prints ratios from one run, of CPU time (the steadier figure on a busy machine) and of wall time, and peak memory. Each
program is run several times and its best run counts; qemu-img once where it takes long.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

CHAINLIFT = [sys.executable, "-m", "chainlift"]


@dataclass(frozen=True)
class Run:
    wall_s: float
    cpu_s: float
    peak_mib: float


def chain(shape: str, root: Path, length: int) -> str:
    # In a process of its own: what we measure starts as a copy of this one, whose memory it would be charged with.
    command = [sys.executable, str(Path(__file__).with_name("chains.py")), shape, str(root), str(length)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def measure(command: list[str], *, repeats: int = 5, patience_s: float = 900) -> Run:
    best = None
    for number in range(repeats + 1):
        started = time.perf_counter()
        with tempfile.TemporaryFile() as output:
            child = subprocess.Popen(command, stdout=output)
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - started
        if child.returncode:
            raise SystemExit(f"{command} ended with {child.returncode}")
        if not number and wall < patience_s / 10:
            continue  # it has brought the files into the page cache
        run = Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
        best = run if best is None or run.cpu_s < best.cpu_s else best
        if wall > patience_s / 100:
            break
    return best


def show(what: str, run: Run, against: Run | None = None) -> None:
    ratio = "" if against is None else f"{against.cpu_s / run.cpu_s:9.0f}x cpu {against.wall_s / run.wall_s:9.0f}x wall"
    print(f"{what:44} {run.cpu_s:8.2f} s cpu {run.wall_s:8.2f} s wall {run.peak_mib:7.0f} MiB{ratio}", flush=True)


def same_text(image: Path) -> bool:
    theirs = subprocess.run(["qemu-img", "map", "--output=json", image], capture_output=True, check=True).stdout
    version = "8.2" if b'"compressed"' in theirs[:1000] else "7.2"
    ours = subprocess.run([*CHAINLIFT, "map", "--json", "--as-qemu", version, image], capture_output=True, check=True)
    return ours.stdout == theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache" / "chainlift" / "bench")
    parser.add_argument("--quick", action="store_true", help="leave out qemu-img on 1,000 layers, which takes minutes")
    parser.add_argument("--lengths", type=int, nargs="*", default=[300, 1000])
    arguments = parser.parse_args()
    # As pip does when it installs a package; an environment may forbid Python to do so by itself.
    package = Path(__file__).parents[1] / "src" / "chainlift"
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    for length in arguments.lengths:
        image = chain("experiment", arguments.root, length)
        ours = measure([*CHAINLIFT, "map", "--json", image])
        show(f"chainlift inspect, {length} layers", measure([*CHAINLIFT, "inspect", image]))
        if arguments.quick and length > 300:
            show(f"chainlift map --json, {length} layers", ours)
            continue
        theirs = measure(["qemu-img", "map", "--output=json", image], repeats=2)
        show(f"chainlift map --json, {length} layers", ours, theirs)
        show(f"qemu-img map --output=json, {length} layers", theirs)
        if length <= 300:
            print(f"{'the same text':44} {same_text(Path(image))}")
    image = chain("large", arguments.root, 1000)
    show("chainlift map --json, 1,000 layers, 1 TiB", measure([*CHAINLIFT, "map", "--json", image], repeats=3))
    show("chainlift inspect, 1,000 layers, 1 TiB", measure([*CHAINLIFT, "inspect", image], repeats=3))
    show("chainlift --help", measure([*CHAINLIFT, "--help"], repeats=9))


if __name__ == "__main__":
    main()
