import hashlib
import json
import re
import subprocess
import tarfile

import pytest

from chainlift.errors import InputError
from chainlift.guest.disk import BLOCK, make_ext4_disk

pytestmark = pytest.mark.integration


def raw_of(path, tmp_path):
    raw = tmp_path / "check.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, raw], check=True)
    return raw


def clean(raw):
    """What e2fsck finds wrong."""
    return subprocess.run(["/sbin/e2fsck", "-fn", raw], capture_output=True, text=True)


# 3 MiB has its extents in the inode; 600 MiB needs a tree.
@pytest.mark.parametrize(("size", "data"), [(96 << 20, 0), (128 << 20, 3 << 20), (1 << 30, 600 << 20)])
def test_the_file_system_is_clean_and_the_image_too(tmp_path, size, data):
    path = tmp_path / "base.qcow2"
    make_ext4_disk(path, size, data_bytes=data)
    assert [file.name for file in tmp_path.iterdir()] == ["base.qcow2"]
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", path], capture_output=True).stdout)
    assert info["virtual-size"] == size
    assert data <= info["actual-size"] < data + (8 << 20)
    found = clean(raw_of(path, tmp_path))
    assert found.returncode == 0, found.stdout


def test_the_file_holds_data_everywhere_and_the_same_every_time(tmp_path):
    digests = set()
    for name in ("one", "two"):
        path = tmp_path / name
        make_ext4_disk(path, 256 << 20, data_bytes=40 << 20)
        raw, out = raw_of(path, tmp_path), tmp_path / "dumped"
        subprocess.run(["/sbin/debugfs", "-R", f"dump /fio.0.0 {out}", raw], check=True, capture_output=True)
        content = out.read_bytes()
        assert len(content) == 40 << 20
        assert not any(content[at : at + BLOCK] == bytes(BLOCK) for at in range(0, len(content), BLOCK))
        digests.add(hashlib.sha256(content).hexdigest())
        again = subprocess.run(["qemu-img", "convert", "-c", "-O", "qcow2", path, tmp_path / "c"]).returncode
        assert again == 0
        assert (tmp_path / "c").stat().st_size > 39 << 20  # it does not compress
    assert len(digests) == 1


def test_a_file_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(InputError, match=r"a file of 1.00 GiB does not fit on a disk of 1.00 GiB"):
        make_ext4_disk(tmp_path / "base", 1 << 30, data_bytes=1 << 30)
    (tmp_path / "base").touch()
    with pytest.raises(InputError, match="exists already"):
        make_ext4_disk(tmp_path / "base", 1 << 30)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]


def test_a_systems_archive_is_unpacked_with_its_owners_and_without_its_devices(tmp_path):
    archive, path = tmp_path / "root.tar", tmp_path / "base"
    with tarfile.open(archive, "w") as tar:
        for name, kind, mode, owner in (
            ("./srv", tarfile.DIRTYPE, 0o755, 0),
            ("./dev", tarfile.DIRTYPE, 0o755, 0),
            ("./dev/null", tarfile.CHRTYPE, 0o666, 0),
            ("./sbin", tarfile.SYMTYPE, 0o777, 0),
            ("./mail", tarfile.REGTYPE, 0o2755, 8),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.uid, member.gid, member.linkname = kind, mode, owner, owner, "srv"
            tar.addfile(member)
    make_ext4_disk(path, 256 << 20, data_bytes=8 << 20, data_directory="/srv", archive=archive)
    assert {file.name for file in tmp_path.iterdir()} == {"root.tar", "base"}
    raw = raw_of(path, tmp_path)
    assert clean(raw).returncode == 0
    script = "stat /mail\nls -l /dev\nstat /sbin\nstat /srv/fio.0.0\nstat /\n"
    said = subprocess.run(["/sbin/debugfs", "-f", "/dev/stdin", raw], input=script, capture_output=True, text=True)
    mail, rest = said.stdout.split("debugfs: ls -l /dev")
    devices, link, data, root = rest.split("debugfs: stat")
    assert re.search(r"Mode:  02755 .*User:     8   Group:     8", mail, re.DOTALL)
    assert "null" not in devices
    assert 'Fast link dest: "srv"' in link
    assert f"Size: {8 << 20}" in data
    assert re.search(r"Mode:  0755 .*User:     0   Group:     0", root, re.DOTALL)
