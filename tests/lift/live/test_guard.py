"""What is refused, on a system emulator that never runs its guest."""

import contextlib
import fcntl
import itertools
import json
import os
import signal
import struct
import subprocess
from socket import AF_UNIX
from socket import socket as new_socket

import pytest
from tests.support.lifts import live_index
from tests.support.luks import SECRET, create_encrypted

from chainlift.errors import ImageError, InputError
from chainlift.lift.live.session import open_session
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.monitor import Monitor
from chainlift.qemu.process import QemuProcess

pytestmark = pytest.mark.integration


@pytest.fixture
def start_machine(tmp_path):
    """Return a function that starts a stopped machine with these arguments and returns its QMP socket."""
    with contextlib.ExitStack() as stack:
        number = itertools.count()

        def start(*arguments):
            socket = tmp_path / f"qmp{next(number)}"
            argv = find_qemu(need=("system",)).command(
                "system",
                *("-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32"),
                *("-qmp", f"unix:{socket},server=on,wait=off", *arguments),
            )
            process = stack.enter_context(QemuProcess(argv))
            Monitor.connect(socket, process).close()
            return socket

        yield start


def blockdev(node: str, image, **options) -> tuple[str, str]:
    file = {"driver": "file", "filename": str(image)}
    return ("-blockdev", json.dumps({"driver": "qcow2", "node-name": node, "file": file, **options}))


def refused(socket, **choice) -> str:
    with pytest.raises(InputError) as caught, open_session(socket, **choice) as session:
        live_index(session, qemu=None)
    assert not session_left_something(socket)
    return str(caught.value)


def session_left_something(socket) -> bool:
    with Monitor.connect(socket) as monitor:
        nodes = monitor.execute("query-named-block-nodes", flat=True)
    return any(node["node-name"].startswith("chainlift-") for node in nodes)


def test_a_disk_of_the_old_drive_option_has_no_name_to_reopen(make_chain, start_machine):
    socket = start_machine("-hda", str(make_chain(3).active))
    assert "was named by QEMU itself (-drive, -hda)" in refused(socket)


def test_a_machine_that_waits_for_a_migration_is_left_alone(make_chain, start_machine):
    image = make_chain(3).active
    socket = start_machine(
        *blockdev("vda", image), "-device", "virtio-blk-pci,drive=vda,id=disk0", "-incoming", "defer"
    )
    assert "the VM is in state inmigrate" in refused(socket)


def test_a_machine_that_migrates_away_is_left_alone(make_chain, start_machine, tmp_path):
    image = make_chain(3).active
    socket = start_machine(*blockdev("vda", image), "-device", "virtio-blk-pci,drive=vda,id=disk0")
    with listening(tmp_path / "nobody") as target:
        with Monitor.connect(socket) as monitor:
            monitor.execute("migrate", {"uri": f"unix:{target}"})
        assert "a migration is under way (" in refused(socket)


@contextlib.contextmanager
def listening(path):
    """Somebody who takes a connection and reads nothing of it."""
    with new_socket(AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


@pytest.mark.parametrize("where", ["vda", "below"])
def test_an_encrypted_layer_is_refused(make_chain, start_machine, where):
    chain = make_chain(3)
    overlay = chain.directory / "encrypted.qcow2"
    create_encrypted(overlay, "-F", "qcow2", "-b", chain.active.name, size=None)
    key = {"encrypt": {"format": "luks", "key-secret": "key0"}}
    disk = blockdev("vda", overlay, **key)
    if where == "below":
        top = chain.directory / "top.qcow2"
        write_image(top, virtual_size=chain.virtual_size, backing_file=overlay.name, backing_format="qcow2")
        file = {"driver": "file", "filename": str(overlay)}
        disk = blockdev("vda", top, backing={"driver": "qcow2", "read-only": True, "file": file, **key})
    socket = start_machine("-object", SECRET, *disk, "-device", "virtio-blk-pci,drive=vda,id=disk0")
    assert "encrypted" in refused(socket)


def test_a_copy_on_read_filter_over_the_disk_stays(make_chain, start_machine):
    image = make_chain(3).active
    reader = {"driver": "copy-on-read", "node-name": "cor", "file": "vda"}
    device = ("-blockdev", json.dumps(reader), "-device", "virtio-blk-pci,drive=cor,id=disk0")
    socket = start_machine(*blockdev("vda", image), *device)
    with open_session(socket, device="disk0") as session:
        assert (session.disk.node, session.disk.root) == ("vda", "cor")
        assert live_index(session, qemu=None).left == []
        session.refresh()
        assert session.graph.child("cor", "file") == "vda"


def test_a_read_only_disk_cannot_be_switched(make_chain, start_machine):
    image = make_chain(3).active
    disk = blockdev("vda", image, **{"read-only": True})
    socket = start_machine(*disk, "-device", "virtio-blk-pci,drive=vda,id=disk0")
    assert "is read-only" in refused(socket, device="disk0")


def test_a_layer_that_somebody_writes_to_is_refused(make_chain, start_machine):
    chain = make_chain(3)
    with chain.files[1].open("rb+") as written:
        # As a QEMU that has it open for writing: RAW_LOCK_PERM_BASE + BLK_PERM_WRITE.
        socket = start_machine(*blockdev("vda", chain.active), "-device", "virtio-blk-pci,drive=vda,id=disk0")
        lock = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0)
        fcntl.fcntl(written.fileno(), fcntl.F_OFD_SETLK, lock)
        assert "layer0001.qcow2: is open for writing" in refused(socket)


