"""What benchmarks that build images first have in common: the command line, and another process that builds."""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path


def build(what: str, directory: Path) -> None:
    """Have another process build it: a program that is measured begins as a copy of this one, with its memory."""
    subprocess.run([sys.executable, sys.argv[0], "--build", what, "--root", directory], check=True)


def run(
    about: str | None,
    benches: Mapping[str, Callable[[Path], None]],
    builders: Mapping[str, Callable[[Path], object]],
) -> None:
    """Run the benchmarks that are named on the command line, or all; or build what one of them is to read."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("what", nargs="*", help=f"{', '.join(benches)}; default: all of it")
    parser.add_argument("--root", type=Path, help="where images are kept from run to run")
    parser.add_argument("--build", choices=builders, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        builders[arguments.build](arguments.root)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.what or benches:
            benches[name](arguments.root or Path(scratch))
