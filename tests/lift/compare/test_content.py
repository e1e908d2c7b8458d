"""What need not be read is not, and what differs is found, at its very byte."""

import itertools
import os
import random
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.chains import make_chain, plain_chain
from tests.support.lifts import lift_index, lift_squash
from tests.support.mounts import on_a_loop_device

from chainlift.chain import Kind, open_chain
from chainlift.chain.descriptor import descriptor_text
from chainlift.chain.linear import Extent
from chainlift.errors import ImageError
from chainlift.lift.compare.content import first_difference
from chainlift.lift.compare.spans import Content, Pair, Side
from chainlift.lift.flatten import flatten
from chainlift.lift.record.image_state import read_image_state
from chainlift.lift.record.pointer import backing_name, open_pointer
from chainlift.qcow2.file import ImageFile
from chainlift.qcow2.writer import write_image

CLUSTER = 65536


def plainly(one, other):
    """The first difference, by reading everything."""
    size = max(one.virtual_size, other.virtual_size)
    ours, theirs = (
        np.frombuffer(chain.read(0, chain.virtual_size).ljust(size, b"\0"), np.uint8) for chain in (one, other)
    )
    unequal = ours != theirs
    return int(unequal.argmax()) if unequal.any() else None


def differing_spans(one, other):
    """The spans that are looked at, as offset and length; those that touch each other are one."""
    spans = []
    for pieces, _, _ in Pair(one, other).unproven():
        for start, length in zip(pieces.start.tolist(), pieces.length.tolist(), strict=True):
            first, before = spans.pop() if spans and sum(spans[-1]) == start else (start, 0)
            spans.append((first, before + length))
    return spans


def agree(one, other):
    """Both ways round, as a plain comparison; every span that differs is among those that are looked at."""
    expected = plainly(one, other)
    assert first_difference(one, other) == expected
    assert first_difference(other, one) == expected
    spans = differing_spans(one, other)
    assert all(length > 0 for _, length in spans)
    assert all(a + b < c for (a, b), (c, _) in itertools.pairwise(spans))
    proven, at = [], 0
    for start, length in [*spans, (max(one.virtual_size, other.virtual_size), 0)]:
        proven.append((at, start - at))
        at = start + length
    for start, length in proven:
        parts = [
            chain.read(start, max(0, min(length, chain.virtual_size - start))).ljust(length, b"\0")
            if start < chain.virtual_size
            else bytes(length)
            for chain in (one, other)
        ]
        assert parts[0] == parts[1], (start, length)
    return expected


@pytest.fixture
def reads(monkeypatch):
    """Sizes of what was read of files: parts of tables, which are at most a page here, left out."""
    counted = []
    plain = ImageFile.pread_into

    def count(self, buffer, offset):
        if len(buffer) > 4096:
            counted.append(len(buffer))
        return plain(self, buffer, offset)

    monkeypatch.setattr(ImageFile, "pread_into", count)
    return counted


def change_a_byte(path, rng):
    """Change one byte of data (not of a header or a table) of a layer; None where it has none."""
    with open_chain(str(path)) as chain:
        layer = chain.layers[0]
        places = [
            (int(host), int(length))
            for window in chain.resolve()
            for kind, number, host, length in zip(
                window.runs().kind, window.runs().layer, window.runs().host_offset, window.runs().length, strict=True
            )
            if kind == 3 and number == 0 and host < layer.data_file.size
        ]
    if not places:
        return
    host, length = rng.choice(places)
    with path.open("r+b") as file:
        at = min(host + rng.choice([0, length - 1, rng.randrange(length)]), path.stat().st_size - 1)
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))


common = settings(max_examples=40, suppress_health_check=list(HealthCheck), database=None)


@common
@given(seed=st.integers(0, 1 << 30), other=st.integers(0, 1 << 30))
def test_chains_that_have_nothing_to_do_with_each_other(tmp_path_factory, seed, other):
    place = tmp_path_factory.mktemp("pair")
    with open_chain(make_chain(place / "a", seed)) as one, open_chain(make_chain(place / "b", other)) as two:
        agree(one, two)
        assert agree(one, one) is None
    shutil.rmtree(place)


@common
@given(seed=st.integers(0, 1 << 30), rng=st.randoms(use_true_random=False))
def test_a_chain_and_a_part_of_it_that_share_files(tmp_path_factory, seed, rng):
    place = tmp_path_factory.mktemp("pair")
    top = make_chain(place / "a", seed)
    files = [path for path in (place / "a").iterdir() if path.suffix == ".qcow2"]
    with open_chain(top) as one, open_chain(rng.choice(files)) as two:
        agree(one, two)
    shutil.rmtree(place)


