"""Steps of ours that look at snapshots, serve one, or mend names after a move: tree, diff, export, relink."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.neighbours import oracle
from tests.neighbours.machine import Base, choice, step
from tests.neighbours.oracle import Verb, same_file
from tests.neighbours.reader import digest, read_all

from chainlift.qemu.nbd import NbdClient

if TYPE_CHECKING:
    from tests.support.verbs import Said


class Snapshots(Base):
    """Verbs that know many images at once."""

    @step()
    def tree(self):
        """Every image is in the tree, on what it stands on, and what QEMU opens is not told to be broken."""
        root = self.world.root
        said = self.ours(Verb(("tree", "--json", str(root)), root, kind="tree", looks=True))
        if said is None or said.status != 0:
            return
        rows = json.loads(said.out)["images"]
        listed = {Path(row["path"]).stat().st_ino for row in rows}
        reads = self.world.truth(self.world.files())
        missing = [str(path) for path in self.world.images() if path.stat().st_ino not in listed]
        self._must(not missing, f"the tree has not {missing}", said)
        by_path = {path: content for path, content in reads.items() if not path.is_symlink()}
        for path, content in by_path.items():
            row = next((row for row in rows if row["path"] == str(path)), None)
            if row is None:  # it has another name
                continue
            self._must(content is None or row["broken"] is None, f"{path} opens, and is said to be broken", said)
            name = self.pointer(path)
            if content is not None and name is not None and not name.startswith("json:") and row["lift"] is None:
                below = path.parent / name
                on = row["stands_on"]
                self._must(on is None or same_file(below, Path(on)), f"{path} does not stand on {on}", said)

    @step(weight=2, image=choice, how=range(4))
    def diff(self, image, how):
        """Two images of one chain, mostly: outside of what is told both read the same."""
        new, old = self.overlay(image), self.image(image // 7 + how)
        if new is None or old is None:
            return
        name = self.pointer(new)
        if how and name is not None and not name.startswith("json:") and (new.parent / name).is_file():
            old = new.parent / name
        said = self.ours(Verb(("diff", "--json", str(old), str(new)), new, kind="diff", looks=True))
        reads = self.world.truth(self.world.files())
        if said is None or said.status != 0 or reads.get(new) is None or self._is_written(old, new):
            return
        one, other = self.world.reader.contents(old), self.world.reader.contents(new)
        if one is None or other is None:  # a raw base, which no image of the world is
            return
        # Ranges are of the new disk; a shorter old one is followed by zeros, as a backing file is.
        one = one[: len(other)].ljust(len(other), b"\0")
        at = 0
        for part in json.loads(said.out):
            start, end = part["start"], part["start"] + part["length"]
            self._must(at <= start < end, f"diff tells {start} after {at}", said)
            self._must(one[at:start] == other[at:start], f"diff leaves a difference out before {start}", said)
            self._must(not part["zero"] or not any(other[start:end]), f"no zeros at {start}", said)
            at = end
        self._must(one[at:] == other[at:], f"diff leaves a difference out after {at}", said)

    @step(image=choice, often=range(3))
    def export(self, image, often):
        """What is served is what QEMU reads; the chain is as before, and nothing is left."""
        path = self.image(image)
        reads = self.world.truth(self.world.files())
        if often or path is None or reads[path] is None or self._is_written(path):
            return
        before, socket = self.world.files(), self.world.root.parent / "export.sock"
        command = [sys.executable, "-m", "chainlift", "export", str(path), "--socket", str(socket), "--json"]
        self.world.script.append(f"chainlift export {path} --socket export.sock & sleep 2; kill $!; wait")
        self.world.count("ours: export")
        serving = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert serving.stdout is not None
        if serving.stdout.readline():
            with NbdClient(socket, "") as client:
                found = digest(read_all(client))
            self._must(found == reads[path], f"another content of {path} is served", "")
            serving.send_signal(signal.SIGTERM)
        _, err = serving.communicate(timeout=60)
        self.world.count(f"status {serving.returncode}: export")
        self._must(serving.returncode in (0, 2, 143), f"export of {path} ended with {serving.returncode}", err)
        self._must("Traceback" not in err, "export ended with a traceback", err)
        after = self.world.files()
        changed = [name for name in before | after if not _same(before.get(name), after.get(name))]
        self._must(not changed, f"export changed {changed}", err)
        self._must(not socket.exists(), "export left its socket", err)

    @step(weight=2, image=choice, goes_back=(False, True))
    def move_and_relink(self, image, goes_back):
        """Somebody moves an image into another directory; relink has every chain read what it read."""
        source = self.image(image)
        places = [path for path in self.world.directories() if source is not None and path != source.parent]
        if source is None or not places or self.running:
            return
        before = self.world.truth(self.world.files())
        target = places[image % len(places)] / source.name
        if os.path.lexists(target) or not self.others("mv to another directory", "mv", "-n", source, target):
            return
        moved = self.world.truth(self.world.files())
        root = self.world.root
        said = self.ours(Verb(("relink", "--json", str(root)), target, kind="relink"))
        if said is None or said.status != 0:
            return
        done = json.loads(said.out)
        after = self.world.truth(self.world.files())
        # One of those above it may still miss another layer.
        if not done["unresolved"]:
            self._judge_relinked(done, source, target, before, after, said)
        if goes_back and done["undo"]:
            words = ("relink", "--undo", done["undo"][-1])
            said = self.ours(
                Verb(words, target, kind="relink --undo", undoes=tuple(c["image"] for c in done["changes"]))
            )
            if said is not None:
                self._must(said.status == 0, "what was written is not undone", said)
                again = self.world.truth(self.world.files())
                wrong = [str(path) for path, content in again.items() if content != moved.get(path)]
                self._must(not wrong, f"after --undo these read what they did not after the move: {wrong}", said)
                self.others("mv back", "mv", "-n", target, source)

    def _judge_relinked(
        self,
        done: dict[str, list[dict[str, str]]],
        source: Path,
        target: Path,
        before: dict[Path, str | None],
        after: dict[Path, str | None],
        said: Said,
    ) -> None:
        for change in done["changes"]:
            path = Path(change["image"])
            was = before.get(source if path == target else path)
            if was is not None:
                self._must(after.get(path) == was, f"{path} reads {after.get(path)}, before the move {was}", said)

    def _is_written(self, *paths: Path) -> bool:
        """Whether a QEMU has one of them open as its disk."""
        return any(same_file(running.image, path) for running in self.running for path in paths)

    def _must(self, holds: bool, text: str, said: object) -> None:
        if not holds:
            oracle.fail(self.world, text, said)


def _same(one: object, other: object) -> bool:
    return one is not None and one.same_as(other)  # type: ignore[attr-defined]
