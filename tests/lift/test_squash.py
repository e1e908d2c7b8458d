from pathlib import Path

import pytest
from tests.support.chains import make_chain, plain_chain
from tests.support.lifts import lift_index, lift_squash, restore_lift, verify_lift
from tests.support.mounts import on_a_loop_device
from tests.support.stock import create, img, make_pool, read, write

from chainlift.chain import open_chain
from chainlift.errors import AnswerIsNo, ImageError
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.flatten import flatten
from chainlift.lift.plan import plan
from chainlift.lift.record.lifts import lift_directory
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


def squash_and_check(directory, seed, host_qemu, tool, same, reference):
    image = make_chain(directory, seed, length=3 + seed % 4)
    raw = reference(image, directory.parent / "raw")
    with open_chain(image) as chain:
        layers = [layer.path for layer in chain.layers[2:]]
    manifest, _ = lift_squash(image, host_qemu, onto=layers[seed % len(layers)])
    assert same(image, raw)
    status, said = tool(host_qemu, "img", "check", manifest.files[0].path)
    assert status == 0, said
    with open_chain(image) as chain:
        assert chain.length == 2 + len(manifest.below) - 1
        assert chain.read(0, chain.virtual_size) == raw.read_bytes()
    assert verify_lift(image, content=True)[1] == []
    restore_lift(image, host_qemu, clean=True)
    assert same(image, raw)
    assert not lift_directory(image).exists()


@pytest.mark.parametrize("seed", range(8))
def test_a_squash_reads_the_same_bytes(tmp_path, seed, host_qemu, tool, same, reference):
    squash_and_check(tmp_path / "chain", seed, host_qemu, tool, same, reference)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_many_squashes_read_the_same_bytes(tmp_path, seed, host_qemu, tool, same, reference):
    squash_and_check(tmp_path / "chain", seed, host_qemu, tool, same, reference)


@pytest.mark.parametrize("seed", range(20, 26))
@pytest.mark.parametrize("how", [{}, {"file_format": "raw"}, {"compress": "zlib"}, {"compress": "zstd"}], ids=str)
def test_a_flattened_image_reads_the_same_bytes(tmp_path, seed, how, host_qemu, tool, same):
    image = make_chain(tmp_path / "chain", seed)
    out = tmp_path / "out"
    flatten(image, out, **how)
    assert same(image, out)
    if "file_format" not in how:
        status, said = tool(host_qemu, "img", "check", out)
        assert status == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chain", "out"]


def test_flatten_leaves_holes_of_a_raw_base_out(tmp_path, same):
    with (tmp_path / "base.raw").open("wb") as stream:
        stream.truncate(1 << 30)
        stream.seek(100 << 20)
        stream.write(b"x" * 65536)
    image = tmp_path / "top.qcow2"
    write_image(image, virtual_size=1 << 30, clusters=[3], data=b"y" * 65536, backing_file="base.raw",
                backing_format="raw")  # fmt: skip
    for file_format in ("qcow2", "raw"):
        out = tmp_path / f"out.{file_format}"
        flatten(image, out, file_format=file_format)
        assert out.stat().st_blocks * 512 < 2 << 20
        assert same(image, out)


def test_flatten_does_not_overwrite(tmp_path):
    image = plain_chain(tmp_path / "c")
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ImageError, match="exists"):
        flatten(image, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_only_layers_that_nobody_else_uses_are_deleted(tmp_path, host_qemu, same, reference):
    image = plain_chain(tmp_path / "c", length=6)
    branch = tmp_path / "elsewhere" / "branch.qcow2"
    branch.parent.mkdir()
    write_image(branch, virtual_size=4 << 20, backing_file="../c/layer2.qcow2", backing_format="qcow2")
    raw, other = reference(image, tmp_path / "raw"), reference(branch, tmp_path / "other")
    manifest, deletion = lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert [path.name for path in deletion.deletable] == ["layer5.qcow2", "layer4.qcow2", "layer3.qcow2"]
    assert [(kept.path.rsplit("/", 1)[1], kept.why.split()[1:3]) for kept in deletion.kept] == [
        ("layer2.qcow2", ["stands", "on"]), ("layer1.qcow2", ["stands", "on"]),
    ]  # fmt: skip
    assert same(image, raw)
    assert same(branch, other)
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "layer0.qcow2", "layer1.qcow2", "layer2.qcow2", "layer6.qcow2", "layer6.qcow2.lift", "layer6.qcow2.lift.json",
    ]  # fmt: skip
    assert verify_lift(image)[1] == []
    with pytest.raises(ImageError, match="no way back"):
        restore_lift(image, host_qemu)
    assert same(image, raw)

    # The squash is a layer like any other now, and outlives the next lift and its end.
    lift_index(image, host_qemu)
    assert same(image, raw)
    restore_lift(image, host_qemu, clean=True)
    assert same(image, raw)
    assert manifest.kind == "squash"


