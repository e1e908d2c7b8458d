"""Steps of other people with QEMUs that run: starting and ending one, what its guest writes, snapshots under it."""

from __future__ import annotations

import os

from tests.neighbours.machine import Base, choice, runs, step
from tests.neighbours.others import NAMES
from tests.neighbours.world import pick
from tests.support.running import QmpError

#: More do not run at once.
MOST_RUNNING = 2


class Guests(Base):
    """QEMUs of others."""

    @step(when=lambda self: len(self.running) < MOST_RUNNING, weight=3, image=choice, kind=range(10))
    def start_qemu(self, image, kind):
        if (source := self.overlay(image)) is None:
            return
        started = self.world.start(source, emulator=kind == 0)
        self.world.count("others: start an emulator" if kind == 0 else "others: start a storage daemon")
        if started is not None:
            started.expected = bytearray(started.read())

    @step(when=runs, which=choice, kill=(False, True))
    def end_qemu(self, which, kill):
        running = self.running[which % len(self.running)]
        images = self.world.images()
        at_rest = self.world.reader.digests(images)
        content = self.digest_of(running)
        expected = {image for image in images if image.samefile(running.image)} if running.image.exists() else set()
        self.world.end(running, kill=kill)
        self.world.count("others: kill -9" if kill else "others: stop")
        now = self.world.reader.digests(images)
        # What a client has written and flushed is there; and where the headers led to the same disk before, they do.
        lost = [image for image in expected if at_rest[image] == content and now[image] != content]
        assert not lost, f"after its QEMU had ended, {lost} does not read what its client wrote\n{self.world.tell()}"

    @step(when=runs, weight=3, which=choice, block=range(256), blocks=[1, 16, 64], pattern=range(1, 256))
    def guest_writes(self, which, block, blocks, pattern):
        running = self.running[which % len(self.running)]
        size = len(running.expected)
        offset, length = block * 4096 % (size // 4096 * 4096), blocks * 4096
        length = min(length, size // 4096 * 4096 - offset)
        if length <= 0:
            return
        self.world.script.append(f"# the guest of {running.name} writes {pattern} at {offset}, {length} bytes")
        running.write(pattern, offset, length)
        self.world.count("others: a guest writes")

    @step(when=runs, weight=3, which=choice, directory=choice, name=choice, existing=(False, True))
    def take_snapshot(self, which, directory, name, existing):
        running = self.running[which % len(self.running)]
        if self.is_full() or not (places := self.world.directories()):
            return
        place = pick(places, directory)
        overlay = pick([place / each for each in (*NAMES, "one more.qcow2")], name)
        if os.path.lexists(overlay):
            return
        kind = "blockdev-snapshot" if existing else "blockdev-snapshot-sync"
        if existing and not self.world.sh(
            "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", running.image, "-F", "qcow2", overlay,
            len(running.expected),
        ):  # fmt: skip
            return
        self.world.count(f"others: {kind}")
        try:
            running.snapshot(overlay, existing=existing)
            said = ""
        except QmpError as error:
            said = f"  # failed: {error}"
        self.world.script.append(f"# {kind} of {running.name} into {overlay}{said}")
