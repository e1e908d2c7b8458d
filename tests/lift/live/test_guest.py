"""A guest that writes while its disk is snapshotted and pivoted, and is killed: what it had synced is there."""

import hashlib
import subprocess
from pathlib import Path

import pytest
from tests.support.lifts import live_index, live_restore

from chainlift.guest.boot import boot
from chainlift.guest.micro import MicroGuest
from chainlift.lift.disk import Change
from chainlift.lift.live.disk import RunningDisk
from chainlift.lift.live.session import open_session
from chainlift.lift.record.manifest import Pointer
from chainlift.lift.record.pointer import named_in
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk

pytestmark = pytest.mark.integration
SIZE = 128 << 20
#: Writes files, one after the other, each with its checksum in its name, until it is told to stop.
WRITER = """
n=0
while [ ! -e /tmp/stop ]; do
  dd if=/dev/urandom of=/tmp/new bs=16k count=6 2>/dev/null
  sum=$(sha256sum /tmp/new | cut -c1-64)
  cp /tmp/new {work}/w-$sum
  n=$((n + 1)); [ $n -gt 40 ] && rm -f $(ls {work}/w-* | head -n 20) && n=20
done
echo done > /tmp/stopped
"""


def a_guest_writes_through_pivots(tmp_path, qemu_name: str, *, iothread: bool) -> None:
    qemu = find_qemu(qemu_name, need=("system", "storage-daemon"))
    kind = MicroGuest(fio=False)
    base, active = tmp_path / "base.qcow2", tmp_path / "active.qcow2"
    kind.make_disk(base, SIZE)
    write_image(active, virtual_size=SIZE, backing_file=base.name, backing_format="qcow2")
    disk = Disk(active, options={"l2-cache-size": 1 << 20})
    with boot(kind, qemu, disk, accelerator="tcg", iothread=iothread) as guest:
        work = guest.work_directory()
        guest.run(f"({WRITER.format(work=work)}) > /dev/null 2>&1 &")
        monitor, node = guest.vm.monitor, "disk0"

        def pivot(back: bool = False) -> None:
            with open_session(guest.vm.spare_qmp_path) as session:
                assert session.disk.iothread == ("io0" if iothread else None)
                result = live_restore(session, clean=True) if back else live_index(session, qemu=None)
            assert result.left == []
            guest.run("true").require()

        def snapshot(number: int) -> None:
            nonlocal active, node
            guest.run("sleep 0.2; sync")
            path, above = tmp_path / f"snap{number}.qcow2", f"snap{number}"
            write_image(path, virtual_size=SIZE, backing_file=active.name, backing_format="qcow2")
            file = {"driver": "file", "filename": str(path)}
            monitor.execute("blockdev-add", {"driver": "qcow2", "node-name": above, "file": file, "backing": None})
            monitor.execute("blockdev-snapshot", node=node, overlay=above)
            active, node = path, above

        def take_out(lifted: Path, original: str) -> None:
            """Take the index out that lies under the image in the middle of the chain."""
            with open_session(guest.vm.spare_qmp_path) as session:
                running = RunningDisk(session, qemu)
                old = next(stands.pointer for stands in running.standing() if stands.image == lifted)
                running.switch([Change(lifted, old, Pointer(original, "qcow2"))])
            assert running.left == []
            assert named_in(lifted) == original
            guest.run("true").require()

        for number in range(1, 7):
            snapshot(number)
            if number % 2 == 0:
                lifted, original = active, named_in(active)
                pivot()
                pivot(back=True)
                pivot()
                if number != 4:
                    snapshot(10 + number)
                    take_out(lifted, original)
        guest.run("touch /tmp/stop; while [ ! -e /tmp/stopped ]; do sleep 0.1; done; sync").require()
        there = set(guest.run(f"ls {work}").require().stdout.split())
        assert any(name.startswith("w-") for name in there)
        guest.vm.kill()
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", active, raw], check=True)
    # Its journal is replayed, as after any power cut; there is nothing else to repair.
    assert subprocess.run(["e2fsck", "-p", raw], capture_output=True).returncode in (0, 1)
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True).returncode == 0
    for name in sorted(name for name in there if name.startswith("w-")):
        inside = work.partition("/mnt")[2] or ""
        read = subprocess.run(["debugfs", "-R", f"cat {inside}/{name}", raw], capture_output=True, check=True)
        assert hashlib.sha256(read.stdout).hexdigest() == name[2:], name


@pytest.mark.qemu(since=(6, 1))
def test_what_a_guest_on_an_iothread_synced_survives_pivots_and_a_kill(tmp_path, qemu):
    a_guest_writes_through_pivots(tmp_path, qemu, iothread=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("iothread", [False, True])
@pytest.mark.qemu(since=(6, 1))
def test_what_a_guest_synced_survives_pivots_and_a_kill(tmp_path, qemu, iothread):
    a_guest_writes_through_pivots(tmp_path, qemu, iothread=iothread)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("iothread", [False, True])
@pytest.mark.qemu(since=(6, 1))
def test_a_long_chain_comes_back_layer_by_layer_under_a_guest(make_chain, qemu, iothread):
    found = find_qemu(qemu, need=("system",))
    chain = make_chain(60, virtual_size=SIZE, per_layer=2, absolute_names=True)
    whole = hashlib.sha256(b"".join(chain.block(number) for number in range(SIZE // 4096))).hexdigest()
    with boot(MicroGuest(fio=False), found, Disk(chain.active), accelerator="tcg", iothread=iothread) as guest:
        loop = f"while true; do dd if={guest.device} of=/dev/null bs=64k iflag=direct; done"
        guest.run(f"({loop}) </dev/null >/dev/null 2>&1 &")
        for _ in range(3):
            with open_session(guest.vm.spare_qmp_path) as session:
                assert session.disk.iothread == ("io0" if iothread else None)
                assert live_index(session, qemu=None).left == []
            with open_session(guest.vm.spare_qmp_path) as session:
                assert live_restore(session, clean=True).left == []
                session.refresh()
                names = [name for name in session.graph.names if name.startswith("chainlift-")]
                assert 1 < len(names) < 60  # one for each command
        done = guest.run(f"echo 3 > /proc/sys/vm/drop_caches; sha256sum {guest.device}", timeout_s=300).require()
        assert done.stdout.split()[0] == whole
        guest.vm.kill()
