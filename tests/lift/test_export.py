"""Snapshots that are served: what clients read, and that nothing is left."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from tests.support.chains import make_chain, plain_chain
from tests.support.json_schemas import valid
from tests.support.need import missing
from tests.support.stock import everything, img, opened_by_qemu_io, read, write

from chainlift.chain import open_chain
from chainlift.errors import ImageError, InputError, QemuError
from chainlift.lift.export import export
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.qemu.nbd import NbdClient

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def qemu():
    return find_qemu("host", need=["storage-daemon"])


@pytest.fixture
def socket(tmp_path_factory):
    """A short name."""
    with tempfile.TemporaryDirectory() as place:
        yield Path(place) / "nbd"


@pytest.fixture
def scratch(tmp_path_factory, monkeypatch):
    """Where temporary directories are made."""
    with tempfile.TemporaryDirectory(prefix="s") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        monkeypatch.setenv("TMPDIR", place)
        yield Path(place)


def served_bytes(socket):
    with NbdClient(socket, "") as client:
        return client.read(0, client.size_bytes)


def test_each_snapshot_is_read_as_it_is_and_nothing_is_left(tmp_path, socket, scratch, any_qemu):
    top = plain_chain(tmp_path / "c", length=6)
    before = everything(tmp_path)
    for number in (6, 5, 1, 0):
        layer = tmp_path / f"c/layer{number}.qcow2"
        with export(top, qemu=any_qemu, at=layer.name if number else layer, socket=socket) as served:
            assert served.layers == number + 1
            assert served.uri == f"nbd+unix:///?socket={socket}"
            assert served.slow is None
            with open_chain(layer) as chain:
                assert served_bytes(socket) == chain.read(0, chain.virtual_size)
        assert not socket.exists()
        assert not list(scratch.iterdir())
    assert everything(tmp_path) == before


@pytest.mark.parametrize("seed", range(6))
def test_random_chains(tmp_path, socket, qemu, seed):
    top = make_chain(tmp_path / "c", seed, length=6)
    with open_chain(top) as chain:
        wanted = chain.read(0, chain.virtual_size)
    with export(top, qemu=qemu, socket=socket):
        assert served_bytes(socket) == wanted


def test_a_lifted_disk(tmp_path, socket, host_qemu, qemu):
    from tests.support.lifts import lift_index

    top = plain_chain(tmp_path / "c", length=5)
    wanted = read(top)
    lift_index(top, host_qemu)
    with export(top, qemu=qemu, socket=socket):
        assert served_bytes(socket) == wanted


def test_below_a_running_disk_snapshots_are_served_and_the_active_layer_is_refused(tmp_path, socket, qemu):
    top = plain_chain(tmp_path / "c", length=6)
    with opened_by_qemu_io(top) as process:
        with (
            pytest.raises(ImageError, match=rf"open for writing in qemu-io \(process {process.pid}\).*--at"),
            export(top, qemu=qemu, socket=socket),
        ):
            pass
        with export(top, qemu=qemu, at="layer5.qcow2", socket=socket):
            assert served_bytes(socket) == read(tmp_path / "c/layer5.qcow2")
            # The other one goes on writing.
            process.stdin.write(b"write -P 9 0 64k\n")
            process.stdin.flush()
            assert served_bytes(socket) == read(tmp_path / "c/layer5.qcow2")
    assert process.returncode == 0


def test_layers_that_are_served_are_safe_from_writers(tmp_path, socket, qemu):
    top = plain_chain(tmp_path / "c", length=6)
    with export(top, qemu=qemu, at="layer5.qcow2", socket=socket), pytest.raises(AssertionError, match="lock"):
        write(tmp_path / "c/layer3.qcow2", 1, 0)


def test_names_that_an_index_cannot_carry_are_served_by_the_chain(tmp_path, socket, qemu):
    top = plain_chain(tmp_path / "c", length=5, name='a"{}.qcow2')
    with export(top, qemu=qemu, socket=socket) as served:
        assert "double quote" in served.slow
        assert served_bytes(socket) == read(top)


def test_what_is_refused(tmp_path, socket, qemu):
    top = plain_chain(tmp_path / "c", length=5)
    socket.write_text("mine")
    for how, match in (
        ({"socket": socket}, "exists"), ({"fuse": socket}, "exists"),
        ({"socket": tmp_path / ("x" * 100)}, "too many for a socket"),
        ({"socket": tmp_path / "s", "at": "other.qcow2"}, "is no layer of the chain"), ({}, "one of the two"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=match), export(top, qemu=qemu, **how):
            pass
    assert socket.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"c"}
    (tmp_path / "c/layer2.qcow2").unlink()
    with pytest.raises(ImageError), export(top, qemu=qemu, socket=tmp_path / "s"):
        pass


def test_two_layers_of_one_name(tmp_path, socket, qemu):
    write_image(tmp_path / "disk", virtual_size=1 << 20)
    (tmp_path / "new").mkdir()
    write_image(tmp_path / "new/disk", virtual_size=1 << 20, backing_file="../disk", backing_format="qcow2")
    with (
        pytest.raises(InputError, match="several layers"),
        export(tmp_path / "new/disk", qemu=qemu, at="disk", socket=socket),
    ):
        pass


def started(*words):
    """Start the command; wait until it serves."""
    process = subprocess.Popen(
        [sys.executable, "-m", "chainlift", "export", *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line, process.wait(120)
    return process, line


@pytest.mark.interrupts
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_ends_well_when_it_is_asked_to(tmp_path, socket, scratch, number):
    top = plain_chain(tmp_path / "c", length=5)
    before = everything(tmp_path)
    process, line = started(top, "--at", "layer4.qcow2", "--socket", socket)
    assert line == f"{tmp_path}/c/layer4.qcow2: 4.00 MiB of 5 layers at nbd+unix:///?socket={socket} until Ctrl-C\n"
    copy = tmp_path / "copy.raw"
    img("convert", "-O", "raw", f"nbd+unix:///?socket={socket}", copy)
    assert copy.read_bytes() == read(tmp_path / "c/layer4.qcow2")
    copy.unlink()
    process.send_signal(number)
    assert process.wait(120) == 0
    assert not socket.exists()
    assert not list(scratch.iterdir())
    assert everything(tmp_path) == before


@pytest.mark.interrupts
def test_killed_it_leaves_a_socket_that_the_next_one_replaces(tmp_path, socket, scratch):
    top = plain_chain(tmp_path / "c", length=5)
    process, said = started(top, "--json", "--socket", socket)
    assert valid("export", said)["uri"] == f"nbd+unix:///?socket={socket}"
    process.kill()
    process.wait(120)
    deadline = time.monotonic() + 120
    while list(scratch.iterdir()) and time.monotonic() < deadline:  # the daemon's supervisor removes it
        time.sleep(0.01)
    assert not list(scratch.iterdir())
    process, _ = started(top, "--socket", socket)
    assert served_bytes(socket) == read(top)
    process.terminate()
    assert process.wait(120) == 0


def test_a_daemon_that_is_killed_is_told(tmp_path, socket, qemu):
    top = plain_chain(tmp_path / "c", length=5)
    with export(top, qemu=qemu, socket=socket) as served:
        os.kill(served._daemon.pid, signal.SIGKILL)
        with pytest.raises(QemuError, match="SIGKILL"):
            served.wait()
    assert not socket.exists()


def test_as_a_file(tmp_path, scratch, qemu):
    top = plain_chain(tmp_path / "c", length=5)
    file = tmp_path / "disk.raw"
    try:
        with export(top, qemu=qemu, at="layer4.qcow2", fuse=file):
            assert file.read_bytes() == read(tmp_path / "c/layer4.qcow2")
            with pytest.raises(OSError):
                file.write_bytes(b"x")
    except QemuError as error:
        assert not file.exists()
        missing("fuse", str(error))
    assert not file.exists()
    assert not list(scratch.iterdir())
