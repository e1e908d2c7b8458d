"""Who has a file open: real processes, in other mount namespaces too, and loop devices."""

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.need import missing

from chainlift.errors import ImageError
from chainlift.lift.neighbours.locks import refuse_if_open
from chainlift.lift.neighbours.processes import OpenFiles, describe_holders
from chainlift.qcow2.writer import write_image

NOBODY = 65534
as_root = pytest.mark.needs("root")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.qcow2"
    write_image(path, virtual_size=1 << 20)
    return path


@contextmanager
def running(*command, until, **options):
    """A program, from the moment that something is true until the block ends."""
    with subprocess.Popen([*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **options) as process:
        try:
            deadline = time.monotonic() + 60
            while not until():
                assert process.poll() is None, "it has ended"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def held(path, by=1):
    return lambda: len(OpenFiles.look().holders(path)) == by


def held_by(name, path):
    return lambda: [holder.name for holder in OpenFiles.look().holders(path)] == [name]


def test_a_file_that_nobody_has_open_or_only_we_ourselves(image):
    with image.open("rb"):
        assert OpenFiles.look().holders(image) == []
    assert OpenFiles.look().holders(image.with_name("missing")) == []
    refuse_if_open(image)


def test_any_process_counts_and_a_writer_is_told_from_a_reader(image):
    with (
        running("tail", "-f", image, until=held(image)) as reader,
        running(
            "sh", "-c", f"exec sleep 60 >>'{image}'", until=lambda: len(OpenFiles.look().holders(image)) > 1
        ) as writer,
    ):
        first, second = OpenFiles.look().holders(image)
        assert (first.pid, first.name, first.path, first.may_write) == (writer.pid, "sleep", str(image), True)
        assert (second.pid, second.name, second.may_write) == (reader.pid, "tail", False)
        assert describe_holders([first, second]) == f"sleep (process {writer.pid}), tail (process {reader.pid})"
        assert describe_holders([first, second], most=1) == f"sleep (process {writer.pid}) and 1 more"
        with pytest.raises(ImageError, match=rf"is open in sleep \(process {writer.pid}\), tail"):
            refuse_if_open(image)
        assert [holder.pid for holder in OpenFiles.look(ours=[writer.pid]).holders(image)] == [reader.pid]


def test_a_renamed_file_and_another_name_of_it_are_the_same_file(image):
    with running("tail", "-f", image, until=held(image)):
        moved = image.rename(image.with_name("moved"))
        image.symlink_to(moved)
        os.link(moved, image.with_name("hard"))
        for name in (moved, image, image.with_name("hard")):
            (holder,) = OpenFiles.look().holders(name)
            assert holder.path == str(moved)


@as_root
def test_a_daemon_in_another_mount_namespace_is_seen(image, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    node = f"driver=qcow2,node-name=d,file.driver=file,file.filename={elsewhere / image.name},file.locking=off"
    script = f"mount --bind {image.parent} {elsewhere} && exec qemu-storage-daemon --blockdev {node}"
    with running("unshare", "-m", "sh", "-c", script, until=held(image)) as process:
        assert not (elsewhere / image.name).exists()
        (holder,) = OpenFiles.look().holders(image)
        assert (holder.pid, holder.name) == (process.pid, "qemu-storage-da")
        with pytest.raises(ImageError, match=f"process {process.pid}"):  # though it has taken no lock
            refuse_if_open(image)


def test_a_qemu_that_was_started_through_its_own_loader_is_named_by_its_program(image, any_qemu):
    command = any_qemu.command("io", "-f", "qcow2", str(image))
    with running(*command, until=held(image), env={**os.environ, **any_qemu.environment}) as process:
        (holder,) = OpenFiles.look().holders(image)
        assert str(holder) == f"qemu-io (process {process.pid})"


@as_root
def test_a_loop_device_holds_its_file_and_its_own_users_hold_the_device(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    done = subprocess.run(["losetup", "-f", "--show", disk], capture_output=True, text=True)
    if done.returncode != 0:
        missing("loop", done.stderr.strip())
    device = Path(done.stdout.strip())
    try:
        moved = disk.rename(tmp_path / "moved")
        disk.write_bytes(b"another file under the old name")
        (holder,) = OpenFiles.look().holders(moved)
        assert (str(holder), holder.pid, holder.may_write) == (f"loop device {device}", None, True)
        assert OpenFiles.look().holders(device) == []
        with running("sh", "-c", f"exec sleep 60 <{device}", until=held_by("sleep", device)):
            link = tmp_path / "volume"
            link.symlink_to(device)
            assert [holder.name for holder in OpenFiles.look().holders(link)] == ["sleep"]
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@as_root
def test_another_users_qemu_is_seen_by_its_locks(image, tmp_path):
    tmp_path.chmod(0o755)
    image.chmod(0o644)
    for parent in list(tmp_path.parents)[:3]:
        if parent.stat().st_mode & 0o5 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)
    with running("qemu-io", "-f", "qcow2", image, until=held(image)):
        answer, question = os.pipe()
        child = os.fork()
        if child == 0:  # nobody looks
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                found = OpenFiles.look()
                said = f"{found.can_see_all}: {', '.join(map(str, found.holders(image)))}"
                os.write(question, said.encode())
            finally:
                os._exit(0)
        os.close(question)
        os.waitpid(child, 0)
        with os.fdopen(answer) as file:
            assert file.read() == "False: a QEMU of another user"
    assert OpenFiles.look().can_see_all
