"""Chains of every shape, read and resolved; QEMU is the judge."""

import resource
import subprocess
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from chainlift import open_chain
from chainlift.chain import Kind
from chainlift.chain.resolve import Resolver
from chainlift.errors import InputError
from chainlift.qcow2.writer import write_image

K64 = 65536
MIB = 1 << 20


def fill(letter: str, size: int = K64, count: int = 1) -> bytes:
    return letter.encode() * (size * count)


def over(name: str, backing: str, **more):
    return {"path": name, "backing_file": backing, "backing_format": "qcow2", **more}


def test_the_topmost_layer_that_has_a_cluster_owns_it(tmp_path):
    write_image(tmp_path / "base", virtual_size=MIB, clusters=range(4), data=fill("B", count=4))
    write_image(**over(tmp_path / "middle", "base", virtual_size=MIB, clusters=[1, 2], data=fill("M", count=2)))
    write_image(**over(tmp_path / "top", "middle", virtual_size=MIB, clusters=[2], data=fill("T"), zero_clusters=[3]))
    with open_chain(tmp_path / "top") as chain:
        assert chain.length == 2
        (window,) = chain.resolve()
        assert window.layer[:5].tolist() == [2, 1, 0, 0, -1]
        assert window.kind[:5].tolist() == [Kind.DATA, Kind.DATA, Kind.DATA, Kind.ZERO_PLAIN, Kind.UNALLOCATED]
        assert (chain.read(0, 5 * K64)[::K64], chain.read(3 * K64 - 1, 3)) == (b"BMT\0\0", b"T\0\0")


@pytest.mark.integration
def test_a_short_middle_layer_hides_what_is_below_its_end(tmp_path, guest_view):
    # 300 sectors: the middle ends inside a cluster, and inside a granule.
    write_image(tmp_path / "base", virtual_size=MIB, clusters=range(16), data=fill("B", count=16))
    write_image(**over(tmp_path / "middle", "base", virtual_size=300 * 512, clusters=[0], data=fill("M")))
    write_image(**over(tmp_path / "top", "middle", virtual_size=2 * MIB, clusters=[9], data=fill("T")))
    with open_chain(tmp_path / "top") as chain:
        assert chain.read(0, chain.virtual_size) == guest_view(tmp_path / "top")
        assert chain.read(300 * 512 - 1, 2) == b"B\0"
        assert {window.granularity for window in chain.resolve()} == {512, K64}
        assert chain.fall_depth(np.array([0, 300 * 512 - 1, 300 * 512, MIB])).tolist() == [2, 2, 0, 0]


