"""What `inspect` knows of a chain."""

import subprocess

import pytest
from tests.support.luks import SECRET, create_encrypted

from chainlift import open_chain
from chainlift.chain.summarize import summarize
from chainlift.qcow2.layout import Incompatible
from chainlift.qcow2.writer import write_image

K64 = 65536
MIB = 1 << 20


def summary_of(path):
    with open_chain(path) as chain:
        return summarize(chain)


def what(summary):
    return [(finding.level, finding.what, finding.depths) for finding in summary.findings]


@pytest.fixture
def three(tmp_path):
    """Base with 8 clusters; the middle hides two of them; the top hides one of the middle's and zeroes one."""
    write_image(tmp_path / "base", virtual_size=MIB, clusters=range(8), data=b"B" * 8 * K64)
    below = {"virtual_size": MIB, "backing_format": "qcow2"}
    write_image(tmp_path / "middle", clusters=[1, 2], data=b"M" * 2 * K64, backing_file="base", **below)
    write_image(tmp_path / "top", clusters=[2], data=b"T" * K64, zero_clusters=[3], backing_file="middle", **below)
    return tmp_path / "top"


@pytest.mark.parametrize("extended", [False, True])
def test_what_lies_beyond_the_end_of_the_disk_is_counted_as_shadowed(tmp_path, extended):
    write_image(
        tmp_path / "base", virtual_size=1 << 32, extended_l2=extended, clusters=[3, 40000], data=b"B" * 2 * K64
    )  # fmt: skip
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="base", backing_format="qcow2")
    base = summary_of(tmp_path / "top").layers[1]
    assert (base.visible_bytes, base.shadowed_bytes, base.l2_tables) == (K64, K64, 2)


def test_every_stored_cluster_is_either_visible_or_shadowed(three):
    summary = summary_of(three)
    assert [layer.visible_clusters for layer in summary.layers] == [1, 1, 5]
    assert [layer.shadowed_clusters for layer in summary.layers] == [0, 1, 3]
    assert [layer.visible_zero_bytes for layer in summary.layers] == [K64, 0, 0]
    assert [layer.l2_tables for layer in summary.layers] == [1, 1, 1]


def test_what_deleting_a_layer_frees(three):
    active, middle, base = summary_of(three).layers
    assert active.frees_bytes is None
    # Of two clusters the top has one itself; of eight the middle has two, and the top does not count.
    assert middle.frees_bytes == middle.disk_bytes - K64
    assert base.frees_bytes == base.disk_bytes - 6 * K64


def test_what_deleting_a_raw_base_frees(tmp_path):
    with (tmp_path / "base").open("wb") as file:
        file.write(b"B" * 4 * K64)
        file.truncate(MIB)
    write_image(
        tmp_path / "top", virtual_size=3 * K64, cluster_size=4096, clusters=[0, 1, 17], data=b"T" * 3 * 4096,
        backing_file="base", backing_format="raw",
    )  # fmt: skip
    base = summary_of(tmp_path / "top").layers[1]
    assert base.frees_bytes == base.disk_bytes - 3 * K64 + 3 * 4096


def test_layers_that_reach_beyond_the_disk_are_not_counted(tmp_path):
    write_image(tmp_path / "base", virtual_size=1 << 33, clusters=[3], data=b"B" * K64)
    large = {"virtual_size": 1 << 33, "backing_file": "base", "backing_format": "qcow2"}
    write_image(tmp_path / "middle", clusters=[4], data=b"M" * K64, **large)
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="middle", backing_format="qcow2")
    # Both reach beyond the disk, where nobody looked.
    assert [layer.frees_bytes is None for layer in summary_of(tmp_path / "top").layers] == [True, False, True]


def test_reads_fall_to_the_layer_that_answers_or_to_the_last(three):
    summary = summary_of(three)
    assert summary.answered_bytes == (2 * K64, K64, 5 * K64)
    assert summary.unanswered_bytes == (0, 0, 8 * K64)
    assert sum(summary.answered_bytes) + sum(summary.unanswered_bytes) == summary.virtual_size
    assert summary.mean_depth == (2 * 0 + 1 * 1 + 13 * 2) / 16


