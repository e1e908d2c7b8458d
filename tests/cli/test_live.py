import json
import subprocess
import sys

import pytest

from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

pytestmark = pytest.mark.integration


def chainlift(*arguments):
    return subprocess.run([sys.executable, "-m", "chainlift", *arguments], capture_output=True, text=True)


@pytest.fixture
def running(tmp_path):
    """A storage daemon with a disk on a chain of three; its QMP socket and the active layer."""
    below = None
    for number in range(4):
        path = tmp_path / f"layer{number}.qcow2"
        write_image(
            path, virtual_size=1 << 20, backing_file=below, backing_format="qcow2" if below else None,
            clusters=[number] if number < 3 else [], data=lambda cluster: bytes([cluster + 1]) * 65536,
        )  # fmt: skip
        below = path.name
    qemu = find_qemu(need=("storage-daemon",))
    socket = tmp_path / "qmp"
    disk = {"driver": "qcow2", "node-name": "disk0", "file": {"driver": "file", "filename": str(path)}}
    argv = qemu.command(
        "storage-daemon",
        *("--chardev", f"socket,id=qmp,path={socket},server=on,wait=off", "--monitor", "chardev=qmp"),
        *("--blockdev", json.dumps(disk), "--nbd-server", f"addr.type=unix,addr.path={tmp_path}/nbd"),
        *("--export", "type=nbd,id=exp0,node-name=disk0,writable=on"),
    )
    with QemuProcess(argv) as process:
        Monitor.connect(socket, process).close()
        yield socket, path


def test_a_running_disk_is_indexed_and_restored_by_two_commands(running):
    socket, image = running
    done = chainlift("index", "--qmp", socket)
    assert done.returncode == 0, done.stderr
    assert "an index of 4 extents over 3 layers" in done.stdout
    assert "switched under the running QEMU in" in done.stdout
    # On a busy machine a command may take long enough to be warned of.
    assert [line for line in done.stderr.splitlines() if "main loop serves stood still" not in line] == []
    done = chainlift("restore", "--qmp", socket, "--device", "exp0", "--clean")
    assert done.returncode == 0, done.stderr
    assert "stands on layer2.qcow2 again" in done.stdout
    done = chainlift("plan", "--qmp", socket)
    assert done.returncode == 0, done.stderr
    assert "3 layers over the base" in " ".join(done.stdout.split())
    done = chainlift("squash", "--qmp", socket, "--rate", "64M")
    assert done.returncode == 0, done.stderr
    assert "2 layers are one now" in done.stdout
    assert chainlift("restore", "--qmp", socket, "--clean").returncode == 0
    done = chainlift("restore", "--qmp", socket)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"chainlift: {image}: is not lifted; there is nothing to restore\n"


def test_a_device_that_is_not_there_names_those_that_are(running):
    done = chainlift("index", "--qmp", running[0], "--device", "vda")
    assert done.returncode == 2
    assert "has no qcow2 disk 'vda'; its disks: node disk0 of exp0: " in done.stderr


def test_a_socket_that_is_none_is_refused(tmp_path):
    done = chainlift("index", "--qmp", tmp_path / "nothing")
    assert done.returncode == 2
    assert "is no socket" in done.stderr


def test_a_choice_of_disk_without_a_socket_is_bad_use(running):
    done = chainlift("restore", running[1], "--node", "disk0")
    assert done.returncode == 2
    assert "--device and --node go with --qmp" in done.stderr


def test_an_image_that_runs_is_refused_at_rest_and_who_has_it_is_named(running):
    done = chainlift("index", running[1], "--content")
    assert done.returncode == 2
    assert "is open in qemu-storage-da" in done.stderr
    assert "name its QMP socket with --qmp" in done.stderr


def test_two_ways_to_one_monitor_are_bad_use(running):
    done = chainlift("index", "--qmp", running[0], "--libvirt", "vm7")
    assert done.returncode == 2
    assert "choose one" in done.stderr


def test_how_long_to_wait_for_a_busy_socket_can_be_said(running):
    with Monitor.connect(running[0]):
        done = chainlift("plan", "--qmp", running[0], "--timeout", "1")
    assert done.returncode == 3
    assert done.stderr.startswith(
        f"chainlift: {running[0]}: is busy: another client is connected, or QEMU does not answer "
    )
    assert "(waited 1 s); QMP serves one client at a time" in done.stderr
    done = chainlift("plan", running[1], "--timeout", "1")
    assert (done.returncode, "--timeout goes with --qmp" in done.stderr) == (2, True)
