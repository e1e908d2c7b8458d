"""Which images, links and records under some directories name a file."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.support.need import missing

from chainlift.chain.descriptor import descriptor_text
from chainlift.chain.linear import Extent
from chainlift.errors import ImageError, InputError
from chainlift.lift.neighbours.images import Search, find_users, opened_without_header
from chainlift.qcow2.writer import write_image

MIB = 1 << 20
BELOW = {"virtual_size": MIB, "backing_format": "qcow2"}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "pool" / "base"
    path.parent.mkdir()
    write_image(path, virtual_size=MIB)
    return path


def told(path, *directories):
    return [str(user) for user in Search(directories).users_of(path)]


def test_a_backing_file_is_known_under_whatever_name_it_has(base, tmp_path):
    relative = base.with_name("relative")
    write_image(relative, backing_file="base", **BELOW)
    other = tmp_path / "clones" / "deep" / "clone"
    other.parent.mkdir(parents=True)
    (other.parent / "link").symlink_to(base)
    write_image(other, backing_file="link", **BELOW)
    assert told(base, base.parent) == [f"{relative} stands on it"]
    found = Search([base.parent, tmp_path / "clones", base.parent])
    assert [user.path for user in found.users_of(base)] == [relative, other, other.parent / "link"]
    assert [user.kind for user in found.users_of(base)] == ["backing file", "backing file", "symbolic link"]
    assert (found.images, found.files) == (3, 4)
    assert found.users_of(other) == []
    assert {path: sorted(users) for path, users in find_users([base, other], [tmp_path]).items()} == {
        base: [other, relative]
    }


@pytest.mark.parametrize(
    "name",
    [
        'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}',
        'json:{{"driver":"raw","file":{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}}}',
        'json:{{"file.filename":"{base}","driver":"qcow2","backing":null}}',
        'json:{{"driver":"qcow2","file":"x","backing":{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}}}',
        # What we do not know may mean the file all the same.
        'json:{{"driver":"qcow2","file":{{"driver":"throttle","throttle-group":"g","file":{{"filename":"{base}"}}}}}}',
        'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}","an-option-of-tomorrow":true}}}}',
        "file:{base}",
        "blkdebug::{base}",
    ],
)
def test_every_way_to_name_a_file_counts(base, tmp_path, name):
    user = tmp_path / "user"
    write_image(user, backing_file=name.format(base=base), virtual_size=MIB, backing_format="qcow2")
    assert told(base, tmp_path) == [f"{user} stands on it"]


def test_network_protocols_and_files_that_are_gone_are_named_by_nobody(base, tmp_path):
    write_image(tmp_path / "remote", backing_file="nbd://host/base", **BELOW)
    write_image(tmp_path / "orphan", backing_file="missing", **BELOW)
    found = Search([tmp_path])
    assert (found.images, found.users_of(base), found.users_of(tmp_path / "missing")) == (3, [], [])


def test_extents_of_an_index_and_a_data_file(base, tmp_path):
    descriptor = tmp_path / "index-1.vmdk"
    descriptor.write_text(descriptor_text([Extent(str(base), base.stat().st_size)]))
    vmdk = {"driver": "vmdk", "file": {"driver": "file", "filename": str(descriptor)}}
    image = tmp_path / "image"
    write_image(image, backing_file="json:" + json.dumps({"driver": "qcow2", "file": vmdk}), **BELOW)
    with_data = tmp_path / "with-data"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file=data.raw", with_data.name, "1M"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert told(base, tmp_path) == [f"{image} stands on it through an index"]
    assert told(tmp_path / "data.raw", tmp_path) == [f"{with_data} has its data in it"]
    assert find_users([base], [tmp_path]) == {base: [image]}


def test_links_are_users_and_relative_names_count_from_where_a_link_lies(base, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.link(base, elsewhere / "hard")
    (elsewhere / "soft").symlink_to("../pool/base")
    assert told(base, elsewhere) == [
        f"it has another name: {elsewhere / 'hard'}",
        f"{elsewhere / 'soft'} is a symbolic link to it",
    ]
    assert told(elsewhere / "hard", base.parent) == [f"it has another name: {base}"]
    assert told(base, base.parent) == []
    # An overlay that names "below" stands on another file where it is reached through the link.
    write_image(elsewhere / "below", virtual_size=MIB)
    write_image(base.with_name("below"), virtual_size=MIB)
    write_image(base.with_name("top"), backing_file="below", **BELOW)
    (elsewhere / "top").symlink_to(base.with_name("top"))
    assert told(elsewhere / "below", tmp_path) == [f"{elsewhere / 'top'} stands on it"]
    assert told(base.with_name("below"), tmp_path) == [f"{base.with_name('top')} stands on it"]


def test_what_is_no_image_is_no_obstacle(base, tmp_path):
    (tmp_path / "stray").write_bytes(b"QFI\xfb\0\0\0\3")
    (tmp_path / "index-7.qcow2.new").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(4096))
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "manifest.json").write_text("[]")
    (tmp_path / "index-1.json").write_text("{")
    (tmp_path / "ring").symlink_to(".")  # not followed
    assert told(base, tmp_path) == []


def test_somebodys_image_that_ends_as_our_leftovers_do_counts(base, tmp_path):
    write_image(tmp_path / "disk.qcow2.new", backing_file=str(base), **BELOW)
    assert told(base, tmp_path) == [f"{tmp_path / 'disk.qcow2.new'} stands on it"]


def test_a_header_that_cannot_be_read_is_an_error(base, tmp_path):
    with pytest.raises(InputError, match="missing: cannot be searched"):
        Search([tmp_path / "missing"])
    (tmp_path / "broken").write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 100)
    with pytest.raises(ImageError, match="broken"):
        Search([tmp_path])


@pytest.mark.needs("root")
def test_devices_are_looked_at(base, tmp_path):
    disk = tmp_path / "disk"
    write_image(disk, backing_file=str(base), **BELOW)
    with disk.open("ab") as file:
        file.truncate(MIB)
    done = subprocess.run(["losetup", "-f", "--show", disk], capture_output=True, text=True)
    if done.returncode != 0:
        missing("loop", done.stderr.strip())
    device = done.stdout.strip()
    nodes = tmp_path / "nodes"
    nodes.mkdir()
    try:
        os.mknod(nodes / "lv", 0o600 | 0o060000, Path(device).stat().st_rdev)
        (nodes / "vg-lv").symlink_to("lv")
        write_image(tmp_path / "over", backing_file=device, **BELOW)
        found = Search([nodes])
        assert [str(user) for user in found.users_of(base)] == [f"{nodes / 'lv'} stands on it"]
        assert told(nodes / "lv", tmp_path) == [
            f"{tmp_path / 'over'} stands on it",
            f"{nodes / 'vg-lv'} is a symbolic link to it",
        ]
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def write_record(path, layers, *, original="base", **more):
    files = [path.with_suffix(".qcow2")]
    files[0].write_bytes(b"")
    identity = {"path": "", "device": 1, "inode": 1}
    record = {
        "schema": 2,
        "kind": "squash",
        "image": "/somewhere/image",
        "original": {"name": original, "format": "qcow2"},
        "layers": [{"identity": {**identity, "path": str(layer)}, "format": "qcow2"} for layer in layers],
        "files": [{**identity, "path": str(files[0])}],
        **more,
    }
    path.write_text(json.dumps(record))


def test_layers_that_a_record_names_are_needed_for_the_way_back(base, tmp_path):
    directory = base.parent / "image.lift"
    directory.mkdir()
    record = directory / "squash-3.json"
    write_record(record, [base], original="unknown")
    assert told(base, tmp_path) == [f"{record} names it for the way back of a lift"]
    # Also where only the original pointer leads there, relative to the image; or where all were moved together.
    write_record(record, [], original="base")
    assert told(base, tmp_path) == [f"{record} names it for the way back of a lift"]
    write_record(record, ["/where/it/was/base"], original="unknown")
    assert told(base, tmp_path) == [f"{record} names it for the way back of a lift"]
    for never in ({"deleted": True}, {"used": False}, {"kind": "other"}):
        write_record(record, [base], **never)
        assert told(base, tmp_path) == []
    write_record(record, [base])
    record.with_suffix(".qcow2").unlink()
    assert told(base, tmp_path) == []


def test_whether_a_file_lies_in_what_was_searched(base, tmp_path):
    (tmp_path / "link").symlink_to(base.parent)
    found = Search([tmp_path / "link"])
    assert found.covers(base)
    assert found.covers(tmp_path / "link" / "anything")
    assert not found.covers(tmp_path / "pool2")


@pytest.mark.parametrize(
    ("backing", "is_left_out"),
    [
        ("", False),
        (',"backing":null', True),
        (',"backing":{"driver":"qcow2","file":{"driver":"file","filename":"x"}}', True),
        (',"file.an-option":1', False),
    ],
)
def test_who_opens_a_file_without_what_its_header_names(base, tmp_path, backing, is_left_out):
    user, above = tmp_path / "user", tmp_path / "above"
    name = f'json:{{"driver":"qcow2","file.driver":"file","file.filename":"{base}"{backing}}}'
    write_image(user, backing_file=name, virtual_size=MIB, backing_format="qcow2")
    write_image(above, backing_file=str(user), virtual_size=MIB, backing_format="qcow2")
    found = Search([tmp_path])
    assert opened_without_header(base, found) == ([user] if is_left_out else [])
    assert opened_without_header(user, found) == []


def test_a_file_is_left_without_its_header_also_further_down_in_a_name(base, tmp_path):
    file = '"file":{"driver":"file","filename":"%s"}'
    below = f'{{"driver":"qcow2",{file % base},"backing":null}}'
    name = f'json:{{"driver":"qcow2",{file % (tmp_path / "middle")},"backing":{below}}}'
    write_image(tmp_path / "user", backing_file=name, virtual_size=MIB, backing_format="qcow2")
    assert opened_without_header(base, Search([tmp_path])) == [tmp_path / "user"]
