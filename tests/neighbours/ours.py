"""Steps of ours: every verb, with its options. A new option is one more word in a tuple here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.neighbours.machine import Base, choice, runs, step
from tests.neighbours.oracle import Verb
from tests.neighbours.world import names_a_lift

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.running import Running

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
PRUNE = [
    ("--keep-last", "1"), ("--keep-last", "2"), ("--keep-monthly", "1"), ("--keep-daily", "2"),
    ("--keep-hourly", "1", "--force"), ("--keep-last", "1", "--dry-run"),
]  # fmt: skip
LIVE_SQUASH = [(), ("--content",), ("--clean",), ("--lift-dir", "lifts")]


def name_kind(*words: object) -> str:
    """Name a kind of step: the verb and its options without what they are given."""
    return " ".join(str(word) for word in words if str(word).islower() or str(word).startswith("-"))


class Flattening(Base):
    """The verb that makes another image."""

    @step(image=choice, options=FLATTEN)
    def flatten(self, image, options):
        if (path := self.image(image)) is not None:
            out = self.world.root / "flat"
            kind = name_kind("flatten", *(option for option in options if option.startswith("-")))
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


class Ours(Flattening):
    """Verbs of ours, with images at rest and under QEMUs that run."""

    def _at_rest(self, image: int, name: str, options: tuple[str, ...], **more: object) -> None:
        # One in seven is any image, one that stands on nothing too.
        if (path := self.image(image) if image % 7 == 6 else self.overlay(image)) is not None:
            kind = name_kind(name, *(option for option in options if option.startswith("-")))
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

    def _thin_out(self, image: Path, words: tuple[str, ...], *, search: bool, running: Running | None = None) -> None:
        places = self.world.directories() if search else []
        options = [word for place in places for word in ("--search", str(place))]
        kind = name_kind(words[0], *(word for word in words if word.startswith("--")))
        self.ours(
            Verb(
                (words[0], *options, "--json", *words[1:]),
                image,
                running,
                kind=kind,
                looks="--dry-run" in words,
                deletes_in=tuple(places),
                thins_out=True,
            )
        )

    @step(weight=2, image=choice, options=PRUNE, search=(False, True))
    def prune(self, image, options, search):
        if (path := self.overlay(image)) is not None:
            self._thin_out(path, ("prune", *options, str(path)), search=search)

    @step(weight=2, image=choice, which=choice, force=(False, True))
    def drop(self, image, which, force):
        """Drop a layer: mostly the one right below the image, which most images have."""
        path, layer = self.overlay(image), self.image(which)
        if path is None or layer is None:
            return
        name = self.pointer(path)
        if which % 3 and name is not None and not name.startswith("json:"):
            layer = path.parent / name
        self._thin_out(path, ("drop", *(["--force"] if force else []), str(path), str(layer)), search=bool(which % 2))

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

    def _live(self, which: int, name: str, options: tuple[str, ...] = (), **more: object) -> None:
        running = self.running[which % len(self.running)]
        kind = name_kind(name, "--qmp", *(option for option in options if option.startswith("-")))
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

    @step(when=runs, weight=2, which=choice, options=PRUNE, search=(False, True))
    def prune_live(self, which, options, search):
        running = self.running[which % len(self.running)]
        words = ("prune", *options, "--qmp", str(running.qmp_path))
        self._thin_out(running.image, words, search=search, running=running)

    @step(when=runs, which=choice)
    def plan_live(self, which):
        self._live(which, "plan", looks=True)

    @step(when=runs, which=choice)
    def stream_live(self, which):
        self._live(which, "stream")

    @step(when=runs, which=choice)
    def clean_live(self, which):
        self._live(which, "clean")