def test_a_throttle_over_the_disk_stays_and_its_device_names_it(make_chain, start_machine):
    image = make_chain(3).active
    throttle = {"driver": "throttle", "node-name": "slow", "throttle-group": "group0", "file": "vda"}
    socket = start_machine(
        *("-object", "throttle-group,id=group0,x-iops-total=1000"), *blockdev("vda", image),
        *("-blockdev", json.dumps(throttle), "-device", "virtio-blk-pci,drive=slow,id=disk0"),
    )  # fmt: skip
    with open_session(socket, device="disk0") as session:
        assert (session.disk.node, session.disk.root) == ("vda", "slow")
        assert live_index(session, qemu=None).left == []
        session.refresh()
        assert session.graph.child("slow", "file") == "vda"
        assert session.disk.path == image


def test_a_filter_between_the_layers_would_be_lost(make_chain, start_machine):
    chain = make_chain(3)
    below = {"driver": "qcow2", "read-only": True, "file": {"driver": "file", "filename": str(chain.files[2])}}
    group = {"throttle-group": "group0", "node-name": "between"}
    between = {"driver": "throttle", "read-only": True, "file": below, **group}
    socket = start_machine(
        *("-object", "throttle-group,id=group0", "-blockdev", json.dumps(between)),
        *blockdev("vda", chain.active, backing="between"), "-device", "virtio-blk-pci,drive=vda,id=disk0",
    )  # fmt: skip
    assert "filter between lies between the layers" in refused(socket)


def test_a_daemon_that_has_left_the_directory_of_a_relative_name_is_refused(make_chain, tmp_path):
    chain = make_chain(3)
    socket, pidfile = tmp_path / "qmp", tmp_path / "pid"
    argv = find_qemu(need=("system",)).command(
        "system",
        *("-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32", "-daemonize"),
        *("-qmp", f"unix:{socket},server=on,wait=off", "-pidfile", str(pidfile)),
        *(*blockdev("vda", chain.active.name), "-device", "virtio-blk-pci,drive=vda,id=disk0"),
    )
    subprocess.run(argv, check=True, cwd=chain.directory, timeout=60)
    try:
        said = refused(socket)
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGKILL)
    assert "node vda is /active.qcow2, and there is no such file here: " in said
    assert "a relative name in a directory that QEMU has left (-daemonize)" in said


def test_a_disk_that_was_given_as_a_file_descriptor_has_no_name(make_chain, tmp_path):
    chain = make_chain(3, absolute_names=True)
    socket, pidfile = tmp_path / "qmp", tmp_path / "pid"
    with chain.active.open("rb+") as file:
        argv = find_qemu(need=("system",)).command(
            "system",
            *("-S", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32", "-daemonize"),
            *("-qmp", f"unix:{socket},server=on,wait=off", "-pidfile", str(pidfile)),
            *("-add-fd", f"fd={file.fileno()},set=2", *blockdev("vda", "/dev/fdset/2")),
            *("-device", "virtio-blk-pci,drive=vda,id=disk0"),
        )
        subprocess.run(argv, check=True, pass_fds=(file.fileno(),), timeout=60)
    try:
        assert "node vda was opened through a file descriptor that QEMU was given (/dev/fdset/2)" in refused(socket)
    finally:
        os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_what_has_no_qmp_socket_is_told_apart(tmp_path):
    with pytest.raises(ImageError, match="is no socket"), open_session(tmp_path):
        pass
