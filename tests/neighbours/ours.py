"""Steps of ours: every verb, with its options. A new option is one more word in a tuple here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.neighbours.machine import Base, choice, runs, step
from tests.neighbours.oracle import Verb
from tests.neighbours.world import names_a_lift

if TYPE_CHECKING:
    from pathlib import Path

#: What else each verb may be told; one of the tuples is chosen.
INDEX = [
    (), (), (), ("--copy-budget", "64K"), ("--copy-budget", "1M", "--clean"), ("--json",), ("--drop-bitmaps",),
    ("--content", "--force"), ("--lift-dir", "lifts", "--drop-bitmaps"),
]  # fmt: skip
SQUASH = [(), (), ("--json",), ("--clean",), ("--content", "--force"), ("--lift-dir", "lifts")]
RESTORE = [(), (), ("--clean",), ("--dry-run",), ("--content", "--force"), ("--json", "--clean")]
VERIFY = [(), ("--content",)]
LOOK = [("plan",), ("inspect",), ("map",), ("plan", "--json")]
FLATTEN = [(), ("-O", "raw"), ("--compress", "zlib")]
LIVE_INDEX = [
    (), (), ("--copy-budget", "64K"), ("--content", "--clean"), ("--drop-bitmaps",),
    ("--lift-dir", "lifts", "--drop-bitmaps"),
]  # fmt: skip
LIVE_SQUASH = [(), ("--content",), ("--clean",), ("--lift-dir", "lifts")]


def _kind(*words: object) -> str:
    """Name a kind of step: the verb and its options without what they are given."""
    return " ".join(str(word) for word in words if str(word).islower() or str(word).startswith("-"))


class Ours(Base):
    """Verbs of ours, with images at rest and under QEMUs that run."""

    def _at_rest(self, image: int, name: str, options: tuple[str, ...], **more: object) -> None:
        # One in seven is any image, one that stands on nothing too.
        if (path := self.image(image) if image % 7 == 6 else self.overlay(image)) is not None:
            kind = _kind(name, *(option for option in options if option.startswith("-")))
            self.ours(Verb((name, *options, str(path)), path, kind=kind, **more))

    @step(weight=3, image=choice, options=INDEX)
    def index(self, image, options):
        self._at_rest(image, "index", options)

    @step(weight=2, image=choice, options=SQUASH, onto=choice)
    def squash(self, image, options, onto):
        below = self.image(onto)
        more = ("--onto", str(below)) if onto % 3 == 0 and below is not None else ()
        self._at_rest(image, "squash", (*options, *more))

    @step(image=choice, search=(False, True))
    def squash_and_delete(self, image, search):
        places = self.world.directories() if search and not self.is_over else []
        options = [word for place in places for word in ("--search", str(place))]
        self._at_rest(image, "squash", ("--delete-layers", *options), deletes_in=tuple(places))

    @step(image=choice, options=RESTORE)
    def restore(self, image, options):
        self._at_rest(image, "restore", options, looks="--dry-run" in options)

    @step(image=choice, which=choice)
    def restore_one_lift(self, image, which):
        """Take out one lift, named by the image that stands on it."""
        if (standing := self.overlay(which)) is not None:
            self._at_rest(image, "restore", ("--lift", str(standing)))

    @step(weight=2, image=choice)
    def restore_once_more(self, image):
        """Restore an image that is lifted, if there is one: most are not."""
        images = [] if self.is_over else self.world.images()
        lifted = [path for path in images if names_a_lift(self.pointer(path))]
        if lifted:
            path = lifted[image % len(lifted)]
            self.ours(Verb(("restore", str(path)), path, kind="restore"))

    @step(image=choice, options=VERIFY)
    def verify(self, image, options):
        self._at_rest(image, "verify", options, looks=True)

    @step(image=choice, words=LOOK)
    def look(self, image, words):
        self._at_rest(image, words[0], words[1:], looks=True)

    @step(image=choice, options=FLATTEN)
    def flatten(self, image, options):
        if (path := self.image(image)) is not None:
            out = self.world.root / "flat"
            kind = _kind("flatten", *(option for option in options if option.startswith("-")))
            words = ("flatten", *options, str(path), str(out))
            said = self.ours(Verb(words, path, kind=kind, looks=True, makes=out))
            if said is not None and said.status == 0:
                self._compare_flat(path, out)
            out.unlink(missing_ok=True)

    def _compare_flat(self, path: Path, out: Path) -> None:
        if out.read_bytes()[:4] == b"QFI\xfb":
            read = self.world.reader.digests([path, out])
            same = read[path] == read[out]
        else:
            from tests.neighbours.reader import digest

            same = self.world.reader.digests([path])[path] == digest(out.read_bytes())
        assert same, f"a flat image reads other bytes than {path}\n{self.world.tell()}"

    def _live(self, which: int, name: str, options: tuple[str, ...] = (), **more: object) -> None:
        running = self.running[which % len(self.running)]
        kind = _kind(name, "--qmp", *(option for option in options if option.startswith("-")))
        words = (name, *options, "--qmp", str(running.qmp_path))
        self.ours(Verb(words, running.image, running, kind=kind, **more))

    @step(when=runs, weight=2, which=choice, options=LIVE_INDEX)
    def index_live(self, which, options):
        self._live(which, "index", options)

    @step(when=runs, weight=2, which=choice, options=LIVE_SQUASH)
    def squash_live(self, which, options):
        self._live(which, "squash", options)

    @step(when=runs, weight=2, which=choice, options=RESTORE)
    def restore_live(self, which, options):
        self._live(which, "restore", options, looks="--dry-run" in options)

    @step(when=runs, which=choice)
    def plan_live(self, which):
        self._live(which, "plan", looks=True)

    @step(when=runs, which=choice)
    def stream_live(self, which):
        self._live(which, "stream")
