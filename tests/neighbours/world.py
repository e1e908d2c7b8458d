"""Directories of images that many people work in, and a script of all that was done there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.neighbours.reader import MOST_FILES

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    from tests.neighbours.reader import Reader
    from tests.support.running import Running
    from tests.support.verbs import Verbs

HEAD = """#!/usr/bin/env bash
# Every step of a run; a person can repeat it. A verb of ours is what fails at the end.
rm -rf {root}; mkdir -p {root}; cd {root}
qmp() {{ python3 - "$@" <<'X'
import json, socket, sys
monitor = socket.socket(socket.AF_UNIX); monitor.connect(sys.argv[1]); file = monitor.makefile("rw"); file.readline()
for line in ['{{"execute":"qmp_capabilities"}}', *sys.argv[2:]]:
    file.write(line + "\\n"); file.flush()
    while not ({{"return", "error"}} & (answer := json.loads(file.readline())).keys()): pass
    print(json.dumps(answer)[:300])
X
}}
"""
#: How long a step of other people may take.
_STEP_S = 30
MAGIC = b"QFI\xfb"


def is_ours(path: Path | str) -> bool:
    """Whether a name is of a lift (its directory, something in it, what lies beside for it), or a list of relink's."""
    parts = Path(path).parts
    return any(part.endswith((".lift", ".lift.json")) for part in parts) or parts[-1].startswith("chainlift-relink-")


@dataclass(frozen=True)
class File:
    """What a name leads to."""

    #: The content of a file, the target of a link, empty for a directory.
    content: bytes = field(repr=False)
    kind: str
    mode: int
    owner: int
    group: int
    identity: tuple[int, int]

    @property
    def digest(self) -> str:
        return hashlib.blake2b(self.content, digest_size=8).hexdigest()

    def same_as(self, other: File | None) -> bool:
        """Whether nothing was changed; the same bytes in another file are the same."""
        return other is not None and (self.content, self.kind, self.mode, self.owner, self.group) == (
            other.content, other.kind, other.mode, other.owner, other.group
        )  # fmt: skip


class World:
    """A directory, what runs in it, and what was done.

    :param root: the same for every run, so that absolute names in images stay right.
    """

    def __init__(self, root: Path, reader: Reader, verbs: Verbs, counts: Counter[str]) -> None:
        self.root = root
        self.reader = reader
        self.verbs = verbs
        #: How many steps of each kind there were, over all runs.
        self.counts = counts
        self.running: list[Running] = []
        self.script: list[str] = []
        #: What makes a command another user's.
        self.as_user: list[str] = []
        self._started = 0
        #: What was read last, and from which files.
        self._truth: tuple[str, dict[Path, str | None]] = ("", {})
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)

    def tell(self) -> str:
        """Return the script of what was done."""
        return HEAD.format(root=self.root) + "\n".join(self.script).replace(f"{self.root}/", "") + "\n"

    def sh(self, *argv: object) -> bool:
        """Do what other people do; whether it worked is their business.

        :return: whether it did.
        """
        texts = [os.fspath(each) if isinstance(each, os.PathLike) else str(each) for each in argv]
        self.script.append(shlex.join(texts))
        try:
            done = subprocess.run(
                ["prlimit", f"--nofile={MOST_FILES}", *self.as_user, *texts],
                cwd=self.root,
                capture_output=True,
                text=True,
                timeout=_STEP_S,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            self.script[-1] += f"  # did not end within {_STEP_S} s"
            return False
        if done.returncode:
            self.script[-1] += f"  # failed: {' '.join((done.stderr or done.stdout).split())[:160]}"
        return done.returncode == 0

    def count(self, kind: str) -> None:
        self.counts[kind] += 1

    def files(self) -> dict[Path, File]:
        """Return every name below the root and what it leads to."""
        found = {}
        for directory, directories, names in os.walk(self.root):
            for name in (*directories, *names):
                path = Path(directory, name)
                found[path] = _look(path)
        return dict(sorted(found.items()))

    def images(self) -> list[Path]:
        """Return every name of an image that a person can name, links included; lifts are not a person's."""
        found = []
        for directory, directories, names in os.walk(self.root):
            directories[:] = [name for name in directories if not name.endswith(".lift")]
            for name in names:
                path = Path(directory, name)
                try:
                    with path.open("rb") as file:
                        if file.read(4) == MAGIC:
                            found.append(path)
                except OSError:
                    continue  # a link that leads nowhere
        return sorted(found)

    def directories(self) -> list[Path]:
        """Return the directories that are a person's."""
        return sorted(
            path for path in self.root.iterdir() if path.is_dir() and not is_ours(path) and path.name != "lifts"
        )

    def truth(self, files: dict[Path, File]) -> dict[Path, str | None]:
        """Return what each image reads; of these files it is read once only."""
        state = hashlib.blake2b(digest_size=16)
        for path, file in files.items():
            state.update(f"{path}\0{file.kind}".encode() + hashlib.blake2b(file.content).digest())
        if self._truth[0] != state.hexdigest():
            self._truth = (state.hexdigest(), self.reader.digests(self.images()))
        return dict(self._truth[1])

    def start(self, image: Path, *, emulator: bool) -> Running | None:
        """Start a QEMU, if it will."""
        from tests.support.running import Running

        self._started += 1
        try:
            started = Running(image, emulator=emulator)
        except ConnectionError as error:
            self.script.append(f"# no QEMU starts with {image}: {' '.join(str(error).split())[:160]}")
            return None
        started.name = f"QEMU{self._started}"
        self.script.append(f"{shlex.join(started.argv)} & {started.name}=$!; sleep 1")
        self.running.append(started)
        return started

    def end(self, running: Running, *, kill: bool) -> None:
        self.running.remove(running)
        self.script.append(f"kill {'-9 ' if kill else ''}${running.name}; wait")
        if kill:
            running.kill()
        else:
            running.stop()

    def close(self) -> None:
        for running in self.running:
            running.kill()
        self.running.clear()
        shutil.rmtree(self.root, ignore_errors=True)


def _look(path: Path) -> File:
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        content = os.fsencode(path.readlink())
    elif stat.S_ISREG(status.st_mode):
        content = path.read_bytes()
    else:
        content = b""
    return File(
        content,
        stat.filemode(status.st_mode)[0],
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        (status.st_dev, status.st_ino),
    )


def pointer(content: bytes) -> str | None:
    """Return the backing file's name in an image's header: qcow2, "Header", bytes 8 to 19."""
    offset, length = int.from_bytes(content[8:16], "big"), int.from_bytes(content[16:20], "big")
    return os.fsdecode(content[offset : offset + length]) if offset else None


def names_a_lift(name: str | None) -> bool:
    """Whether a backing file's name leads into the directory of a lift."""
    if name is None:
        return False
    if name.startswith("json:"):
        return bool(re.search(r"\.lift[0-9]*/[^/\"]*\.vmdk\"", json.dumps(json.loads(name[5:]))))
    return Path(name).parent.name.endswith(".lift")


def pick(choices: Sequence[Path], number: int) -> Path:
    return choices[number % len(choices)]
