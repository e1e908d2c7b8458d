import random
import resource
import subprocess

import pytest
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift

from chainlift.chain import open_chain
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration

LENGTH = 300
SIZE = 32 << 20


@pytest.mark.timeout(600)
def test_a_long_chain_through_its_whole_life(tmp_path, host_qemu, tool, same, reference):
    rng = random.Random(1)
    name = None
    for number in range(LENGTH):
        path = tmp_path / f"{number}.qcow2"
        clusters = sorted(rng.sample(range(SIZE // 65536), 4 if number else 300))
        write_image(path, virtual_size=SIZE, clusters=clusters, backing_file=name, backing_format=name and "qcow2",
                    data=lambda c, n=number: bytes([(n * 7 + c) % 255 + 1]) * 65536)  # fmt: skip
        name = path.name
    image = tmp_path / "active.qcow2"
    write_image(image, virtual_size=SIZE, backing_file=name, backing_format="qcow2")
    raw = reference(image, tmp_path / "raw")

    index = lift_index(image, host_qemu)
    assert index.copied_bytes == 0
    assert same(image, raw)
    few = lift_index(image, host_qemu, copy_budget_bytes=(LENGTH - 40) * 4 * 65536)
    assert few.extents < 64 < index.extents
    assert same(image, raw)

    def write(path, at):
        assert (
            tool(host_qemu, "io", "-f", "qcow2", "-c", f"write -q -P {rng.randrange(1, 255)} {at} 100k", path)[0] == 0
        )

    write(image, 1 << 20)
    over = tmp_path / "over.qcow2"
    tool(host_qemu, "img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image.name, over)
    write(over, 5 << 20)
    reference(over, raw)
    again = lift_index(over, host_qemu)
    assert same(over, raw)
    with open_chain(over) as chain:
        assert chain.length == 1
    assert verify_lift(over, content=True)[1] == []
    assert again.original.name == image.name

    squash, _ = lift_squash(over, host_qemu)
    assert squash.kind == "squash"
    assert same(over, raw)
    restored = restore_lift(over, host_qemu, clean=True)
    assert [found.change.owner for found in restored.found] == [over, image]
    assert list(tmp_path.glob("*.lift")) == []
    with open_chain(over) as chain:
        assert chain.length == LENGTH + 1
    assert same(over, raw)
    done = subprocess.run(["qemu-img", "check", "-q", str(over)], capture_output=True)
    assert done.returncode == 0


@pytest.mark.timeout(600)
def test_more_layers_than_a_process_may_have_files(tmp_path, host_qemu, tool):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    name = None
    for number in range(1100):
        path = tmp_path / f"{number}.qcow2"
        write_image(
            path,
            virtual_size=1100 * 4096,
            cluster_size=4096,
            clusters=[number],
            data=bytes([number % 255 + 1]) * 4096,
            backing_file=name,
            backing_format=name and "qcow2",
        )
        name = path.name
    image = tmp_path / "active.qcow2"
    write_image(image, virtual_size=1100 * 4096, backing_file=name, backing_format="qcow2")
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limit[1]))
    try:
        manifest = lift_index(image, host_qemu)
        assert manifest.extents == 1101
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (1024, limit[1])
        with open_chain(image) as chain:
            assert chain.read(0, chain.virtual_size) == b"".join(bytes([n % 255 + 1]) * 4096 for n in range(1100))
        few = lift_index(image, host_qemu, copy_budget_bytes=1060 * 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    assert few.extents == 41
    status, said = tool(host_qemu, "io", "-r", "-f", "qcow2", "-c", "read -P 37 4325376 4096", image)
    assert status == 0, said
    assert "failed" not in said
