"""Which chains there are."""

import os
import shutil
from pathlib import Path

from tests.support.chains import plain_chain

from chainlift.qcow2.writer import write_image
from chainlift.survey.find import find


def image(path, backing=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(
        path, virtual_size=1 << 20, clusters=[0], data=b"x" * 65536, backing_file=backing,
        backing_format="qcow2" if backing else None,
    )  # fmt: skip
    return path


def search(*paths):
    return find([str(path) for path in paths], with_libvirt=False)


def names(found):
    return [Path(chain.path).name for chain in found.chains]


def test_an_active_layer_is_one_that_nobody_stands_on(tmp_path):
    image(tmp_path / "base.qcow2")
    for clone in "ab":
        image(tmp_path / f"{clone}1.qcow2", "base.qcow2")
        image(tmp_path / f"{clone}2.qcow2", f"{clone}1.qcow2")
    image(tmp_path / "alone.qcow2")
    found = search(tmp_path)
    assert found.images == 6
    assert names(found) == ["alone.qcow2", "a2.qcow2", "b2.qcow2"]
    alone, a, b = found.chains
    assert (alone.shared_base, alone.shared_by) == (None, 0)
    assert a.shared_base == b.shared_base == str(tmp_path / "base.qcow2")
    assert a.shared_by == 2
    own = sum((tmp_path / f"a{number}.qcow2").stat().st_blocks * 512 for number in (1, 2))
    assert (a.own_bytes, a.shared_bytes) == (own, (tmp_path / "base.qcow2").stat().st_blocks * 512)


def test_a_stamp_changes_with_any_file_of_the_chain(tmp_path):
    plain_chain(tmp_path / "a", 3)
    plain_chain(tmp_path / "b", 3)
    before = {chain.path: chain.stamp for chain in search(tmp_path).chains}
    os.utime(tmp_path / "a/layer1.qcow2", (1e9, 1e9))
    after = {chain.path: chain.stamp for chain in search(tmp_path).chains}
    changed = {path for path in before if before[path] != after[path]}
    assert changed == {str(tmp_path / "a/layer3.qcow2")}


def test_what_cannot_be_searched_is_told_and_the_rest_is_found(tmp_path):
    image(tmp_path / "good/disk.qcow2")
    (tmp_path / "good/broken.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 200)
    (tmp_path / "a.qcow2").symlink_to("b.qcow2")
    (tmp_path / "b.qcow2").symlink_to("a.qcow2")
    (tmp_path / "notes.txt").write_text("no image")
    found = search(tmp_path / "good", tmp_path / "gone", tmp_path / "a.qcow2", tmp_path / "notes.txt", tmp_path)
    assert names(found) == ["disk.qcow2"]
    what = {Path(trouble.path).name: trouble.what for trouble in found.troubles}
    assert what.pop("broken.qcow2")
    assert what == {
        "gone": "cannot be searched: No such file or directory",
        "a.qcow2": "is a loop of symbolic links",
        "b.qcow2": "is a loop of symbolic links",
        "notes.txt": "is no qcow2 image",
    }
    assert all(trouble.left_out for trouble in found.troubles)


def test_an_image_is_searched_for_by_its_own_name(tmp_path):
    image(tmp_path / "store/base.qcow2")
    image(tmp_path / "store/s1.qcow2", "base.qcow2")
    image(tmp_path / "store/s2.qcow2", "s1.qcow2")
    assert names(search(tmp_path / "store/s1.qcow2")) == ["s1.qcow2"]


def test_what_a_header_names_counts_from_the_link_by_which_it_is_opened(tmp_path):
    image(tmp_path / "store/base.qcow2")
    image(tmp_path / "real/disk.qcow2", "base.qcow2")
    (tmp_path / "store/by-link.qcow2").symlink_to("../real/disk.qcow2")
    (chain,) = search(tmp_path).chains
    assert chain.path == str(tmp_path / "store/by-link.qcow2")
    assert chain.base == str(tmp_path / "store/base.qcow2")


def test_a_name_that_is_no_text(tmp_path):
    place = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.qcow2")
    shutil.copy(image(tmp_path / "x.qcow2"), place)
    (_, chain) = sorted(search(tmp_path).chains, key=lambda chain: chain.path, reverse=True)
    assert chain.path == place
    assert chain.key[1].endswith("/caf\\xe9.qcow2")