def test_what_lies_behind_the_end_of_the_disk_is_dead_weight(tmp_path):
    write_image(tmp_path / "base", virtual_size=2 * MIB, clusters=[0, 31], data=b"B" * 2 * K64)
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="base", backing_format="qcow2")
    summary = summary_of(tmp_path / "top")
    assert [layer.shadowed_clusters for layer in summary.layers] == [0, 1]
    assert ("note", "larger than the disk of 1.00 MiB: its end is hidden", (1,)) in what(summary)


def test_subclusters_count_in_parts(tmp_path):
    write_image(
        tmp_path / "image", virtual_size=MIB, extended_l2=True, clusters=[0], data=b"B" * K64, subclusters=[0x0000FFFF]
    )
    (layer,) = summary_of(tmp_path / "image").layers
    assert (layer.visible_bytes, layer.visible_clusters, layer.unit_size) == (K64 // 2, 0.5, 2048)


def test_a_partial_last_cluster_is_not_dead_weight(tmp_path):
    write_image(tmp_path / "image", virtual_size=K64 + 512, clusters=[0, 1], data=b"B" * 2 * K64)
    assert summary_of(tmp_path / "image").layers[0].shadowed_bytes == 0


def test_a_backing_file_without_a_format_is_pointed_out_with_the_command_that_names_it(tmp_path):
    write_image(tmp_path / "base", virtual_size=MIB)
    write_image(tmp_path / "top", virtual_size=MIB, backing_file="base")
    (finding,) = summary_of(tmp_path / "top").findings
    assert (finding.level, finding.depths) == ("warning", (0,))
    assert finding.action == f"qemu-img rebase -u -F qcow2 -b base {tmp_path}/top"


def test_a_corrupt_image_is_shown_and_called_so(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB)
    with (tmp_path / "image").open("r+b") as file:
        file.seek(79)
        file.write(bytes([Incompatible.CORRUPT]))
    (finding,) = summary_of(tmp_path / "image").findings
    assert (finding.level, finding.what.split(":")[0]) == ("problem", "marked corrupt")


@pytest.mark.integration
def test_a_writer_is_seen_by_its_lock(tmp_path):
    path = tmp_path / "image"
    write_image(path, virtual_size=MIB)
    assert not summary_of(path).layers[0].in_use
    with subprocess.Popen(["qemu-io", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        writer.stdin.write(b"read 0 512\n")
        writer.stdin.flush()
        assert writer.stdout is not None
        writer.stdout.readline()  # it answers: the image is open
        summary = summary_of(path)
        writer.stdin.write(b"quit\n")
        writer.stdin.close()
    assert summary.layers[0].in_use
    assert "in use by a writer" in summary.findings[0].what


@pytest.mark.integration
def test_internal_snapshots_and_bitmaps_are_listed(tmp_path, qemu_img):
    path = tmp_path / "image"
    write_image(path, virtual_size=MIB)
    qemu_img("snapshot", "-c", "before the change", path)
    qemu_img("bitmap", "--add", "-g", 131072, path, "backup")
    (layer,) = summary_of(path).layers
    assert [(snapshot.id, snapshot.name) for snapshot in layer.snapshots] == [("1", "before the change")]
    assert [(bitmap.name, bitmap.granularity, bitmap.in_use) for bitmap in layer.bitmaps] == [("backup", 131072, False)]


@pytest.mark.integration
def test_an_encrypted_image_shows_its_metadata_and_not_its_content(tmp_path, qemu_img):
    path = tmp_path / "image"
    create_encrypted(path)
    assert ("note", "encrypted: only its metadata is read here", (0,)) in what(summary_of(path))
    write_image(tmp_path / "plain", virtual_size=MIB)
    subprocess.run(
        ["qemu-io", "--object", SECRET, "--image-opts", "-c", "write 0 64k",
         f"driver=qcow2,encrypt.key-secret=key0,file.filename={path}"],
        check=True, capture_output=True,
    )  # fmt: skip
    with open_chain(path) as chain, pytest.raises(Exception, match=r"is encrypted \(LUKS\)"):
        chain.read(0, 512)
