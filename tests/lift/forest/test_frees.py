"""What deleting an image frees, against what is free when stock tools have done it."""

import random
import subprocess

import pytest
from tests.support.chains import make_chain
from tests.support.stock import create, img, run, write

from chainlift.chain import open_chain
from chainlift.chain.summarize import summarize
from chainlift.lift.forest.tree import open_tree

pytestmark = pytest.mark.integration

CLUSTER = 65536


def frees(directory):
    with open_tree([directory]) as tree:
        return {entry.path.rpartition("/")[2]: entry.frees_bytes for entry in tree}


def on_disk(directory):
    run("sync")
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def make(directory, seed):
    """A chain of five snapshots over a base, which may be a raw file with holes; clusters may differ in size."""
    rng = random.Random(seed)
    directory.mkdir()
    base = directory / "0"
    if seed % 2:
        with base.open("wb") as file:
            file.truncate(8 << 20)
            for _ in range(6):
                file.seek(rng.randrange(128) * CLUSTER)
                file.write(rng.randbytes(3 * CLUSTER))
            file.truncate(8 << 20)
    else:
        create(base, size="8M")
        write(base, 1, "1M", "4M")
    names = ["0"]
    for number in range(1, 6):
        path = directory / str(number)
        form = "raw" if seed % 2 and number == 1 else "qcow2"
        size = rng.choice(["16k", "64k", "128k"]) if seed > 1 else "64k"
        img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={size}", "-b", names[-1], "-F", form, path)
        for _ in range(5):
            write(path, rng.randrange(2, 250), rng.randrange(100) * CLUSTER, CLUSTER * rng.randrange(1, 6))
        names.append(str(number))


@pytest.mark.parametrize("seed", range(4))
def test_a_snapshot_taken_out_by_stock_tools_frees_what_was_said(tmp_path, fresh, seed):
    make(tmp_path / "template", seed)
    said = frees(tmp_path / "template")
    assert said["5"] == (tmp_path / "template/5").stat().st_blocks * 512
    for number in range(1, 5):
        place = fresh(tmp_path / "template")
        before = on_disk(place)
        form = "raw" if seed % 2 and number == 1 else "qcow2"
        img("rebase", "-f", "qcow2", "-F", form, "-b", str(number - 1), place / str(number + 1))
        (place / str(number)).unlink()
        # Where clusters differ in size, the one above needs whole clusters for parts of them.
        close = (16 if seed > 1 else 3) * CLUSTER
        assert said[str(number)] == pytest.approx(before - on_disk(place), abs=close)


@pytest.mark.parametrize("seed", range(30))
def test_inspect_of_a_chain_says_the_same(tmp_path, seed):
    top = make_chain(tmp_path / "c", seed)
    said = frees(tmp_path / "c")
    with open_chain(top) as chain:
        layers = summarize(chain).layers
    for layer in layers[1:]:
        assert layer.frees_bytes in (said[layer.path.rpartition("/")[2]], None)


def test_a_shared_base_frees_nothing_and_a_shadowed_snapshot_everything(tmp_path):
    base = create(tmp_path / "base", size="8M")
    write(base, 1, 0, "4M")
    for name in ("a", "b"):
        create(tmp_path / name, base)
        write(tmp_path / name, 2, "1M", "1M")
    create(tmp_path / "c", tmp_path / "a")
    write(tmp_path / "c", 3, "1M", "1M")
    found = frees(tmp_path)
    assert found["base"] == 0
    assert found["a"] == (tmp_path / "a").stat().st_blocks * 512


def test_compressed_and_extended_images(tmp_path):
    base = create(tmp_path / "base", size="8M")
    for place in (0, "1M"):
        run("qemu-io", "-f", "qcow2", "-c", f"write -c -P 7 {place} 64k", base)
    img(
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "extended_l2=on,cluster_size=64k",
        "-b",
        base,
        "-F",
        "qcow2",
        tmp_path / "a",
    )
    write(tmp_path / "a", 1, 0, "64k")
    img("create", "-q", "-f", "qcow2", "-b", tmp_path / "a", "-F", "qcow2", tmp_path / "b")
    write(tmp_path / "a", 2, "2M", "2k")
    found = frees(tmp_path)
    # Of what is compressed in the base one cluster of two is needed: some hundred bytes.
    assert base.stat().st_blocks * 512 - 1024 < found["base"] <= base.stat().st_blocks * 512
    taken = (tmp_path / "a").stat().st_blocks * 512
    assert found["a"] == taken - CLUSTER - 2048


def test_the_tree_in_use(tmp_path):
    from tests.support.stock import opened_by_qemu_io

    base = create(tmp_path / "base")
    top = create(tmp_path / "top", base)
    with opened_by_qemu_io(top) as process, open_tree([tmp_path]) as tree:
        found = {entry.path: entry for entry in tree}
        assert [holder.pid for holder in found[str(top)].holders] == [process.pid]
        assert not found[str(top)].is_held_above
        assert found[str(base)].is_held_above
    assert subprocess.run(["chainlift", "tree", tmp_path], capture_output=True).returncode == 0
