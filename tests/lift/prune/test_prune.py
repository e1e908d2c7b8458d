"""Snapshots go, and nothing that stays reads other bytes; who needs a layer keeps it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support import need, stock
from tests.support.chains import make_chain
from tests.support.lifts import lift_index, lift_squash
from tests.support.mounts import on_a_loop_device
from tests.support.thinned import drop_layers, hourly_chain, keep_layers, names, read_each
from tests.support.verbs import Verbs

from chainlift.errors import AnswerIsNo, ImageError, InputError, OperationError
from chainlift.lift.at_rest import DiskAtRest
from chainlift.lift.prune import work
from chainlift.lift.prune.retention import Retention
from chainlift.lift.prune.verb import prune
from chainlift.qcow2.writer import write_image

pytestmark = pytest.mark.integration


def whys(done):
    return {Path(fate.path).name: fate.why for fate in done.fates if fate.is_kept_back}


def test_what_no_rule_keeps_goes_and_the_rest_reads_the_same(tmp_path, host_qemu, tool):
    layers = hourly_chain(tmp_path / "c")
    before = read_each(layers)
    times = {path: path.stat().st_mtime_ns for path in layers}
    done = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=2, daily=1))
    # 12:00, 11:00 and the last one of the day before.
    assert names(path for path in layers if path.exists()) == [f"layer{n}.qcow2" for n in (0, 1, 6, 7, 8)]
    assert names(done.deleted) == [f"layer{n}.qcow2" for n in (5, 4, 3, 2)]
    assert names(done.rewritten) == ["layer6.qcow2"]
    for path, content in read_each(layers).items():
        assert content == before[path]
        assert path.stat().st_mtime_ns == times[path]
        assert tool(host_qemu, "img", "check", path)[0] == 0
    assert stock.backing_name(layers[6]) == "layer1.qcow2"
    assert sorted(path.name for path in layers[0].parent.iterdir()) == [f"layer{n}.qcow2" for n in (0, 1, 6, 7, 8)]
    assert done.freed_bytes > 0
    # The rules say the same again: nothing more goes.
    assert prune(DiskAtRest(layers[-1], host_qemu), Retention(last=2, daily=1)).deleted == []


def test_the_rules_may_be_for_some_names_only(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    before = read_each(layers)
    done = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=1), only="layer[245].*")
    assert names(done.deleted) == ["layer4.qcow2", "layer2.qcow2"]
    assert [fate.why for fate in done.fates][1:4] == ["last 1", "", "its name is not layer[245].*"]
    assert not any(fate.is_kept_back for fate in done.fates)
    for path, content in read_each(layers).items():
        assert content == before[path]


def test_the_image_itself_takes_over_what_is_right_below_it(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    before = read_each(layers)
    done = drop_layers(layers[-1], host_qemu, "layer3.qcow2", layers[2])
    assert names(done.rewritten) == ["layer4.qcow2"]
    assert read_each(layers) == {path: before[path] for path in (layers[0], layers[1], layers[4])}


def test_a_dry_run_says_what_would_be_and_changes_nothing(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c")
    before = stock.everything(tmp_path)
    said = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=2), dry_run=True)
    assert stock.everything(tmp_path) == before
    done = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=2))
    assert (said.deleted, said.rewritten, said.copied_bytes) == (done.deleted, done.rewritten, done.copied_bytes)
    assert abs(said.freed_bytes - done.freed_bytes) <= 16 * 65536 * len(done.rewritten)
    assert said.seconds is not None


def test_every_qemu_compares_and_opens_what_was_written(tmp_path, any_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    before = read_each(layers)
    done = keep_layers(layers[-1], any_qemu, layers[1], layers[4])
    assert names(done.deleted) == ["layer5.qcow2", "layer3.qcow2", "layer2.qcow2"]
    for path, content in read_each(layers).items():
        assert content == before[path]


def test_every_qemu_opens_a_long_stretch_that_goes(tmp_path, any_qemu):
    layers = [tmp_path / f"{number}.qcow2" for number in range(81)]
    for number, path in enumerate(layers):
        write_image(path, virtual_size=8 << 20, clusters=[number, number + 1, 100], data=bytes([number]) * (3 << 16),
                    backing_file=f"{number - 1}.qcow2" if number else None,
                    backing_format="qcow2" if number else None)  # fmt: skip
    stays = [layers[0], layers[3], layers[70], layers[-1]]
    before = read_each(stays)
    done = keep_layers(layers[-1], any_qemu, layers[3], layers[70])
    assert len(done.deleted) == 80 - 3
    assert read_each(layers) == before


@pytest.mark.parametrize("seed", range(12))
def test_chains_of_every_kind(tmp_path, seed, host_qemu, tool):
    image = make_chain(tmp_path / "c", seed, length=5)
    layers = sorted((path for path in (tmp_path / "c").iterdir() if path.suffix == ".qcow2"), key=lambda p: p.name)
    before = read_each(layers)
    inner = [path for path in layers if path not in (layers[0], image)]
    drop_layers(image, host_qemu, *(inner[seed % 2 :: 2] if seed % 3 else inner))
    assert len(read_each(layers)) < len(layers)
    for path, content in read_each(layers).items():
        assert content == before[path], path
        assert tool(host_qemu, "img", "check", path)[0] == 0
    assert sorted(tmp_path.rglob("*.prune*")) == []


def test_what_an_image_is_beside_its_data_stays(tmp_path, host_qemu):
    (base, one), image = stock.make_pool(tmp_path, "base", "one"), tmp_path / "image"
    stock.img("create", "-q", "-f", "qcow2", "-b", "one", "-F", "qcow2",
              "-o", "cluster_size=16k,extended_l2=on,compression_type=zstd,refcount_bits=32,lazy_refcounts=on",
              image)  # fmt: skip
    stock.write(image, 7, "1M", "20k")
    image.chmod(0o640)
    os.setxattr(image, "user.note", b"mine")
    before = stock.read(image)
    said = json.loads(stock.img("info", "--output=json", image))
    drop_layers(image, host_qemu, one)
    now = json.loads(stock.img("info", "--output=json", image))
    assert stock.read(image) == before
    assert now["format-specific"] == said["format-specific"]
    assert now["virtual-size"] == said["virtual-size"]
    assert now["backing-filename"] == "base"
    assert image.stat().st_mode & 0o777 == 0o640
    assert os.getxattr(image, "user.note") == b"mine"
    assert base.exists()


def test_a_branch_keeps_the_layer_under_it_and_reads_the_same(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c")
    branch = stock.create(tmp_path / "c" / "branch", layers[4])
    stock.write(branch, 99, "2M")
    before = read_each([*layers, branch])
    done = keep_layers(layers[-1], host_qemu, layers[6])
    assert whys(done) == {"layer4.qcow2": f"{branch} stands on it"}
    assert names(path for path in layers if path.exists()) == [f"layer{n}.qcow2" for n in (0, 4, 6, 8)]
    # It is written anew all the same: what stands on it stands on its name.
    assert names(done.rewritten) == ["layer8.qcow2", "layer6.qcow2", "layer4.qcow2"]
    for path, content in read_each([*layers, branch]).items():
        assert content == before[path]


def test_a_branch_elsewhere_is_found_where_it_is_searched(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 5)
    (tmp_path / "clones").mkdir()
    clone = stock.create(tmp_path / "clones" / "clone", layers[2])
    done = keep_layers(layers[-1], host_qemu, layers[4], search=[tmp_path / "clones"])
    assert whys(done) == {"layer2.qcow2": f"{clone} stands on it"}
    assert stock.opens(clone)


def test_what_is_asked_for_and_cannot_go_is_refused_by_name(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 5)
    stock.create(tmp_path / "c" / "branch", layers[2])
    before = stock.everything(tmp_path)
    for named, said in (
        (layers[2], "layer2.qcow2: cannot go: .*branch stands on it"),
        (layers[0], "is the base of the chain"),
        (layers[5], "is the image itself"),
        (tmp_path / "other", "other: is no layer of the chain"),
        ("layer9.qcow2", "layer9.qcow2: is no layer of the chain"),
    ):
        with pytest.raises(InputError, match=said):
            drop_layers(layers[-1], host_qemu, layers[3], named)
    with pytest.raises(InputError, match="nothing says what is to be kept"):
        prune(DiskAtRest(layers[-1], host_qemu), Retention())
    assert stock.everything(tmp_path) == before


def test_an_internal_snapshot_keeps_its_layer_and_what_it_stands_on(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    stock.img("snapshot", "-c", "before-upgrade", layers[4])
    before = read_each(layers)
    done = keep_layers(layers[-1], host_qemu, layers[1])
    assert whys(done) == {
        "layer4.qcow2": "it holds the internal snapshot before-upgrade",
        "layer3.qcow2": f"{layers[4]} stands on it and cannot be written anew: "
        "it holds the internal snapshot before-upgrade",
    }
    assert names(done.deleted) == ["layer5.qcow2", "layer2.qcow2"]
    for path, content in read_each(layers).items():
        assert content == before[path]
    assert "before-upgrade" in stock.img("snapshot", "-l", layers[4])


def test_bitmaps_are_merged_into_the_layer_above(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    for path in layers[1:4]:
        stock.img("bitmap", "--add", path, "backup")
        stock.write(path, 5, f"{path.name[5]}M" if path is not layers[3] else "3M", "64k")
    before = read_each(layers)
    drop_layers(layers[-1], host_qemu, layers[2])
    for path, content in read_each(layers).items():
        assert content == before[path]
    said = json.loads(stock.img("info", "--output=json", layers[3]))["format-specific"]["data"]["bitmaps"]
    assert [bitmap["name"] for bitmap in said] == ["backup"]
    from chainlift.lift.neighbours.carried import read_carried

    assert read_carried(layers[3]).set_bits == {"backup": 2}


def test_a_bitmap_that_was_not_saved_keeps_its_layer(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    stock.img("bitmap", "--add", layers[2], "backup")
    data = bytearray(layers[2].read_bytes())
    place = data.index(b"backup", 65536) - 24
    data[place + 12 + 3] |= 1  # flags, "in use" (qcow2 spec, "Bitmap directory")
    layers[2].write_bytes(data)
    done = keep_layers(layers[-1], host_qemu, layers[3])
    assert whys(done) == {"layer2.qcow2": "its bitmap 'backup' was not saved properly",
                          "layer1.qcow2": f"{layers[2]} stands on it and cannot be written anew: "
                          "its bitmap 'backup' was not saved properly"}  # fmt: skip


def test_other_names_and_other_places_keep_a_layer(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    os.link(layers[2], tmp_path / "backup")
    (tmp_path / "c" / "latest").symlink_to("layer4.qcow2")
    before = read_each(layers)
    done = keep_layers(layers[-1], host_qemu, layers[5])
    assert whys(done) == {
        "layer4.qcow2": f"{tmp_path / 'c' / 'latest'} is a symbolic link to it",
        "layer2.qcow2": "it has another name (a hard link) where nothing was searched",
        "layer1.qcow2": f"{layers[2]} stands on it and cannot be written anew: it has another name (a hard link)",
    }
    for path, content in read_each(layers).items():
        assert content == before[path]
    assert stock.read(tmp_path / "c" / "latest") == before[layers[4]]


def test_a_layer_that_somebody_has_open_stays(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    with layers[3].open("rb"):
        # Our own process does not count, another one does.
        holder = subprocess.Popen(["sleep", "60"], stdin=layers[3].open("rb"))
    try:
        done = keep_layers(layers[-1], host_qemu, layers[5])
    finally:
        holder.kill()
        holder.wait()
    held = f"sleep (process {holder.pid}) has it open"
    assert whys(done) == {
        "layer3.qcow2": held,
        "layer2.qcow2": f"{layers[3]} stands on it and cannot be written anew: {held}",
    }
    assert names(done.deleted) == ["layer4.qcow2", "layer1.qcow2"]


def test_an_image_in_use_is_refused(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    with subprocess.Popen(["sleep", "60"], stdin=layers[4].open("rb")) as holder:
        with pytest.raises(ImageError, match="is open in sleep"):
            keep_layers(layers[-1], host_qemu, layers[3])
        holder.kill()


def test_an_index_is_to_be_taken_out_first_and_a_squash_stays(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    lift_index(layers[3], host_qemu)
    with pytest.raises(ImageError, match=r"is an index.*chainlift restore"):
        keep_layers(layers[-1], host_qemu, layers[3])
    layers = hourly_chain(tmp_path / "d", 4)
    lift_squash(layers[2], host_qemu)
    done = keep_layers(layers[-1], host_qemu, layers[3])
    assert whys(done) == {"squash-1.qcow2": "it is a squash that chainlift has made; chainlift restore takes it out"}
    assert names(done.deleted) == ["layer2.qcow2"]


def test_an_index_of_another_image_keeps_what_it_points_into(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 6)
    branch = stock.create(tmp_path / "c" / "branch", layers[3])
    lift_index(branch, host_qemu)
    before = read_each([*layers, branch])
    done = keep_layers(layers[-1], host_qemu, layers[4])
    assert whys(done).keys() == {"layer3.qcow2", "layer2.qcow2", "layer1.qcow2"}
    assert names(done.deleted) == ["layer5.qcow2"]
    # Nor is one written anew that an index points into.
    done = keep_layers(layers[-1], host_qemu, layers[3], layers[4])
    assert done.deleted == []
    for path, content in read_each([*layers, branch]).items():
        assert content == before[path]


def test_names_stay_right_through_links_and_directories(tmp_path, host_qemu):
    for name in ("old", "new", "links"):
        (tmp_path / name).mkdir()
    base = stock.create(tmp_path / "base")
    stock.write(base, 1, 0, "1M")
    one = stock.create(tmp_path / "old" / "one", base)
    two = stock.create(tmp_path / "old" / "two", named=str(one), backing=one)
    three = stock.create(tmp_path / "new" / "three", two)
    image = stock.create(tmp_path / "new" / "image", three)
    for number, path in enumerate((one, two, three, image)):
        stock.write(path, number + 2, number << 18, "384k")
    link = tmp_path / "links" / "disk"
    link.symlink_to(image)
    before = read_each([base, one, three, image])
    # Through the link `three` would be looked for beside it: only absolute names are found from there.
    assert not stock.opens(link)
    drop_layers(image, host_qemu, two, search=[tmp_path])
    assert stock.backing_name(three) == str(one)
    drop_layers(image, host_qemu, one, search=[tmp_path])
    assert stock.backing_name(three) == str(base)
    assert read_each([base, three, image]) == {path: before[path] for path in (base, three, image)}


def test_relative_names_stay_relative_and_short(tmp_path, host_qemu):
    (tmp_path / "old").mkdir()
    base = stock.create(tmp_path / "base")
    one = stock.create(tmp_path / "old" / "one", base)
    image = stock.create(tmp_path / "image", one)
    stock.write(one, 3, 0)
    drop_layers(image, host_qemu, one)
    assert stock.backing_name(image) == "base"
    tmp_path.joinpath("old").rmdir()
    assert stock.read(image)[:65536] == b"\3" * 65536


def test_a_layer_that_was_made_smaller_hides_what_is_below_its_end(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 5)
    stock.img("resize", "-q", "--shrink", layers[3], "1000448")
    stock.img("resize", "-q", layers[2], str((5 << 20) + 512))
    before = read_each(layers)
    for path in (layers[3], layers[2], layers[4]):
        drop_layers(layers[-1], host_qemu, path)
        for left, content in read_each(layers).items():
            assert content == before[left], (path, left)


@pytest.fixture(params=["here", "xfs"])
def with_or_without_shared_blocks(request, tmp_path):
    """A directory."""
    place = tmp_path / "fs"
    place.mkdir()
    if request.param == "here":
        yield place
        return
    need.check(["loop"])
    with on_a_loop_device(place, request.param, tmp_path / "disk", 320 << 20):
        yield place


def test_a_new_file_that_reads_otherwise_takes_no_place(with_or_without_shared_blocks, host_qemu, monkeypatch):
    place = with_or_without_shared_blocks
    layers = hourly_chain(place / "c", 4)
    before = stock.everything(place)
    build = work.build_replacement

    def wrong(chain, merge, descriptors, temporary, descriptor, **options):
        done = build(chain, merge, descriptors, temporary, descriptor, **options)
        data = os.pread(descriptor, 1 << 20, 0)
        os.pwrite(descriptor, b"!", data.rindex(bytes([(3 * 40 + 10) % 251]) * 4096) + 77)
        return done

    monkeypatch.setattr(work, "build_replacement", wrong)
    with pytest.raises(AnswerIsNo, match=r"layer3.qcow2: would read differently at byte"):
        drop_layers(layers[-1], host_qemu, layers[2])
    assert stock.everything(place) == before


def test_a_hole_where_zeros_hid_what_is_below_is_no_match(tmp_path, host_qemu, monkeypatch):
    directory = tmp_path / "c"
    directory.mkdir()
    write_image(directory / "base", virtual_size=1 << 20, clusters=[], backing_file=None)
    write_image(directory / "one", virtual_size=1 << 20, zero_clusters=[2], clusters=[5], data=b"x" * 65536,
                backing_file="base", backing_format="qcow2")  # fmt: skip
    write_image(directory / "two", virtual_size=1 << 20, backing_file="one", backing_format="qcow2")
    write_image(directory / "image", virtual_size=1 << 20, backing_file="two", backing_format="qcow2")
    build = work.build_replacement

    def without_zeros(chain, merge, descriptors, temporary, descriptor, **options):
        done = build(chain, merge, descriptors, temporary, descriptor, **options)
        data = bytearray(os.pread(descriptor, 1 << 20, 0))
        at = data.index(b"\0" * 7 + b"\1", 65536)  # the L2 entry that says "zeros"
        os.pwrite(descriptor, bytes(8), at)
        return done

    monkeypatch.setattr(work, "build_replacement", without_zeros)
    with pytest.raises(AnswerIsNo, match=r"two: would read differently at byte 131072"):
        drop_layers(directory / "image", host_qemu, directory / "one")


def test_a_layer_that_changes_while_it_is_read_is_not_replaced(tmp_path, host_qemu, monkeypatch):
    layers = hourly_chain(tmp_path / "c", 4)
    compare = work.compare_replacements

    def meanwhile(*arguments, **options):
        compare(*arguments, **options)
        os.utime(layers[3])

    monkeypatch.setattr(work, "compare_replacements", meanwhile)
    with pytest.raises(ImageError, match=r"layer3.qcow2: was changed or replaced meanwhile"):
        drop_layers(layers[-1], host_qemu, layers[2])
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [f"layer{n}.qcow2" for n in range(5)]


def test_who_comes_meanwhile_keeps_the_layer(tmp_path, host_qemu, monkeypatch):
    layers = hourly_chain(tmp_path / "c", 4)
    compare = work.compare_replacements

    def meanwhile(*arguments, **options):
        compare(*arguments, **options)
        stock.create(tmp_path / "c" / "branch", layers[2])

    monkeypatch.setattr(work, "compare_replacements", meanwhile)
    with pytest.raises(ImageError, match=r"layer2.qcow2: is needed by now: .*branch stands on it"):
        drop_layers(layers[-1], host_qemu, layers[2])
    assert sorted(tmp_path.rglob("*.prune*")) == []
    assert stock.opens(tmp_path / "c" / "branch")


def test_what_does_not_open_in_its_place_is_put_back(tmp_path, host_qemu, monkeypatch):
    layers = hourly_chain(tmp_path / "c", 5)
    before = stock.everything(tmp_path)
    monkeypatch.setattr(work, "why_not_open", lambda *_: "it does not")
    with pytest.raises(OperationError, match="does not open in its place: it does not"):
        drop_layers(layers[-1], host_qemu, layers[2], layers[4])
    assert stock.everything(tmp_path) == before


def test_two_runs_do_not_meet(tmp_path, host_qemu, monkeypatch):
    layers = hourly_chain(tmp_path / "c", 5)
    branch = stock.create(tmp_path / "c" / "branch", layers[4])
    compare = work.compare_replacements
    said = []

    def meanwhile(*arguments, **options):
        compare(*arguments, **options)
        command = ["chainlift", "drop", branch, layers[2]]
        said.append(subprocess.run(command, capture_output=True, text=True))

    monkeypatch.setattr(work, "compare_replacements", meanwhile)
    before = read_each([*layers, branch])
    drop_layers(layers[-1], host_qemu, layers[3])
    assert said[0].returncode == 2
    assert "c: another chainlift works there" in said[0].stderr
    for path, content in read_each([*layers, branch]).items():
        assert content == before[path]


def test_a_file_of_somebody_elses_with_a_name_that_is_needed_is_not_touched(tmp_path, host_qemu):
    layers = hourly_chain(tmp_path / "c", 4)
    for name in ("layer3.qcow2.prune.new", "layer3.qcow2.prune.old"):
        there = tmp_path / "c" / name
        there.write_text("mine")
        before = stock.everything(tmp_path)
        with pytest.raises(ImageError, match=f"{name}: exists"):
            drop_layers(layers[-1], host_qemu, layers[2])
        assert stock.everything(tmp_path) == before
        there.unlink()
    (tmp_path / "c" / "layer4.qcow2.prune.json").write_text("mine")
    with pytest.raises(ImageError, match=r"prune.json: is no note of chainlift"):
        drop_layers(layers[-1], host_qemu, layers[2])


def test_a_manager_is_not_worked_against_but_by_force(tmp_path, host_qemu):
    directory = tmp_path / "images" / "104"
    directory.mkdir(parents=True)
    pool = stock.make_pool(directory, "base.qcow2", "snap-a-vm-104-disk-0.qcow2", "vm-104-disk-0.qcow2")
    with pytest.raises(ImageError, match="Proxmox VE keeps a record"):
        drop_layers(pool[-1], host_qemu, pool[1])
    done = prune(DiskAtRest(pool[-1], host_qemu, force=True), Retention(), keep=[pool[0]])
    assert "cannot be written anew: Proxmox VE keeps a record" in whys(done)[pool[1].name]
    done = prune(DiskAtRest(pool[-1], host_qemu, force=True), Retention(), keep=[pool[0]], force=True)
    assert done.deleted == [pool[1]]


def test_blocks_are_shared_where_the_file_system_can(tmp_path, host_qemu):
    (tmp_path / "fs").mkdir()
    with on_a_loop_device(tmp_path / "fs", "xfs", tmp_path / "disk", 320 << 20):
        layers = hourly_chain(tmp_path / "fs" / "c", 5)
        before = read_each(layers)
        said = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=1), dry_run=True)
        done = prune(DiskAtRest(layers[-1], host_qemu), Retention(last=1))
        assert done.copied_bytes == said.copied_bytes == 0
        assert done.cloned_bytes == said.cloned_bytes > 0
        for path, content in read_each(layers).items():
            assert content == before[path]


@pytest.mark.needs("root")
def test_who_is_not_root_thins_out_what_is_his_own(tmp_path):
    layers = hourly_chain(tmp_path / "c", 6)
    for path in (tmp_path, tmp_path / "c", *layers):
        os.chown(path, 1234, 1234)
    for path in [tmp_path, *tmp_path.parents][:-2]:
        path.chmod(path.stat().st_mode | 0o055)
    before = read_each(layers)
    with Verbs() as verbs:
        # Our own locks on the layers are no other user's.
        said = verbs("prune", layers[-1], "--keep", layers[2], "--keep", layers[4], user=1234)
        assert said.status == 0, said
        assert names(path for path in layers if path.exists()) == [f"layer{n}.qcow2" for n in (0, 2, 4, 6)]
        os.chown(layers[4], 0, 1234)
        said = verbs("prune", layers[-1], "--keep", layers[4], "--json", user=1234)
        assert said.status == 0, said
        assert [row["why"] for row in json.loads(said.out)["layers"]][2] == (
            f"{layers[4]} stands on it and cannot be written anew: it belongs to another user"
        )
    for path, content in read_each(layers).items():
        assert content == before[path]
        assert path.stat().st_uid == (0 if path == layers[4] else 1234)
