"""What the writer makes, judged by QEMU's own tools."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from chainlift.qcow2.writer import ImageWriter, write_image

MIB = 1 << 20


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(path: Path, tmp_path: Path) -> bytes:
    raw = tmp_path / "converted.raw"
    qemu_img("convert", "-O", "raw", path, raw)
    return raw.read_bytes()


def pattern(cluster: int, size: int) -> bytes:
    return (cluster.to_bytes(4, "big") + b"chainlift...").ljust(64, b"x") * (size // 64)


SHAPES = [
    {"cluster_size": 512},
    {"cluster_size": 65536},
    {"cluster_size": 2 * MIB},
    {"cluster_size": 65536, "version": 2},
    *({"cluster_size": 4096, "refcount_order": order} for order in range(7)),
    {"cluster_size": 16384, "extended_l2": True},
]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("shape", "compression"),
    [(s, c) for s in SHAPES for c in (None, "zlib", "zstd") if not (c == "zstd" and s.get("version") == 2)],
)
def test_qemu_finds_a_written_image_clean_and_reads_what_was_written(tmp_path, shape, compression):
    size = shape["cluster_size"]
    clusters = [0, 1, 2, 5, 63, 64, 200, 639]
    path = tmp_path / "image.qcow2"
    write_image(
        path, virtual_size=640 * size, clusters=clusters, data=lambda c: pattern(c, size),
        compress=compression is not None, compression=compression or "zlib", **shape,
    )  # fmt: skip
    assert "No errors were found" in qemu_img("check", path)
    whole = contents(path, tmp_path)
    for cluster in range(640):
        expected = pattern(cluster, size) if cluster in clusters else bytes(size)
        assert whole[cluster * size : (cluster + 1) * size] == expected, cluster


@pytest.mark.integration
def test_zero_clusters_hide_the_backing_file_and_the_rest_shows_it(tmp_path):
    write_image(tmp_path / "base.qcow2", virtual_size=8 * 65536, clusters=range(8), data=b"B" * 8 * 65536)
    write_image(
        tmp_path / "top.qcow2", virtual_size=8 * 65536, backing_file="base.qcow2", backing_format="qcow2",
        clusters=[1], data=b"T" * 65536, zero_clusters=[2, 4], zero_alloc_clusters=[3],
    )  # fmt: skip
    assert "No errors were found" in qemu_img("check", tmp_path / "top.qcow2")
    whole = contents(tmp_path / "top.qcow2", tmp_path)
    assert whole[::65536] == b"BT\0\0\0BBB"
    info = json.loads(qemu_img("info", "--output=json", tmp_path / "top.qcow2"))
    assert (info["backing-filename"], info["backing-filename-format"]) == ("base.qcow2", "qcow2")


@pytest.mark.integration
def test_subclusters_are_allocated_one_by_one(tmp_path):
    write_image(tmp_path / "base.qcow2", virtual_size=65536, clusters=[0], data=b"B" * 65536)
    write_image(
        tmp_path / "top.qcow2", virtual_size=65536, extended_l2=True, backing_file="base.qcow2", backing_format="qcow2",
        clusters=[0], data=b"T" * 65536, subclusters=[0b0011 | 0b0100 << 32],
    )  # fmt: skip
    assert "No errors were found" in qemu_img("check", tmp_path / "top.qcow2")
    assert contents(tmp_path / "top.qcow2", tmp_path)[: 5 * 2048 : 2048] == b"TT\0BB"


@pytest.mark.integration
def test_holes_read_as_zeros_and_take_no_space(tmp_path):
    path = tmp_path / "image.qcow2"
    write_image(path, virtual_size=1 << 30, clusters=np.arange(1 << 14), data=None)
    assert "No errors were found" in qemu_img("check", path)
    assert path.stat().st_blocks * 512 < MIB < path.stat().st_size


def test_entries_may_come_in_pieces_of_any_size(tmp_path):
    clusters = np.arange(0, 3000, 3)
    entries = (clusters + 100).astype(np.uint64) << np.uint64(9)
    for name, step in (("whole", 1000), ("pieces", 7)):
        with ImageWriter(tmp_path / name, virtual_size=3000 * 512, cluster_size=512) as writer:
            for start in range(0, 1000, step):
                writer.set_entries(clusters[start : start + step], entries[start : start + step])
            writer.finish()
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="cluster 0 has 3 bytes"):
        write_image(tmp_path / "image.qcow2", virtual_size=MIB, clusters=[0], data=lambda _: b"abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"virtual_size": 1000}, "multiple of 512"),
        ({"cluster_size": 3000}, "power of two"),
        ({"version": 2, "zero_clusters": [1]}, "no zero clusters"),
        ({"version": 2, "refcount_order": 3}, "version 2"),
        ({"cluster_size": 4096, "extended_l2": True}, "16 KiB"),
        ({"clusters": [16], "data": bytes(65536)}, "outside the disk"),
        ({"clusters": [1, 1]}, "each given once"),
        ({"clusters": [1], "compress": True}, "need data"),
        ({"backing_file": "x" * 1024}, "1023"),
        ({"virtual_size": 1 << 50, "cluster_size": 512}, "larger clusters"),
    ],
)
def test_what_describes_no_image_is_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / "image.qcow2", **{"virtual_size": MIB, **wrong})


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "image.qcow2").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        write_image(tmp_path / "image.qcow2", virtual_size=MIB)
    assert (tmp_path / "image.qcow2").read_bytes() == b"precious"
