import lzma

import pytest
import zstandard

from chainlift.errors import OperationError
from chainlift.guest.modules import load_order


def module(path, depends="", pack=bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0intree=Y\0"))


@pytest.fixture
def kernel(tmp_path):
    (tmp_path / "modules.builtin").write_text("kernel/lib/crc32.ko\n")
    module(tmp_path / "kernel/drivers/virtio/virtio_pci.ko", "virtio_ring,virtio")
    module(tmp_path / "kernel/drivers/virtio/virtio_ring.ko.xz", "virtio", lzma.compress)
    module(tmp_path / "kernel/drivers/virtio/virtio.ko.zst", "", zstandard.compress)
    module(tmp_path / "kernel/hw/virtio-rng.ko", "virtio,crc32")
    return tmp_path


def test_what_is_needed_comes_first_and_is_unpacked(kernel):
    order = load_order(kernel, ["virtio_pci", "virtio_rng", "crc32"])
    assert [module.name for module in order] == ["virtio", "virtio_ring", "virtio_pci", "virtio_rng"]
    assert all(module.data.startswith(b"\x7fELF") for module in order)


def test_a_module_that_the_kernel_has_not_is_named(kernel):
    with pytest.raises(OperationError, match="the kernel has no module btrfs"):
        load_order(kernel, ["btrfs"])
