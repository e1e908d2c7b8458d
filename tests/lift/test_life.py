"""A chain that a guest was writing to, through its whole life: each step is done by the verbs and compared with stock
QEMU, and the guest boots in between and finds what it wrote.
"""

import hashlib
import subprocess

import pytest
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift

from chainlift.chain import open_chain
from chainlift.guest.boot import boot
from chainlift.guest.micro import MicroGuest
from chainlift.lift.flatten import flatten
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk
from chainlift.study.build import Bench, built_chain
from chainlift.study.plan_file import parse_plan
from chainlift.study.progress import Silent

pytestmark = pytest.mark.integration

PLAN = """
name = "life"
lengths = [1, {length}]
tests = ["read"]
accelerator = "tcg"
chains = "{chains}"
[guest]
memory = "512M"
vcpus = 1
[chain]
length = {length}
size = "256M"
pace = {pace}
[chain.workload]
rw = "randwrite"
size = "32M"
"""


class Life:
    """A disk under a guest: what it has on it according to the guest, and what it read before the last step."""

    def __init__(self, directory, qemu, reference, same):
        self.qemu, self.kind = qemu, MicroGuest()
        self.raw = directory / "raw"
        self.sums = {}
        self._reference, self._same = reference, same

    def guest_lives(self, image, names, overlay=None):
        """Boot on ``image``, find every file that was written before, and write some; snapshot in the middle."""
        disk = Disk(image, options={"l2-cache-size": 1 << 20})
        with boot(self.kind, self.qemu, disk, accelerator="tcg") as guest:
            work = guest.work_directory()
            for name, digest in self.sums.items():
                assert guest.run(f"sha256sum {work}/{name}").require().stdout.split()[0] == digest, name
            for number, name in enumerate(names):
                if number == 1 and overlay is not None:
                    self._snapshot(guest.vm.monitor, overlay)
                write = (
                    f"dd if=/dev/urandom of={work}/{name} bs=64k count=40 2>/dev/null; sync; sha256sum {work}/{name}"
                )
                self.sums[name] = guest.run(write).require().stdout.split()[0]
            guest.halt()
        self.look_at(overlay or image)

    def _snapshot(self, monitor, overlay):
        file = {"driver": "file", "filename": str(overlay)}
        monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": "over", "file": file, "backing": None})
        monitor.execute("blockdev-snapshot", node="disk0", overlay="over")

    def look_at(self, image):
        """Keep what stock QEMU reads now."""
        self._reference(image, self.raw)

    def check(self, image, after):
        assert self._same(image, self.raw), f"other bytes after {after}"


def whole_life(tmp_path, host_qemu, tool, reference, same, *, length, pace):
    plan = parse_plan(PLAN.format(length=length, pace=pace, chains=tmp_path / "chains"))
    qemu = find_qemu("host")
    chain, manifest = built_chain(plan, Bench.find(plan), Silent())
    assert manifest.shape.length == length
    image, over = chain.layer(length), chain.path / "over.qcow2"
    layers = {chain.layer(number): digest_of(chain.layer(number)) for number in range(length)}
    life = Life(tmp_path, qemu, reference, same)

    life.look_at(image)
    first = lift_index(image, host_qemu)
    assert first.copied_bytes == 0
    life.check(image, "the index")
    assert verify_lift(image, content=True)[1] == []

    write_image(over, virtual_size=256 << 20, backing_file=image.name, backing_format="qcow2")
    life.guest_lives(image, ["before", "behind"], over)
    with open_chain(over) as opened:
        assert opened.length == 2  # the overlay, the image, the index
    assert verify_lift(image)[1] == []

    second = lift_index(over, host_qemu)
    assert second.original.name == image.name
    life.check(over, "the second index")
    assert verify_lift(over, content=True)[1] == []
    with open_chain(over) as opened:
        assert opened.length == 1
    life.guest_lives(over, ["again"])

    squash, _ = lift_squash(over, host_qemu)
    assert squash.kind == "squash"
    life.check(over, "the squash")
    assert verify_lift(over, content=True)[1] == []
    flatten(over, tmp_path / "flat.qcow2")
    life.check(tmp_path / "flat.qcow2", "flattening")
    life.guest_lives(over, ["last"])

    restored = restore_lift(over, host_qemu, clean=True)
    assert [found.change.owner for found in restored.found] == [over, image]
    life.check(over, "restoring both")
    with open_chain(over) as opened:
        assert opened.length == length + 1
    life.guest_lives(over, [])
    assert {path: digest_of(path) for path in layers} == layers
    for path in (image, over, tmp_path / "flat.qcow2"):
        status, said = tool(host_qemu, "img", "check", path)
        assert status == 0, said
    assert subprocess.run(["e2fsck", "-fn", life.raw], capture_output=True).returncode == 0
    assert sorted(path.name for path in chain.path.glob("*.lift")) == []


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.timeout(600)
def test_a_chain_made_under_a_guest_through_its_whole_life(tmp_path, host_qemu, tool, reference, same):
    whole_life(tmp_path, host_qemu, tool, reference, same, length=4, pace=20)


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_a_chain_of_300_made_under_a_guest_through_its_whole_life(tmp_path, host_qemu, tool, reference, same):
    whole_life(tmp_path, host_qemu, tool, reference, same, length=300, pace=20)