@common
@given(seed=st.integers(0, 1 << 30), rng=st.randoms(use_true_random=False))
def test_a_copy_in_which_single_bytes_of_layers_were_changed(tmp_path_factory, seed, rng):
    place = tmp_path_factory.mktemp("pair")
    top = make_chain(place / "a", seed)
    shutil.copytree(place / "a", place / "b")
    # Some layers stay the same files, under another name.
    for path in sorted((place / "b").iterdir()):
        if rng.random() < 0.4:
            path.unlink()
            os.link(place / "a" / path.name, path)
        elif rng.random() < 0.5:
            change_a_byte(path, rng)
    with open_chain(top) as one, open_chain(place / "b" / top.name) as two:
        agree(one, two)
    shutil.rmtree(place)


@pytest.mark.integration
@settings(max_examples=15, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 1 << 30), rng=st.randoms(use_true_random=False))
def test_lifts_with_single_bytes_changed_in_what_was_copied_and_in_layers(tmp_path_factory, host_qemu, seed, rng):
    place = tmp_path_factory.mktemp("lift")
    top = make_chain(place / "a", seed, size=3 << 20)
    image = place / "active.qcow2"
    write_image(image, virtual_size=3 << 20, backing_file=str(top), backing_format="qcow2")
    budget = rng.choice([0, 1 << 18, 1 << 30, None])
    if budget is None:
        try:
            lift_squash(image, host_qemu)
        except ImageError as error:
            assert "nothing between" in str(error)
            return
    else:
        lift_index(image, host_qemu, copy_budget_bytes=budget)
    state = read_image_state(image)
    with open_pointer(image, state.current) as lifted, state.open_original() as original:
        assert agree(lifted, original) is None
    manifest = state.manifest
    files = [file.path for file in manifest.files if not file.path.endswith((".vmdk", ".json"))]
    path = place / rng.choice(files)
    with path.open("r+b") as file:
        at = rng.randrange(path.stat().st_size)
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    try:
        with open_pointer(image, state.current) as lifted, state.open_original() as original:
            agree(lifted, original)
    except ImageError:
        pass  # the byte was one of a table
    shutil.rmtree(place)


def linear(image, cuts, end):
    """Lay an image out as extents of itself that are cut here; return the name by which it is opened."""
    parts = [Extent(str(image), stop - start, start) for start, stop in itertools.pairwise([0, *cuts, end])]
    descriptor = image.with_name("space.vmdk")
    descriptor.write_text(descriptor_text(parts))
    return backing_name(descriptor)


def contents_of(chain):
    return {content for pieces in Side(chain).pieces(0) for content in pieces.content.tolist()}


@common
@given(seed=st.integers(0, 1 << 30), rng=st.randoms(use_true_random=False))
def test_a_linear_space_whose_extents_cut_clusters_in_two(tmp_path_factory, seed, rng):
    place = tmp_path_factory.mktemp("linear")
    top = make_chain(place / "a", seed)
    sectors = top.stat().st_size // 512
    cuts = sorted({512 * rng.randrange(1, sectors) for _ in range(rng.randrange(1, 5))})
    with open_chain(top) as one, open_chain(linear(top, cuts, sectors * 512)) as two:
        assert agree(one, two) is None
    shutil.rmtree(place)


