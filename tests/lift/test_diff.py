"""In what two snapshots differ: outside the ranges they read the same, inside as much as is said."""

import itertools
import json
import os
import random
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.chains import make_chain, plain_chain
from tests.support.json_schemas import valid
from tests.support.stock import img, opened_by_qemu_io, read, run

from chainlift.chain import ChainPolicy, open_chain
from chainlift.cli.main import main
from chainlift.errors import ChainliftError, ImageError, InputError, PolicyError
from chainlift.lift.diff import open_difference
from chainlift.lift.diff_export import export_difference
from chainlift.qcow2.writer import write_image

CLUSTER = 65536
MIB = 1 << 20


def content_of(chain):
    return np.frombuffer(chain.read(0, chain.virtual_size), np.uint8)


def agree(old, new, *, content=False):
    """Check the ranges against what both read; return them."""
    with open_difference(old, new, content=content) as difference:
        ranges = list(difference.ranges())
        newer = content_of(difference.new)
        older = np.zeros_like(newer)
        there = content_of(difference.old)[: len(newer)]
        older[: len(there)] = there
    unequal = older != newer
    ends = [0]
    for start, length, zero in ranges:
        assert length > 0
        assert ends[-1] <= start
        ends.append(start + length)
        inside = slice(start, start + length)
        assert not (zero and newer[inside].any())
        if content:
            assert unequal[inside].any()
        unequal[inside] = False
    assert ends[-1] <= len(newer)
    assert not unequal.any(), ranges
    assert all(
        one.start + one.length < other.start or one.zero != other.zero for one, other in itertools.pairwise(ranges)
    )
    return ranges


