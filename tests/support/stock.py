"""Stock QEMU tools as other people use them, and what they read: what a test compares with."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chainlift.lift.neighbours.locks import is_open_in_qemu

if TYPE_CHECKING:
    from collections.abc import Iterator


def run(*argv: object, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    texts = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in argv]
    done = subprocess.run(texts, capture_output=True, text=True, timeout=60, cwd=cwd, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{texts}: {done.stdout}{done.stderr}"
    return done


def img(*arguments: object, cwd: Path | None = None) -> str:
    """Run ``qemu-img``, which must do it."""
    return run("qemu-img", *arguments, cwd=cwd).stdout


def create(path: Path, backing: str | os.PathLike[str] | None = None, *, size: object = "4M", named: str = "") -> Path:
    """Make an image: over ``backing``, by the name ``named`` or else its path relative to the image, if it has one."""
    if backing is None:
        img("create", "-q", "-f", "qcow2", path, size)
        return path
    name = named or (backing if isinstance(backing, str) else os.path.relpath(backing, path.parent))
    img("create", "-q", "-f", "qcow2", "-b", name, "-F", "qcow2", path)
    return path


def write(image: Path, pattern: int, offset: str | int, length: str | int = "64k") -> None:
    run("qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", image)


def make_pool(directory: Path, *names: str, size: object = "4M", absolute: bool = False) -> list[Path]:
    """Make a chain of images, base first; each has a pattern of its own where the next may hide it."""
    directory.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for number, name in enumerate(names):
        path = directory / name
        create(path, made[-1] if made else None, size=size, named=str(made[-1]) if made and absolute else "")
        write(path, number + 1, number << 18, "384k")
        made.append(path)
    return made


def read(image: Path) -> bytes:
    """Return what stock QEMU reads from an image, also while one has it open.

    :raise AssertionError: if it does not open.
    """
    with tempfile.TemporaryDirectory() as place:
        raw = Path(place) / "raw"
        img("convert", "-U", "-O", "raw", image, raw)
        return raw.read_bytes()


def opens(image: Path) -> bool:
    return run("qemu-img", "map", "-U", image, check=False).returncode == 0


def backing_name(image: Path) -> str | None:
    """Return the backing file's name as it stands in the image's header."""
    said: dict[str, Any] = json.loads(img("info", "-U", "--output=json", image))
    return said.get("backing-filename")


def everything(directory: Path) -> dict[str, tuple[str, int, int, int]]:
    """Return what every name below a directory leads to: a digest or a link's target, mode, owner and group."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            what = f"-> {path.readlink()}"
        elif stat.S_ISREG(status.st_mode):
            what = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
        else:
            what = stat.filemode(status.st_mode)[0]
        found[str(path.relative_to(directory))] = (what, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    return found


@contextmanager
def opened_by_qemu_io(path: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Have a QEMU hold an image open, for writing unless ``-r`` is among the options."""
    command = ["qemu-io", *options, "-f", "qcow2", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 120
            while not is_open_in_qemu(path) and time.monotonic() < deadline:
                time.sleep(0.005)
            yield process
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(120)
