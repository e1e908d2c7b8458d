"""What must hold after each verb of ours, whoever has done what before.

The truth is taken right before a verb: what stock QEMU reads from every image that a person can name, what the clients
of running disks read, and every byte of every file. Then:

* an exit status is 0, 1, 2 or 3 (4 with an explanation), never a traceback; a failure is one line;
* after 1, 2 and 3, and after a verb that only looks, everything is byte for byte what it was, lifts included;
* every image reads what it read; one that did not open may still not open; every QEMU lives, its disk reads the same;
* a file that is not ours neither changes nor vanishes nor appears, unless asked: the image that is switched changes
  within its first cluster, ``--delete-layers`` takes the layers that it says, ``flatten`` makes its output, ``prune``
  and ``drop`` take the layers and write those anew that they say.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from tests.neighbours.reader import MOST_FILES, digest
from tests.neighbours.world import MAGIC, File, World, is_ours, names_a_lift, pointer

from chainlift.lift.record.overlay import read_overlay_mark

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.running import Running
    from tests.support.verbs import Said

#: What is known to be wrong: a pattern of the violation, and what it is. A run that meets one ends and is no failure;
#: a line goes when its fault is repaired.
KNOWN: dict[str, str] = {}
#: What libvirt copies a disk into, beside it.
_OVERLAY = re.compile(r"\.lift\d+$")


class Violation(AssertionError):  # noqa: N818 - what a run shows
    """Something that must hold does not."""


class KnownViolation(Exception):  # noqa: N818 - it ends a run, and is no failure
    """One of :data:`KNOWN`."""


@dataclass(frozen=True)
class Verb:
    """A verb of ours with all its words."""

    words: tuple[str, ...]
    #: The image at rest, or the disk that runs.
    image: Path
    running: Running | None = None
    #: The verb's name, and what else about it makes it a kind of step of its own.
    kind: str = ""
    #: It changes nothing.
    looks: bool = False
    #: The file that it is asked to make.
    makes: Path | None = None
    #: Directories in which it was asked to search before it deletes; None: it is not asked to delete.
    deletes_in: tuple[Path, ...] | None = None
    #: It writes the names of these as they were before.
    undoes: tuple[str, ...] = ()
    #: It says in JSON which layers it has deleted, and which it has written anew.
    thins_out: bool = False


@dataclass(frozen=True)
class Truth:
    """How the world is."""

    files: dict[Path, File]
    reads: dict[Path, str | None]
    #: What the client of each disk that runs reads.
    live: dict[str, str]


def take(world: World) -> Truth:
    """Look at everything."""
    live = {}
    for running in world.running:
        if running.is_alive:
            content = running.read()
            assert running.expected is None or content == running.expected, (
                f"{running.name} does not read what its client wrote\n{world.tell()}"
            )
            live[running.name] = digest(content)
    files = world.files()
    return Truth(files, world.truth(files), live)


def run(world: World, verb: Verb) -> Said:
    """Run a verb of ours between two looks at everything, and judge.

    :raise Violation: with a script of the run.
    :raise KnownViolation: if what does not hold is known.
    """
    before = take(world)
    said = world.verbs(*verb.words, cwd=world.root)
    world.script.append(
        shlex.join(["chainlift", *verb.words]) + f"  # {said.status}: {' '.join(said.err.split())[:200]}"
    )
    world.count(f"ours: {verb.kind}")
    world.count(f"status {said.status}: {verb.kind}")
    for problem in judge(world, verb, said, before):
        fail(world, f"{verb.kind}: {problem}", said)
    return said


def fail(world: World, text: str, said: object = "") -> NoReturn:
    """Say that something does not hold, unless that is known or collected.

    :raise Violation: with a script of the run.
    :raise KnownViolation: if it is known.
    """
    for pattern, why in KNOWN.items():
        if re.search(pattern, text):
            world.count(f"known: {why}")
            raise KnownViolation(text)
    if collected := os.environ.get("NEIGHBOURS_COLLECT"):
        _collect(Path(collected), f"{text}\n\n{said}\n\n{world.tell()}")
        raise KnownViolation(text)
    raise Violation(f"{text}\n\n{said}\n\n{world.tell()}")


def _collect(directory: Path, text: str) -> None:
    """Keep the shortest run of each kind of violation, and count them."""
    first = re.sub(r"\S*/\S*|\b[0-9a-f]{16}\b|\d+|QEMU\d*", "_", text.partition("\n")[0])[:150]
    name = directory / (re.sub(r"[^a-z-]+", "-", first.lower()).strip("-") + ".txt")
    directory.mkdir(exist_ok=True)
    with (directory / "seen").open("a") as seen:
        seen.write(f"{name.stem}\n")
    if not name.exists() or len(name.read_text()) > len(text):
        name.write_text(text)


def judge(world: World, verb: Verb, said: Said, before: Truth) -> list[str]:
    """Return what does not hold."""
    found = _judge_words(said)
    if verb.thins_out and said.status == 0 and not verb.looks and json.loads(said.out)["deleted"]:
        world.count(f"ours: {verb.kind} that deleted layers")
    dead = [running.name for running in world.running if not running.is_alive]
    if dead:
        return [*found, f"QEMU has ended: {dead}: {world.running[0].said()}"]
    for running in world.running:
        running.look_again()
    after = take(world)
    if said.status in (1, 2, 3) or verb.looks:
        found += _judge_untouched(verb, said, before, after)
    else:
        found += _judge_files(verb, said, before, after)
        found += _judge_pointer(verb, after)
    found += [
        f"the disk that runs in {name} read {was}, now {after.live.get(name)}"
        for name, was in before.live.items()
        if after.live.get(name) != was
    ]
    # After --undo, what was missing is missing again: the step compares with how it was.
    found += [] if verb.undoes else _judge_reads(world, verb, before, after)
    if not found and said.status == 0 and not verb.looks and verb.running is None:
        found += check_image(verb.image)
    return found


def _judge_words(said: Said) -> list[str]:
    found = []
    if said.status not in (0, 1, 2, 3, 4):
        found.append(f"exit status {said.status}")
    if "Traceback" in said.err:
        found.append(f"a traceback: {said.last}")
    lines = [line for line in said.err.splitlines() if not line.startswith("chainlift: warning:")]
    if said.status in (2, 3, 4) and (len(lines) != 1 or not lines[0].startswith("chainlift: ")):
        found.append(f"a failure of {len(lines)} lines")
    if said.status == 4 and len(said.last) < 40:
        found.append("exit status 4 without an explanation")
    return found


def _judge_untouched(verb: Verb, said: Said, before: Truth, after: Truth) -> list[str]:
    asked = {verb.makes} if verb.makes and said.status == 0 else set()
    changed = sorted(
        str(path)
        for path in before.files.keys() | after.files.keys()
        if path not in asked
        and not _same(before.files.get(path), after.files.get(path))
        # What a killed run has left may go at any time.
        and not (is_ours(path) and path.name.endswith(".new") and path not in after.files)
    )
    ended = "only looks" if verb.looks else f"ended with {said.status}"
    return [f"it {ended} and changed {Path(name).name if is_ours(name) else name}" for name in changed]


def _same(one: File | None, other: File | None) -> bool:
    return one is not None and one.same_as(other)


def _judge_files(verb: Verb, said: Said, before: Truth, after: Truth) -> list[str]:
    """What has happened to files that are not ours, by a verb that has done its work."""
    found = []
    vanished = 0
    thinned = json.loads(said.out) if verb.thins_out else {}
    deleted_ones, rewritten = ({Path(name) for name in thinned.get(key, ())} for key in ("deleted", "rewritten"))
    for path, was in before.files.items():
        now = after.files.get(path)
        if is_ours(path) or was.same_as(now):
            continue
        if now is None:
            if "--clean" in verb.words and _OVERLAY.search(path.name):
                continue
            vanished += 1
            if verb.deletes_in is None or (verb.thins_out and path not in deleted_ones):
                found.append(f"{path} has vanished")
            elif was.kind != "-":
                found.append(f"{path} has vanished, which is no file")
            elif _snapshots(was.content):
                found.append(f"a layer with internal snapshots was deleted: {path}")
            continue
        if (was.mode, was.owner, was.group) != (now.mode, now.owner, now.group):
            found.append(f"{path} has another owner or mode")
        elif path in rewritten:
            continue
        elif not _may_change(verb, said, path, was):
            found.append(f"{path} was changed")
        elif verb.running is None and not _same_beyond_header(was.content, now.content):
            found.append(f"more than the header of {path} was changed")
    found += [
        f"{path} has appeared"
        for path in after.files.keys() - before.files.keys()
        # A prune has every disk keep its file.
        if not is_ours(path) and not ("--libvirt" in verb.words and not verb.thins_out and _is_overlay(path))
    ]
    deleted = re.search(r"deleted (\d+) of", said.out + said.err)
    if verb.deletes_in is not None and not verb.thins_out and vanished > int(deleted[1] if deleted else 0):
        found.append(f"{vanished} files have vanished, which is not what was said: {said.out}")
    return found


def _is_overlay(path: Path) -> bool:
    """Whether it is what libvirt was told to copy a disk into; the file itself says for which."""
    return bool(_OVERLAY.search(path.name)) and read_overlay_mark(path) is not None


def _may_change(verb: Verb, said: Said, path: Path, was: File) -> bool:
    """Whether it is the image that is switched, by any of its names, or one that is said to be."""
    if same_file(path, verb.image):
        return True
    if verb.words[0] == "relink":
        names = verb.undoes or [change["image"] for change in json.loads(said.out)["changes"]]
        return any(same_file(path, Path(name)) for name in names)
    return verb.words[0] == "restore" and was.kind == "-" and any(same_file(path, each) for each in _restored(said))


def _restored(said: Said) -> list[Path]:
    """Return the images that a restore says it has switched."""
    if "--json" in said.arguments:
        return [Path(lift["image"]) for lift in json.loads(said.out)["lifts"]]
    return [Path(line.partition(": ")[0]) for line in said.out.splitlines()]


def _snapshots(content: bytes) -> int:
    """Return how many internal snapshots an image has: qcow2, "Header", bytes 60 to 63."""
    return int.from_bytes(content[60:64], "big") if content[:4] == MAGIC else 0


def _same_beyond_header(was: bytes, now: bytes) -> bool:
    """Whether no more than the first cluster differs; QEMU writes persistent bitmaps anew when it closes an image."""
    first = 1 << int.from_bytes(was[20:24], "big")
    has_bitmaps = int.from_bytes(was[4:8], "big") > 2 and bool(was[95] & 1)  # autoclear feature bit 0
    return has_bitmaps or was[first:] == now[first:]


def _judge_pointer(verb: Verb, after: Truth) -> list[str]:
    """After a verb has done its work, the image at rest says so."""
    if verb.running is not None or verb.image.resolve() not in after.files:
        return []
    name = pointer(after.files[verb.image.resolve()].content)
    lifted = names_a_lift(name)
    if verb.words[0] in ("index", "squash") and not lifted:
        return [f"it was lifted, and stands on {name}"]
    # A squash whose layers were deleted is a layer like any other.
    if verb.words[0] == "restore" and lifted and ".vmdk" in str(name):
        return [f"it was restored, and stands on {name}"]
    return []


def _judge_reads(world: World, verb: Verb, before: Truth, after: Truth) -> list[str]:
    found = []
    opened_elsewhere = _opens_without_header(verb, before)
    for path, was in before.reads.items():
        if was is None or path not in after.files:
            continue
        now = after.reads.get(path)
        if now == was or _is_excused(world, verb, path, now) or _leads_elsewhere(verb, path, before):
            continue
        if verb.words[0] == "stream" and opened_elsewhere:
            continue
        relation = _relation(verb, path, before)
        found.append(f"{relation} {'does not open any more' if now is None else 'reads other bytes'}: {path}")
    return found


def _relation(verb: Verb, path: Path, before: Truth) -> str:
    if path == verb.image:
        return "the image itself"
    if same_file(path, verb.image):
        return "the image by another name"
    return "another image"


def _opens_without_header(verb: Verb, before: Truth) -> bool:
    """Whether an image in a directory that is not searched opens another without what its header names.

    What a stream writes into its image may change what such an image reads.
    """
    named = {path: pointer(file.content) for path, file in before.files.items() if file.content[:4] == MAGIC}
    return any(
        name is not None and name.startswith("json:") and '"backing"' in name and not _is_searched(verb, path)
        for path, name in named.items()
    )


def _is_searched(verb: Verb, path: Path, more: Sequence[Path] = ()) -> bool:
    searched = [directory.resolve() for directory in (*more, verb.image.parent, verb.image.resolve().parent)]
    return any(path.resolve().is_relative_to(directory) for directory in searched)


def _is_excused(world: World, verb: Verb, path: Path, now: str | None) -> bool:
    """An image in a directory that was not searched may lose what was to be deleted, if nobody has it open.

    A layer, or a lift with an absolute name (``--lift-dir``), on which a copy of its image stands, too.
    """
    if now is not None or (verb.deletes_in is None and "--clean" not in verb.words):
        return False
    if _is_searched(verb, path, verb.deletes_in or ()):
        return False
    return not any(same_file(running.image, path) for running in world.running)


def _leads_elsewhere(verb: Verb, path: Path, before: Truth) -> bool:
    """Whether it is a link, hard or symbolic, where nobody has searched, by which the image stood on other layers.

    QEMU takes a relative name from where the link lies, and there may be another file of that name.
    """
    return (
        same_file(path, verb.image)
        and path != verb.image
        and not _is_searched(verb, path.parent)
        and before.reads.get(path) != before.reads.get(verb.image)
    )


def same_file(one: Path, other: Path) -> bool:
    """Whether two names lead to one file."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def check_image(image: Path) -> list[str]:
    """Return what ``qemu-img check`` finds broken; what a QEMU that was killed leaked is none of it."""
    command = ["prlimit", f"--nofile={MOST_FILES}", "qemu-img", "check", "-f", "qcow2", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return [f"qemu-img check of {image}: {done.stdout}{done.stderr}"] if done.returncode == 2 else []


def summary(counts: Counter[str]) -> str:
    """Return the count of steps by kind, a line for each group."""
    lines = []
    for group in ("runs", "ours", "others", "status", "known"):
        kinds = {kind: number for kind, number in sorted(counts.items()) if kind.split(":")[0].split()[0] == group}
        total = sum(kinds.values())
        if group == "status":
            by_status: Counter[str] = Counter()
            for kind, number in kinds.items():
                by_status[kind.partition(":")[0].split()[1]] += number
            lines.append("exit statuses: " + ", ".join(f"{s}: {n}" for s, n in sorted(by_status.items())))
            done = {kind.partition(": ")[2]: n for kind, n in kinds.items() if kind.startswith("status 0")}
            lines.append("done by ours: " + ", ".join(f"{kind} {number}" for kind, number in done.items()))
        elif kinds:
            listed = ", ".join(f"{kind.partition(': ')[2] or kind} {number}" for kind, number in kinds.items())
            lines.append(f"{group}: {total} ({listed})" if group != "runs" else f"runs: {total}")
    return "\n".join(lines)