def with_branches(directory, seed, rng):
    """Make a chain with branches; return all of its images."""
    make_chain(directory, seed)
    images = sorted(directory.iterdir())
    for number in range(rng.randrange(4)):
        below = rng.choice(images)
        path = directory / f"branch{number}.qcow2"
        size = rng.choice([1, 3, 4]) * MIB + 512 * rng.randrange(3)
        cluster = rng.choice([4096, 16384, 65536])
        chosen = sorted(rng.sample(range(size // cluster), 6))
        write_image(
            path, virtual_size=size, cluster_size=cluster, clusters=chosen[:4], zero_clusters=chosen[4:],
            data=rng.randbytes(4 * cluster), backing_file=below.name,
            backing_format="raw" if below.suffix == ".raw" else "qcow2",
        )  # fmt: skip
        images.append(path)
    return images


@pytest.mark.integration
@settings(max_examples=25, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 1 << 30), rng=st.randoms(use_true_random=False))
def test_random_chains_with_branches(tmp_path_factory, seed, rng):
    place = tmp_path_factory.mktemp("diff")
    images = with_branches(place / "chain", seed, rng)
    old, new = rng.choice(images), rng.choice(images)
    assert len(agree(old, new, content=True)) <= sum(length for _, length, _ in agree(old, new)) // 512
    agree(new, old)
    out = place / "out.qcow2"
    for content in (False, True):
        with open_difference(old, new, content=content, export=True) as difference:
            export_difference(difference, difference.ranges(), out)
        new_format = "raw" if new.suffix == ".raw" else "qcow2"
        img("compare", "-f", "qcow2", "-F", new_format, out, new)
        img("check", "-q", out)
        out.unlink()
    shutil.rmtree(place)


@pytest.mark.integration
def test_a_lifted_disk_and_a_snapshot_that_its_index_points_into(tmp_path, capsys):
    image = plain_chain(tmp_path / "c", length=6)
    plain = agree(tmp_path / "c/layer2.qcow2", image)
    with pytest.raises(SystemExit) as ended:
        main(["index", str(image)])
    assert ended.value.code == 0
    assert agree(tmp_path / "c/layer2.qcow2", image) == plain
    assert plain


def test_what_both_stand_on_is_not_read(tmp_path, monkeypatch):
    image = plain_chain(tmp_path / "c", length=5)
    base = tmp_path / "c/layer0.qcow2"
    with open_chain(base) as chain:
        tables = chain.layers[0].image.l2_offsets(0, 1)
    damaged = bytearray(base.read_bytes())
    damaged[tables[0] : tables[0] + CLUSTER] = b"\xff" * CLUSTER
    base.write_bytes(damaged)
    with open_chain(image) as chain, pytest.raises(ImageError):
        list(chain.resolve())
    with open_difference(tmp_path / "c/layer3.qcow2", image) as difference:
        ranges = list(difference.ranges())
    assert ranges == [(4 * CLUSTER, 2 * CLUSTER, False), (10 * CLUSTER, CLUSTER, False), (24 * CLUSTER, 2 * CLUSTER, 0)]


def test_disks_of_different_sizes(tmp_path):
    write_image(tmp_path / "base", virtual_size=4 * MIB, clusters=range(64), data=os.urandom(4 * MIB))
    backing = {"backing_file": "base", "backing_format": "qcow2"}
    write_image(tmp_path / "small", virtual_size=MIB + 512, **backing)
    write_image(tmp_path / "large", virtual_size=8 * MIB, clusters=[100], data=b"L" * CLUSTER, **backing)
    small, large = tmp_path / "small", tmp_path / "large"
    assert agree(small, large) == [(MIB + 512, 3 * MIB - 512, False), (100 * CLUSTER, CLUSTER, False)]
    assert agree(large, small) == []
    write_image(tmp_path / "cut", virtual_size=8 * MIB, backing_file="small", backing_format="qcow2")
    # Its backing file ends early: what the base has behind that is zeros here.
    assert agree(tmp_path / "base", tmp_path / "cut") == [(MIB + 512, 3 * MIB - 512, True)]
    assert agree(tmp_path / "cut", tmp_path / "base") == [(MIB + 512, 3 * MIB - 512, False)]


def test_chains_without_a_common_layer_are_refused(tmp_path):
    one, other = plain_chain(tmp_path / "a"), plain_chain(tmp_path / "b")
    with pytest.raises(InputError, match="no layer in common"), open_difference(one, other):
        pass


def test_a_layer_outside_what_is_allowed(tmp_path):
    image = plain_chain(tmp_path / "a")
    with pytest.raises(PolicyError), open_difference(image, image, ChainPolicy(within=(tmp_path / "b",))):
        pass


@pytest.mark.integration
def test_of_a_running_disk_the_layers_below_are_compared_and_the_active_one_is_refused(tmp_path):
    image = plain_chain(tmp_path / "c", length=4)
    with opened_by_qemu_io(image):
        with (
            pytest.raises(ImageError, match=r"open for writing in qemu-io.*take a new one"),
            open_difference(tmp_path / "c/layer1.qcow2", image),
        ):
            pass
        assert agree(tmp_path / "c/layer1.qcow2", tmp_path / "c/layer3.qcow2")


def test_an_encrypted_layer_is_compared_by_its_metadata_alone(tmp_path):
    image = plain_chain(tmp_path / "c", length=3)
    with image.open("r+b") as file:
        file.seek(32)
        file.write(b"\0\0\0\2")
    with open_difference(tmp_path / "c/layer2.qcow2", image) as difference:
        assert len(list(difference.ranges())) == 3
    with (
        open_difference(tmp_path / "c/layer2.qcow2", image, content=True) as difference,
        pytest.raises(ImageError, match="is encrypted"),
    ):
        list(difference.ranges())


def test_hostile_tables_give_one_line(tmp_path):
    rng = random.Random(1)
    image = plain_chain(tmp_path / "c", length=2)
    whole = image.read_bytes()
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.choice([rng.randrange(112), rng.randrange(len(whole))])
            damaged[at] = rng.randrange(256)
        image.write_bytes(damaged)
        try:
            with open_difference(tmp_path / "c/layer0.qcow2", image, export=True) as difference:
                export_difference(difference, difference.ranges(), tmp_path / "out")
            (tmp_path / "out").unlink()
        except ChainliftError as error:
            assert error.exit_status == 2
            assert "\n" not in str(error)
            refused += 1
    assert refused
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def chainlift(capfd):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        return ended.value.code, *capfd.readouterr()

    return call


@pytest.mark.integration
def test_the_command(tmp_path, chainlift):
    image = plain_chain(tmp_path / "c", length=3)
    old, out = tmp_path / "c/layer1.qcow2", tmp_path / "c/difference.qcow2"
    status, said, _ = chainlift("diff", "--json", old, image)
    assert status == 0
    ranges = valid("diff", said)
    assert ranges[0] == {"start": 2 * CLUSTER, "length": 2 * CLUSTER, "zero": False}
    assert len(ranges) == 3
    status, table, error = chainlift("diff", old, image)
    assert status == 0
    assert table.splitlines()[:2] == ["Offset          Length          Zero", "0x20000         0x20000         no"]
    assert error == "320 KiB in 3 ranges\n"
    assert valid("diff", chainlift("diff", "--json", image, image)[1]) == []
    status, said, _ = chainlift("diff", "--export", out, old, image)
    assert status == 0
    assert said.startswith(f"{out}: ")
    assert "with 320 KiB of the disk in 3 ranges" in said
    assert read(out) == read(image)
    info = json.loads(img("info", "--output=json", out))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("layer1.qcow2", "qcow2")
    again = chainlift("diff", "--export", out, old, image)
    assert again[0] == 2
    assert "exists" in again[2]


@pytest.mark.integration
def test_an_exported_difference_is_put_onto_a_copy_elsewhere(tmp_path, chainlift):
    image = plain_chain(tmp_path / "c", length=3)
    old, out = tmp_path / "c/layer1.qcow2", tmp_path / "difference.qcow2"
    assert chainlift("diff", "--content", "--export", out, old, image)[0] == 0
    assert json.loads(img("info", "--output=json", out))["backing-filename"] == str(old)
    copy = tmp_path / "copy.qcow2"
    img("convert", "-O", "qcow2", old, copy)
    run("qemu-img", "rebase", "-u", "-b", copy, "-F", "qcow2", out)
    run("qemu-img", "commit", "-q", out)
    assert read(copy) == read(image)


@pytest.mark.integration
def test_a_reader_that_goes_away_and_a_difference_of_sizes(tmp_path, chainlift):
    image = plain_chain(tmp_path / "c", length=3)
    write_image(tmp_path / "c/top", virtual_size=8 * MIB, backing_file=image.name, backing_format="qcow2")
    status, said, error = chainlift("diff", "--json", image, tmp_path / "c/top")
    assert (status, said) == (0, "[]\n")
    assert error == "chainlift: the disks differ in size: 4.00 MiB (4194304) and 8.00 MiB (8388608) bytes\n"
    done = subprocess.run(
        f"chainlift diff --json {tmp_path}/c/layer0.qcow2 {image} | head -c 1", shell=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == (b"[", b"")