def test_a_compressed_stream_that_goes_over_the_end_of_an_extent(tmp_path):
    image = tmp_path / "image"
    write_image(
        image, virtual_size=1 << 20, clusters=[3, 4], data=lambda _: os.urandom(CLUSTER // 2) + bytes(CLUSTER // 2),
        compress=True,
    )  # fmt: skip
    with open_chain(image) as one:
        hosts = [host for window in one.resolve() for host in window.runs().host_offset.tolist() if host >= 0]
        cut = hosts[1] // 512 * 512 + 4096
        with open_chain(linear(image, [cut], image.stat().st_size // 512 * 512)) as two:
            assert contents_of(two) == {Content.ZERO, Content.PACKED, Content.ODD}
            assert agree(one, two) is None


@pytest.mark.integration
def test_what_reaches_past_the_end_of_a_linear_space(tmp_path):
    image = tmp_path / "image"
    for argv in (
        ["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"],
        ["qemu-io", "-c", "write -P 1 64k 64k", "-c", "write -P 2 320k 64k", image],
    ):
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    # QEMU allocates data behind the tables: the last cluster but for its first 4 KiB is cut off, and reads as zeros.
    with open_chain(image) as one, open_chain(linear(image, [], 6 * CLUSTER + 4096)) as two:
        assert contents_of(two) == {Content.ZERO, Content.PLAIN, Content.ODD}
        assert agree(one, two) == 5 * CLUSTER + 4096


def test_what_lies_in_the_same_place_of_the_same_file_is_not_read(tmp_path, reads):
    base = tmp_path / "base.raw"
    base.write_bytes(os.urandom(4 << 20))
    for name in ("one", "two"):
        write_image(
            tmp_path / name, virtual_size=8 << 20, backing_file="base.raw", backing_format="raw",
            clusters=[3, 9, 100], data=b"".join(bytes([n]) * CLUSTER for n in (1, 2, 3)),
        )  # fmt: skip
    with open_chain(tmp_path / "one") as one, open_chain(tmp_path / "two") as two:
        assert differing_spans(one, two) == [(n * CLUSTER, CLUSTER) for n in (3, 9, 100)]
        assert first_difference(one, two) is None
        assert sum(reads) == 2 * 3 * CLUSTER
        reads.clear()
        assert first_difference(one, one) is None
        assert reads == []


def test_holes_of_raw_files_are_not_read(tmp_path, reads):
    for name, size in (("one.raw", 1 << 30), ("two.raw", (1 << 30) - 5)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
            file.seek(300 << 20)
            file.write(b"data")
    write_image(tmp_path / "zeros", virtual_size=1 << 30)
    with (
        open_chain(tmp_path / "one.raw", format="raw") as one,
        open_chain(tmp_path / "two.raw", format="raw") as two,
        open_chain(tmp_path / "zeros") as zeros,
    ):
        assert first_difference(one, two) is None
        assert sum(reads) < 1 << 20
        assert first_difference(one, zeros) == first_difference(zeros, two) == 300 << 20
        assert sum(reads) < 2 << 20


@pytest.mark.integration
@pytest.mark.needs("loop")
@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_what_lies_in_the_same_blocks_is_not_read(tmp_path, reads, kind):
    place = tmp_path / "mount"
    place.mkdir()
    with on_a_loop_device(place, kind, tmp_path / "disk", 400 << 20):
        image = plain_chain(place / "c", length=6)
        flatten(image, place / "flat.qcow2")
        shutil.copyfile(place / "flat.qcow2", place / "other.qcow2")
        with (
            open_chain(image) as chain,
            open_chain(place / "flat.qcow2") as flat,
            open_chain(place / "other.qcow2") as other,
        ):
            reads.clear()
            assert first_difference(chain, flat) is first_difference(flat, chain) is None
            assert reads == []
            assert first_difference(chain, other) is None
            assert sum(reads) >= 2 << 20
            runs = next(flat.resolve()).runs()
            row = int((runs.kind == Kind.DATA).argmax())
            at = int(runs.start[row]) + 1000
            with (place / "flat.qcow2").open("r+b") as file:
                file.seek(int(runs.host_offset[row]) + 1000)
                file.write(b"?")
            reads.clear()
            assert first_difference(chain, flat) == at
            assert 0 < sum(reads) <= 4 << 20


def test_a_cluster_that_is_compressed_is_unpacked_once(tmp_path, monkeypatch):
    rng = random.Random(1)
    for name, cluster in (("one", 4096), ("two", 1 << 20)):
        write_image(
            tmp_path / name, virtual_size=4 << 20, cluster_size=cluster, clusters=range((4 << 20) // cluster),
            data=lambda number, size=cluster: bytes([rng.randrange(1)]) * size, compress=True,
        )  # fmt: skip
    unpacked = []
    with open_chain(tmp_path / "one") as one, open_chain(tmp_path / "two") as two:
        from chainlift.lift.build.files import SourceFile

        plain = SourceFile.read_compressed

        def count(self, *arguments):
            unpacked.append((self.path, *arguments))
            return plain(self, *arguments)

        monkeypatch.setattr(SourceFile, "read_compressed", count)
        assert first_difference(one, two) is None
    assert len(unpacked) == len(set(unpacked)) == 1024 + 4


def test_progress_tells_the_whole_disk(tmp_path):
    done = []
    write_image(tmp_path / "one", virtual_size=3 << 20, clusters=[1], data=b"x" * CLUSTER)
    write_image(tmp_path / "two", virtual_size=4 << 20, clusters=[1], data=b"x" * CLUSTER)
    with open_chain(tmp_path / "one") as one, open_chain(tmp_path / "two") as two:
        assert first_difference(one, two, done.append) is None
    assert done == sorted(done)
    assert done[-1] == 4 << 20


def test_an_encrypted_layer_cannot_be_compared(tmp_path):
    write_image(tmp_path / "one", virtual_size=1 << 20, clusters=[0], data=b"x" * CLUSTER)
    with (tmp_path / "one").open("r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))
    with open_chain(tmp_path / "one") as one, pytest.raises(ImageError, match="encrypted"):
        first_difference(one, one)