@pytest.mark.integration
@pytest.mark.parametrize("cluster_sizes", [(512, K64, 2 * MIB), (2 * MIB, 4096, 512), (K64, 16384, K64)])
def test_layers_may_differ_in_cluster_size(tmp_path, guest_view, cluster_sizes):
    size = 8 * MIB
    rng = np.random.default_rng(7)
    name = None
    for depth, cluster_size in enumerate(cluster_sizes):
        chosen = np.sort(rng.choice(size // cluster_size, max(1, size // cluster_size // 3), replace=False))
        data = rng.integers(0, 255, len(chosen) * cluster_size, dtype=np.uint8)
        write_image(
            tmp_path / str(depth), virtual_size=size, cluster_size=cluster_size, clusters=chosen, data=data,
            backing_file=name, backing_format=name and "qcow2",
        )  # fmt: skip
        name = str(depth)
    with open_chain(tmp_path / name) as chain:
        assert chain.granularity == min(cluster_sizes)
        assert chain.read(0, size) == guest_view(tmp_path / name)


@pytest.mark.integration
def test_subclusters_and_compressed_clusters_fall_through_to_what_lies_below(tmp_path, guest_view):
    rng = np.random.default_rng(3)
    write_image(
        tmp_path / "0", virtual_size=4 * MIB, clusters=range(64), data=lambda c: bytes([c + 1]) * K64, compress=True
    )
    write_image(
        **over(tmp_path / "1", "0", virtual_size=4 * MIB, extended_l2=True, clusters=range(0, 64, 2)),
        data=rng.integers(0, 255, 32 * K64, dtype=np.uint8),
        subclusters=[0x0F0F0F0F | (0xF0000000 << 32) for _ in range(32)],
    )
    write_image(
        **over(tmp_path / "2", "1", virtual_size=4 * MIB, compression="zstd", compress=True, clusters=[0, 9]),
        data=fill("z", count=2), zero_clusters=[10],
    )  # fmt: skip
    with open_chain(tmp_path / "2") as chain:
        assert chain.granularity == 2048
        assert chain.read(0, 4 * MIB) == guest_view(tmp_path / "2")


@pytest.mark.integration
@pytest.mark.parametrize("size", [1, 511, 512, 1000, K64 + 1, 3 * K64])
def test_a_raw_base_of_any_size_reads_as_zeros_behind_its_end(tmp_path, guest_view, size):
    (tmp_path / "base").write_bytes(b"r" * size)
    write_image(
        tmp_path / "top", virtual_size=MIB, clusters=[2], data=fill("T"), backing_file="base", backing_format="raw"
    )
    with open_chain(tmp_path / "top") as chain:
        assert chain.read(0, MIB) == guest_view(tmp_path / "top")


@pytest.mark.integration
def test_a_raw_backing_format_is_never_probed(tmp_path, guest_view):
    write_image(tmp_path / "base", virtual_size=MIB, clusters=[0], data=fill("B"))
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="base", backing_format="raw")
    with open_chain(tmp_path / "top") as chain:
        assert chain.read(0, 4) == b"QFI\xfb"
        assert chain.read(0, MIB) == guest_view(tmp_path / "top")
        assert not chain.layers[1].probed


@pytest.mark.integration
@pytest.mark.parametrize("raw", ["on", "off"])
def test_data_in_an_external_file_is_read_there(tmp_path, qemu_img, guest_view, raw):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data,data_file_raw={raw}", path, MIB)
    subprocess.run(["qemu-io", "-c", "write -P 65 128k 70k", path], check=True, capture_output=True)
    with open_chain(path) as chain:
        assert chain.layers[0].data_file.path == f"{tmp_path}/data"
        assert chain.read(0, MIB) == guest_view(path)


def test_a_span_without_tables_is_one_granule(tmp_path):
    write_image(tmp_path / "image", virtual_size=1 << 50, clusters=[1 << 33], data=fill("x"))
    with open_chain(tmp_path / "image") as chain:
        windows = list(chain.resolve())
        assert (windows[0].start, windows[-1].end) == (0, 1 << 50)
        assert all(a.end == b.start for a, b in pairwise(windows))
        assert len(windows[0].kind) == 1
        assert windows[0].kind[0] == Kind.UNALLOCATED
        assert sum(int((window.kind == Kind.DATA).sum()) for window in windows) == 1


def test_what_is_behind_the_last_table_is_one_granule(tmp_path):
    span = 8192 * 65536  # of one table
    options = {"backing_file": "base", "backing_format": "qcow2"}
    write_image(tmp_path / "base", virtual_size=20 << 30, clusters=[0, 8192])
    write_image(tmp_path / "image", virtual_size=20 << 30, clusters=[5, 8192 * 30], **options)
    with open_chain(tmp_path / "image") as chain:
        found = [(window.start // span, window.length // span, len(window.kind)) for window in chain.resolve()]
    # The tables of both layers, which lie side by side, what is between, that at 15 GiB, and the rest.
    assert found[0] == (0, 31, 31 * 8192)
    assert found[1:] == [(31, 9, 1)]


def test_a_thousand_layers_are_read_with_few_file_descriptors(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for index in range(1000):
        backing = {"backing_file": f"{index - 1}", "backing_format": "qcow2"} if index else {}
        write_image(
            tmp_path / str(index),
            virtual_size=MIB,
            cluster_size=512,
            clusters=[index],
            data=bytes([index % 255 + 1]) * 512,
            **backing,
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with open_chain(tmp_path / "999") as chain:
            assert chain.length == 999
            assert chain.read(0, 1000 * 512)[::512] == bytes(index % 255 + 1 for index in range(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_reading_outside_the_disk_is_refused(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB)
    with open_chain(tmp_path / "image") as chain, pytest.raises(InputError, match="not on a disk"):
        chain.read(MIB - 1, 2)


def test_a_disk_of_many_windows_and_tables_is_resolved_cluster_by_cluster(tmp_path):
    # 512-byte clusters: a window has 16,384 tables, more than are looked up ahead, and the disk three windows.
    size, rng = 1536 * MIB, np.random.default_rng(5)
    owner = np.full(size // 512, -1)
    for depth, name in ((2, "base"), (1, "middle"), (0, "top")):
        chosen = np.unique(np.concatenate((rng.choice(size // 512, 900), rng.choice(4096, 900) + (1 << 20) - 2048)))
        backing = {} if depth == 2 else {"backing_file": ("middle", "base")[depth], "backing_format": "qcow2"}
        write_image(tmp_path / name, virtual_size=size, cluster_size=512, clusters=chosen, **backing)
        owner[chosen] = depth
    with open_chain(tmp_path / "top") as chain:
        windows = list(chain.resolve())
        assert [window.start for window in windows[1:]] == [window.end for window in windows[:-1]]
        found = np.concatenate([np.repeat(window.layer, window.lengths() // 512) for window in windows])
    assert (found == owner).all()
    assert len(windows) >= 3


def test_memory_is_that_of_a_window_whatever_the_number_of_coarse_layers(tmp_path):
    write_image(tmp_path / "0", virtual_size=512 * MIB, cluster_size=512, clusters=[7])
    for number in range(1, 16):
        below = {"backing_file": str(number - 1), "backing_format": "qcow2"}
        bits = {"extended_l2": True, "subclusters": [1] * 256} if number == 5 else {}
        write_image(
            tmp_path / str(number), virtual_size=512 * MIB, cluster_size=2 * MIB, clusters=range(256), **below, **bits
        )
    with open_chain(tmp_path / "15") as chain:
        tally = np.zeros((16, len(Kind)), dtype=np.int64)
        tracemalloc.start()
        for window in Resolver(chain, tally).windows(0, chain.virtual_size):
            assert (window.layer[:-1] >= 0).all()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # 18 bytes for each of 2^20 granules, and some columns of as many rows while a layer is painted.
    assert peak < 100 * MIB
    assert tally[:, Kind.DATA].tolist()[0] == 256


def test_a_closed_chain_cannot_be_read(tmp_path):
    write_image(tmp_path / "base", virtual_size=MIB, clusters=[0], data=fill("B"))
    # It ends before the top does: there are two windows.
    write_image(**over(tmp_path / "top", "base", virtual_size=2 * MIB, clusters=[1], data=fill("T")))
    with open_chain(tmp_path / "top") as chain:
        windows = chain.resolve()
        next(windows)
    for use in (
        lambda: chain.read(0, 1),
        lambda: chain.read(0, 0),
        chain.resolve,
        lambda: next(windows),
        lambda: list(Resolver(chain).windows(0, MIB)),
        chain.__enter__,
    ):
        with pytest.raises(InputError, match="top: is closed"):
            use()
    chain.close()
    assert (chain.length, chain.virtual_size) == (1, 2 * MIB)
