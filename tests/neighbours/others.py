"""Steps of other people, with images at rest: what an administrator, a backup tool or a manager does."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from tests.neighbours.machine import Base, choice, step
from tests.neighbours.world import names_a_lift, pick

#: Few names, so that old ones come back.
NAMES = [f"n{number}.qcow2" for number in range(7)]
DIRECTORIES = ["pool", "clones", "store", "old"]
#: More images than this are not made.
MOST_IMAGES = 14
MODES = [0o600, 0o640, 0o644, 0o666]
PIECES = list(itertools.product(range(32), [512, 4096, 65536, 262144], range(1, 256, 5)))


class Others(Base):
    """Files by their names, and stock ``qemu-img`` and ``qemu-io``."""

    def _new_name(self, directory: int, name: int) -> Path:
        """Return a name that is free, perhaps one that an image had before."""
        place = pick(self.world.directories() or [self.world.root], directory)
        free = [place / each for each in NAMES if not os.path.lexists(place / each)]
        return pick(free or [place / f"one more {len(self.world.script)}.qcow2"], name)

    def _new_directory(self, name: int) -> Path | None:
        free = [self.world.root / each for each in DIRECTORIES if not (self.world.root / each).exists()]
        return pick(free, name) if free else None

    @step(image=choice, directory=choice, name=choice)
    def rename(self, image, directory, name):
        if (source := self.image(image)) is not None:
            self.others("mv", "mv", "-n", source, self._new_name(directory, name))

    @step(directory=choice, name=choice)
    def rename_directory(self, directory, name):
        places = self.world.directories()
        if places and (target := self._new_directory(name)) is not None:
            self.others("mv a directory", "mv", pick(places, directory), target)

    @step(image=choice, directory=choice, name=choice)
    def copy(self, image, directory, name):
        target = self._new_name(directory, name)
        if (source := self.image(image)) is not None and not self.is_full():
            self.others("cp -a", "cp", "-a", source, target)

    @step(directory=choice, name=choice)
    def copy_directory(self, directory, name):
        places = self.world.directories()
        if places and not self.is_full() and (target := self._new_directory(name)) is not None:
            self.others("cp -a a directory", "cp", "-a", pick(places, directory), target)

    @step(image=choice, directory=choice, name=choice, relative=(False, True))
    def link(self, image, directory, name, relative):
        target = self._new_name(directory, name)
        if (source := self.image(image)) is not None and not self.is_full():
            self.others("ln -s", "ln", *(["-sr"] if relative else ["-s"]), source, target)

    @step(image=choice, directory=choice, name=choice)
    def hard_link(self, image, directory, name):
        target = self._new_name(directory, name)
        if (source := self.image(image)) is not None and not self.is_full():
            self.others("ln", "ln", source, target)

    @step(image=choice, is_lift=range(4))
    def remove(self, image, is_lift):
        lifts = sorted(self.world.root.glob("*/*.lift"))
        if is_lift == 0 and lifts:
            self.others("rm -r a lift", "rm", "-r", pick(lifts, image))
        elif (source := self.image(image)) is not None and len(self.world.images()) > 4:
            self.others("rm", "rm", source)

    @step(backing=choice, directory=choice, name=choice, how=["relative", "absolute", "alone"])
    def create(self, backing, directory, name, how):
        """Make an overlay, or an image that stands alone, under a name that may have been another's."""
        target = self._new_name(directory, name)
        if self.is_full():
            return
        below = self.image(backing)
        if how == "alone" or below is None:
            self.others("create", "qemu-img", "create", "-q", "-f", "qcow2", target, "1M")
        else:
            named = below if how == "absolute" else Path(os.path.relpath(below, target.parent))
            self.others("create", "qemu-img", "create", "-q", "-f", "qcow2", "-b", named, "-F", "qcow2", target)

    @step(image=choice, size=["+64k", "+512", "+1M", "-512k"])
    def resize(self, image, size):
        if (source := self.image(image)) is not None and source.stat().st_size < 16 << 20:
            shrink = ["--shrink"] if size.startswith("-") else []
            # Options of qemu-img that begin with a minus come after two of them.
            self.others("resize", "qemu-img", "resize", "-q", "-f", "qcow2", *shrink, "--", source, size)

    @step(image=choice, onto=choice)
    def rebase(self, image, onto):
        """Rebase so that what is read stays: QEMU copies what differs."""
        source, below = self.overlay(image), self.image(onto)
        if source is not None and below is not None and source != below:
            self.others("rebase", "qemu-img", "rebase", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", source)

    @step(image=choice, how=["absolute", "relative", "json"])
    def rename_backing(self, image, how):
        """Name the same backing file in another way."""
        source = self.overlay(image)
        name = None if source is None else self.pointer(source)
        if source is None or name is None or name.startswith("json:") or not (source.parent / name).exists():
            return
        below = Path(os.path.normpath(source.parent / name))
        form = "raw" if below.suffix == ".raw" else "qcow2"
        new = {
            "absolute": str(below),
            "relative": os.path.relpath(below, source.parent),
            "json": f'json:{{"driver":"{form}","file.driver":"file","file.filename":"{below}"}}',
        }[how]
        self.others("rebase -u", "qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-b", new, "-F", form, source)

    @step(image=choice, deep=(False, True))
    def commit(self, image, deep):
        source = self.overlay(image)
        if source is None:
            return
        before = self.world.files() if names_a_lift(self.pointer(source)) else None
        self.others("commit", "qemu-img", "commit", "-q", *(["-d"] if deep else []), "-f", "qcow2", source)
        name = self.pointer(source)
        if before is not None and name is not None and ".vmdk" in name:
            changed = [path for path, was in before.items() if not was.same_as(self.world.files().get(path))]
            assert all(path.samefile(source) for path in changed), f"written through an index\n{self.world.tell()}"

    @step(image=choice)
    def take_internal_snapshot(self, image):
        if (source := self.image(image)) is not None:
            self.others("snapshot -c", "qemu-img", "snapshot", "-c", f"s{len(self.world.script)}", source)

    @step(image=choice)
    def add_bitmap(self, image):
        if (source := self.image(image)) is not None:
            self.others("bitmap --add", "qemu-img", "bitmap", "--add", source, f"b{len(self.world.script)}")

    @step(image=choice, piece=PIECES, what=["write", "write", "write -z", "discard"])
    def write(self, image, piece, what):
        if (source := self.image(image)) is not None:
            offset, length, pattern = piece
            how = f"write -P {pattern}" if what == "write" else what
            self.others(f"qemu-io {what}", "qemu-io", "-f", "qcow2", "-c", f"{how} {offset << 16} {length}", source)

    @step(image=choice, mode=MODES, owner=[0, 1234])
    def give_away(self, image, mode, owner):
        if (source := self.image(image)) is not None:
            self.others("chmod", "chmod", f"{mode:o}", source)
            if os.getuid() == 0:
                self.others("chown", "chown", f"{owner}:{owner}", source)
