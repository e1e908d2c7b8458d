"""The micro guest, really booted (under TCG, which works everywhere)."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chainlift.errors import GuestError, QemuCrashed
from chainlift.guest.boot import boot
from chainlift.guest.interface import Guest, GuestKind
from chainlift.guest.micro import MicroGuest
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("disk") / "disk.qcow2"
    MicroGuest().make_disk(path, 256 << 20, data_bytes=16 << 20)
    return path


def test_a_guest_from_boot_to_halt(disk):
    """One boot for all that a guest does: each costs seconds under emulation."""
    qemu = find_qemu()
    kind = MicroGuest()
    assert isinstance(kind, GuestKind)
    with boot(kind, qemu, Disk(disk), accelerator="tcg") as guest:
        assert isinstance(guest, Guest)
        assert "chainlift: up after" in guest.vm.console_text()

        result = guest.run("echo out; echo err >&2; exit 3")
        assert (result.status, result.stdout, result.stderr) == (3, "out\n", "err\n")
        assert guest.run("kill -9 $$").status == 137
        assert guest.run("fio --version").require().stdout.startswith("fio-")
        with pytest.raises(GuestError, match=r"'sleep 30' was not done after 0.3 s"):
            guest.run("sleep 30", timeout_s=0.3)

        # The disk is /dev/sda, as long as it should be, and not mounted before somebody asks.
        assert guest.run("cat /sys/block/sda/size").stdout == f"{(256 << 20) // 512}\n"
        assert guest.run("cat /sys/block/sda/device/../*/vpd_pg80 | tail -c 10").stdout == "chainlift0"
        assert "sda" not in guest.run("cat /proc/mounts").stdout
        work = guest.work_directory()
        assert guest.work_directory() == work
        assert guest.run(f"stat -c %s {work}/fio.0.0").stdout == f"{16 << 20}\n"
        job = "--rw=randrw --bs=16k --size=16m --io_size=1m --direct=1 --ioengine=libaio"
        guest.run(f"fio --name=fio --directory={work} {job}").require()

        assert guest.freeze() == 1
        with pytest.raises(GuestError, match="guest-exec"):
            guest.run("true")
        assert guest.thaw() == 1
        guest.run(f"echo kept > {work}/kept").require()

        own = guest.vm.peak_own_bytes
        finished = guest.halt()
    assert finished.returncode == 0
    assert finished.cpu_user_s > 0.5
    assert 32 << 20 < own < finished.peak_rss_bytes
    assert not guest.vm.directory.exists()

    # What was written is in the image, and the file system was unmounted before the power went.
    raw = disk.with_suffix(".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    said = subprocess.run(["/sbin/debugfs", "-R", "cat /kept", raw], capture_output=True, text=True).stdout
    assert said == "kept\n"
    assert subprocess.run(["/sbin/e2fsck", "-fn", raw], capture_output=True).returncode == 0
    assert "needs_recovery" not in subprocess.run(["/sbin/dumpe2fs", "-h", raw], capture_output=True, text=True).stdout


def test_a_guest_that_does_not_come_up_shows_its_console(disk, tmp_path):
    # A kernel that finds no init says so and stops; -no-reboot makes that the end of QEMU.
    with (
        pytest.raises(GuestError, match=r"stopped by itself before it was up; its console ends: .*Kernel panic"),
        boot(
            MicroGuest(fio=False),
            find_qemu(),
            Disk(disk),
            accelerator="tcg",
            extra=["-append", "console=ttyS0 rdinit=/none panic=-1"],
        ),
    ):
        pass
    # One that has no time at all has not written anything yet.
    with (
        pytest.raises(GuestError, match=r"did not come up within 0.1 s; its console ends: "),
        boot(MicroGuest(fio=False), find_qemu(), Disk(disk), accelerator="tcg", deadline_s=0.1),
    ):
        pass


def test_a_disk_that_is_not_there_is_qemus_error(tmp_path):
    with (
        pytest.raises(QemuCrashed, match=r"exit status 1: .*No such file or directory"),
        boot(MicroGuest(fio=False), find_qemu(), Disk(tmp_path / "none"), accelerator="tcg"),
    ):
        pass


@pytest.mark.interrupts
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_end_of_us_leaves_no_qemu_and_no_socket(disk, end):
    code = f"""
import time
from pathlib import Path
from chainlift.guest.boot import machine_config
from chainlift.guest.micro import MicroGuest
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk
from chainlift.qemu.vm import VirtualMachine
config = machine_config(MicroGuest(fio=False).prepare(), [Disk(Path({str(disk)!r}))], accelerator="tcg")
with VirtualMachine(find_qemu(), config) as vm:
    print(vm.process.pid, vm.directory, flush=True)
    time.sleep(300)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pid, directory = parent.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    parent.send_signal(end)
    parent.wait()
    deadline = time.monotonic() + 120
    while (Path(f"/proc/{pid}").exists() or Path(directory).exists()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(directory).exists()