def test_a_deletion_that_was_interrupted_is_finished_by_the_next_run(tmp_path, host_qemu, same, reference, monkeypatch):
    image = plain_chain(tmp_path / "c", length=5)
    raw = reference(image, tmp_path / "raw")
    unlink = Path.unlink

    def interrupted(path, **options):
        if path.name == "layer3.qcow2":
            raise KeyboardInterrupt
        unlink(path, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", interrupted)
        lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert sorted(path.name for path in (tmp_path / "c").glob("*.qcow2")) == [
        "layer0.qcow2", "layer1.qcow2", "layer2.qcow2", "layer3.qcow2", "layer5.qcow2",
    ]  # fmt: skip
    # A new file under an old name is nobody's leftover.
    (tmp_path / "c/layer4.qcow2").write_bytes(b"mine")
    branch = tmp_path / "c/branch.qcow2"
    write_image(branch, virtual_size=4 << 20, backing_file="layer2.qcow2", backing_format="qcow2")
    _, deletion = lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert [path.name for path in deletion.deletable] == ["layer3.qcow2"]
    assert [Path(kept.path).name for kept in deletion.kept] == ["layer2.qcow2", "layer1.qcow2"]
    assert (tmp_path / "c/layer4.qcow2").read_bytes() == b"mine"
    assert same(image, raw)


def test_a_layer_outside_the_searched_directories_is_kept(tmp_path, host_qemu):
    plain_chain(tmp_path / "far", length=1)
    (tmp_path / "near").mkdir()
    write_image(tmp_path / "near/mid.qcow2", virtual_size=4 << 20, backing_file="../far/layer1.qcow2",
                backing_format="qcow2")  # fmt: skip
    image = tmp_path / "near/top.qcow2"
    write_image(image, virtual_size=4 << 20, backing_file="mid.qcow2", backing_format="qcow2")
    _, deletion = lift_squash(image, host_qemu, delete_in=[image.parent])
    assert [path.name for path in deletion.deletable] == ["mid.qcow2"]
    assert [kept.why for kept in deletion.kept] == ["it lies outside the directories that were searched"]


def test_nothing_is_deleted_or_switched_where_the_bytes_differ(tmp_path, host_qemu, contents):
    image = plain_chain(tmp_path / "c")
    layer = tmp_path / "c/layer3.qcow2"
    before = contents(tmp_path)
    calls = 0

    def somebody_writes(_):
        # Past all locks, and after its first cluster, which is cluster 3 of the disk, was copied.
        nonlocal calls
        calls += 1
        with layer.open("r+b") as stream:
            stream.seek(2 * 65536 - 1)
            stream.write(bytes([calls % 256]))

    with pytest.raises(AnswerIsNo, match=f"differently at byte {4 * 65536 - 1} of the disk; nothing was"):
        lift_squash(image, host_qemu, delete_in=[tmp_path], progress=somebody_writes)
    assert calls > 0
    after = contents(tmp_path)
    assert after.pop(str(layer)) != before.pop(str(layer))
    assert after == before
    assert not lift_directory(image).exists()


def test_a_squash_that_somebody_merged_into_is_a_layer_like_any_other(tmp_path, host_qemu):
    """As ``qemu-img commit`` does, and libvirt where a snapshot is deleted."""
    *_, image = make_pool(tmp_path, "base.qcow2", "middle.qcow2", "image.qcow2", size="64M")
    top = create(tmp_path / "top.qcow2", image)
    squash = Path(lift_squash(top, host_qemu)[0].files[0].path)
    write(top, 7, "40M")
    img("commit", "-q", top)
    above = create(tmp_path / "above.qcow2", squash)
    before = read(above)
    # What was merged is in one cluster of 1,024, which a sample may leave out, and in none of the layers.
    with pytest.raises(ImageError, match="its squash was written to since"):
        restore_lift(above, host_qemu)
    assert read(above) == before
    manifest, _ = lift_squash(above, host_qemu)
    assert [Path(layer.identity.path) for layer in manifest.layers] == [squash]
    assert read(above) == before
    restore_lift(above, host_qemu)
    assert read(above) == before


def test_an_index_of_another_image_keeps_its_layers_from_deletion(tmp_path, host_qemu, same, reference):
    image = plain_chain(tmp_path / "c", length=4)
    sibling = tmp_path / "c/sibling.qcow2"
    write_image(sibling, virtual_size=4 << 20, backing_file="layer3.qcow2", backing_format="qcow2")
    raw = reference(sibling, tmp_path / "raw")
    lift_index(sibling, host_qemu)
    _, deletion = lift_squash(image, host_qemu, delete_in=[tmp_path])
    assert deletion.deletable == []
    assert same(sibling, raw)


def test_what_cannot_be_squashed_is_refused(tmp_path, host_qemu, contents):
    image = plain_chain(tmp_path / "c", length=1)
    before = contents(tmp_path)
    with pytest.raises(ImageError, match="nothing between"):
        lift_squash(image, host_qemu)
    with pytest.raises(ImageError, match="is no layer of the chain"):
        lift_squash(image, host_qemu, onto=tmp_path / "other")
    assert contents(tmp_path) == before


@pytest.fixture(params=["xfs", "btrfs"])
def reflinks(tmp_path, request):
    """A directory on a file system that shares blocks."""
    mount = tmp_path / "mount"
    mount.mkdir()
    with on_a_loop_device(mount, request.param, tmp_path / "disk", 400 << 20):
        yield mount


def test_nothing_is_copied_where_the_file_system_shares_blocks(reflinks, host_qemu, same):
    image = plain_chain(reflinks / "c", length=6)
    assert plan(DiskAtRest(image, host_qemu)).reflinks
    for file_format in ("qcow2", "raw"):
        out = reflinks / f"flat.{file_format}"
        done = flatten(image, out, file_format=file_format)
        assert done.copied.copied_bytes == 0
        assert done.copied.cloned_bytes > 1 << 20
        assert same(image, out)
    manifest, _ = lift_squash(image, host_qemu)
    assert manifest.copied_bytes == 0
    assert manifest.cloned_bytes > 0
    assert same(image, reflinks / "flat.raw")
