"""Steps of ours with libvirt's domains: under those that run, and with images of those that are shut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.neighbours import oracle
from tests.neighbours.libvirt_jobs import Backups, BlockJobs
from tests.neighbours.machine import choice, runs, step
from tests.neighbours.oracle import Verb
from tests.neighbours.ours import PRUNE, Flattening, name_kind
from tests.neighbours.world import names_a_lift

if TYPE_CHECKING:
    from pathlib import Path

    from tests.neighbours.domains import Domain, LibvirtWorld
    from tests.support.verbs import Said

INDEX = [(), (), ("--force",), ("--force", "--drop-bitmaps"), ("--drop-bitmaps", "--copy-budget", "64K")]
SQUASH = [
    (), (), (), ("--force",), ("--clean",), ("--drop-bitmaps",), ("--delete-layers",), ("--delete-layers", "--force"),
    ("--lift-dir", "lifts"),
]  # fmt: skip
RESTORE = [(), (), ("--clean",), ("--force",), ("--dry-run",)]
LIVE_INDEX = [
    (), (), ("--drop-bitmaps",), ("--clean", "--copy-budget", "64K"), ("--content", "--drop-bitmaps"),
    ("--lift-dir", "lifts", "--drop-bitmaps"),
]  # fmt: skip
LIVE_SQUASH = [
    (), (), ("--drop-bitmaps",), ("--clean",), ("--content", "--drop-bitmaps"), ("--delete-layers",),
    ("--lift-dir", "lifts"),
]  # fmt: skip
LIVE_RESTORE = [(), (), (), ("--clean",), ("--dry-run",), ("--content",)]
LIVE_STREAM = [(), ("--drop-bitmaps",), ("--drop-bitmaps", "--clean")]
LOOK = [("verify",), ("verify", "--content"), ("plan",), ("plan", "--json")]


@dataclass(frozen=True)
class Record:
    """What libvirt's definitions and the headers say of each domain's disk."""

    #: By domain: the definition's image, what it stands on by the definition, and by the headers.
    domains: dict[str, tuple[Path, list[str] | None, list[str]]]
    #: Images whose header names an index.
    indexes: set[str]

    @classmethod
    def take(cls, world: LibvirtWorld) -> Record:
        found = {}
        for domain in world.domains:
            if domain.is_defined:
                image, named = domain.definition()
                found[domain.name] = (image, named, world.chain(image))
        return cls(found, world.indexes())

    def agrees(self, domain: str) -> bool:
        _, named, below = self.domains[domain]
        return named is None or named == below


def is_lifted_live(machine: OursWithLibvirt) -> bool:
    """Whether a verb of ours has changed a graph; one in seven times it makes no difference."""
    return bool(machine.running) and (
        any(domain.is_lifted_live for domain in machine.running) or len(machine.world.script) % 7 == 0
    )


def is_lifted(machine: OursWithLibvirt) -> bool:
    """The same with headers."""
    images = [] if machine.is_over else machine.world.images()
    return any(names_a_lift(machine.pointer(image)) for image in images) or len(machine.world.script) % 7 == 0


class OursWithLibvirt(Flattening, BlockJobs, Backups):
    """Verbs of ours, where libvirt keeps its own record of what a disk stands on."""

    def judged(self, verb: Verb) -> Said | None:
        """Run a verb, and judge also what libvirt knows after it."""
        if self.is_over:
            return None
        before = Record.take(self.world)
        said = self.ours(verb)
        if said is None or verb.looks:
            return said
        after = Record.take(self.world)
        is_forced = "--force" in verb.words
        if said.status == 0:
            self._remember(verb, is_forced=is_forced)
        if not is_forced:
            if new := after.indexes - before.indexes:
                self._judge_indexes(verb, said, new, after)
            for name in before.domains:
                if before.agrees(name) and not after.agrees(name):
                    _, named, below = after.domains[name]
                    if "libvirt does not learn of this" in said.err:
                        # By QEMU's monitor; both read the same, and the next start is on the definition's.
                        self.world.count(f"known: {verb.words[0]} by the monitor, not in the definition")
                        continue
                    text = f"the definition of {name} says {named}, and the headers now say {below}"
                    oracle.fail(self.world, f"{verb.kind}: {text}", said)
        return said

    def _judge_indexes(self, verb: Verb, said: Said, new: set[str], after: Record) -> None:
        for name, (image, _, below) in after.domains.items():
            if new & {str(image), *below}:
                oracle.fail(self.world, f"{verb.kind}: {name} does not start any more: a header names an index", said)

    def _remember(self, verb: Verb, *, is_forced: bool) -> None:
        self.world.is_forced |= is_forced
        for domain in self.world.domains:
            domain.is_touched = True
            domain.is_lifted_live |= domain is verb.running
            if "--drop-bitmaps" in verb.words:
                domain.checkpoints = dict.fromkeys(domain.checkpoints)

    def _live(self, which: int, name: str, options: tuple[str, ...] = (), **more: object) -> None:
        domain = self._running(which)
        kind = name_kind(name, "--libvirt", *(option for option in options if option.startswith("-")))
        device = ("--device", "vda") if which % 2 else ()
        words = (name, *options, "--libvirt", domain.name, *device)
        self.judged(Verb(words, domain.image, domain, kind=kind, **more))

    @step(when=runs, weight=3, which=choice, options=LIVE_INDEX)
    def index_live(self, which, options):
        self._live(which, "index", options)

    @step(when=runs, weight=3, which=choice, options=LIVE_SQUASH)
    def squash_live(self, which, options):
        deletes = () if "--delete-layers" in options else None
        self._live(which, "squash", options, deletes_in=deletes)

    @step(when=is_lifted_live, weight=4, which=choice, options=LIVE_RESTORE)
    def restore_live(self, which, options):
        self._live(which, "restore", options, looks="--dry-run" in options)

    @step(when=runs, which=choice, options=LIVE_STREAM)
    def stream_live(self, which, options):
        self._live(which, "stream", options)

    @step(when=runs, which=choice)
    def clean_live(self, which):
        domain = self._running(which)
        self.judged(Verb(("clean", "--libvirt", domain.name), domain.image, domain, kind="clean --libvirt"))

    @step(when=runs, which=choice, words=LOOK)
    def look_live(self, which, words):
        self._live(which, words[0], words[1:], looks=True)

    def _thin_out_live(self, domain: Domain, words: tuple[str, ...], *, search: bool) -> None:
        places = self.world.directories() if search else []
        options = [word for place in places for word in ("--search", str(place))]
        kind = name_kind(words[0], "--libvirt", *(word for word in words[1:] if word.startswith("--")))
        self.judged(
            Verb(
                (words[0], *options, "--json", "--libvirt", domain.name, *words[1:]),
                domain.image,
                domain,
                kind=kind,
                looks="--dry-run" in words,
                deletes_in=tuple(places),
                thins_out=True,
            )
        )

    @step(when=runs, weight=3, which=choice, options=PRUNE, search=(False, True))
    def prune_live(self, which, options, search):
        self._thin_out_live(self._running(which), ("prune", *options), search=search)

    @step(when=runs, weight=3, which=choice, layer=choice, search=(False, True))
    def drop_live(self, which, layer, search):
        """Drop a layer of the disk's chain, but for the uppermost, which never goes."""
        domain = self._running(which)
        below = self.world.chain(domain.image)[1:]
        if below:
            words = ("drop", "--device", "vda", below[layer % len(below)])
            self._thin_out_live(domain, words, search=search)

    def _named(self, image: int) -> Path | None:
        """Return a domain's disk, mostly; else any image that stands on another."""
        disks = [domain.image for domain in self.world.domains if domain not in self.running]
        return disks[image % len(disks)] if disks and image % 4 else self.overlay(image)

    def _rest(self, image: int, name: str, options: tuple[str, ...], path: Path | None = None, **more: object) -> None:
        if (path := path or self._named(image)) is not None:
            kind = name_kind(name, *(option for option in options if option.startswith("-")))
            self.judged(Verb((name, *options, str(path)), path, kind=kind, **more))

    @step(weight=2, image=choice, options=INDEX)
    def index(self, image, options):
        self._rest(image, "index", options)

    @step(weight=3, image=choice, options=SQUASH)
    def squash(self, image, options):
        self._rest(image, "squash", options, deletes_in=() if "--delete-layers" in options else None)

    @step(when=is_lifted, weight=4, image=choice, options=RESTORE, lifted=(False, True, True))
    def restore(self, image, options, lifted):
        images = [path for path in self.world.images() if names_a_lift(self.pointer(path))] if lifted else []
        path = images[image % len(images)] if images else None
        self._rest(image, "restore", options, path, looks="--dry-run" in options)

    @step(when=runs, weight=4, which=choice, options=SQUASH, checkpoint=choice)
    def maintain(self, which, options, checkpoint):
        """What a night is for: a domain is shut off, its disk squashed, it starts, and a backup is made."""
        domain = self._running(which)
        self.destroy_domain(domain)
        self._rest(0, "squash", options, domain.image, deletes_in=() if "--delete-layers" in options else None)
        if not self.is_over:
            self.start_domain(domain)
        if domain in self.running and domain.checkpoints:
            self.back_up_since(domain, sorted(domain.checkpoints)[checkpoint % len(domain.checkpoints)])

    @step(image=choice, words=LOOK)
    def look(self, image, words):
        self._rest(image, words[0], words[1:], looks=True)
