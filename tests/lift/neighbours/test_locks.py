import subprocess
from pathlib import Path

import pytest
from tests.support.stock import opened_by_qemu_io

from chainlift.errors import ImageError
from chainlift.lift.neighbours.locks import LayerLocks, is_open_in_qemu, is_written, refuse_if_open
from chainlift.lift.neighbours.processes import OpenFiles
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.qcow2"
    write_image(path, virtual_size=1 << 20)
    return path


def test_an_image_that_nobody_has_is_free(image):
    assert not is_open_in_qemu(image)
    assert OpenFiles.look().holders(image) == []
    refuse_if_open(image)


def test_a_writer_is_seen_and_named(image):
    with opened_by_qemu_io(image) as process:
        assert is_written(image)
        assert list(map(str, OpenFiles.look().holders(image))) == [f"qemu-io (process {process.pid})"]
        with pytest.raises(ImageError, match=rf"qemu-io \(process {process.pid}\).*--qmp"):
            refuse_if_open(image)
        with pytest.raises(ImageError, match="open for writing in qemu-io"):
            LayerLocks({"a": image})


def test_a_reader_is_seen_and_does_not_keep_us_from_a_layer(image):
    with opened_by_qemu_io(image, "-r"):
        assert is_open_in_qemu(image)
        assert not is_written(image)
        LayerLocks({"a": image}).close()


def test_a_qemu_cannot_write_to_a_layer_that_we_hold_and_can_read_it(image):
    write = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", str(image)]
    read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 64k", str(image)]
    with LayerLocks({"a": image}):
        refused = subprocess.run(write, capture_output=True, text=True)
        assert refused.returncode == 1
        assert "lock" in refused.stderr
        assert subprocess.run(read, capture_output=True).returncode == 0
    assert subprocess.run(write, capture_output=True).returncode == 0


def test_descriptors_are_given_back_when_one_layer_cannot_be_held(image, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ImageError, match="cannot be opened"):
        LayerLocks({"a": image, "b": tmp_path / "missing"})
    assert len(list(Path("/proc/self/fd").iterdir())) == before
