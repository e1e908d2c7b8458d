"""Everybody who may need a file, asked at once, with real neighbours."""

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.need import missing

from chainlift.errors import ImageError
from chainlift.lift.neighbours.neighbourhood import Neighbourhood
from chainlift.lift.neighbours.processes import OpenFiles
from chainlift.qcow2.writer import write_image

#: In a container only its own processes can be seen: the host's PID namespace has this number (linux/proc_ns.h).
_IS_HOST = Path("/proc/self/ns/pid").stat().st_ino == 0xEFFFFFFC
ALL_PROCESSES = f"the open files of all processes{'' if _IS_HOST else ' of this container'}"

pytestmark = pytest.mark.integration
MIB = 1 << 20


@pytest.fixture
def chain(tmp_path):
    """Base, two layers and an active layer in one directory; the layers may go."""
    return make_chain(tmp_path / "pool")


def make_chain(directory):
    directory.mkdir()
    files, below = [], {}
    for name in ("base", "one", "two", "disk"):
        files.append(directory / name)
        write_image(files[-1], virtual_size=MIB, **below)
        below = {"backing_file": name, "backing_format": "qcow2"}
    return files


def around(image, **options):
    return Neighbourhood(image, libvirt=False, **options)


def clone_of(layer, directory):
    directory.mkdir()
    clone = directory / "clone"
    write_image(clone, virtual_size=MIB, backing_file=str(layer), backing_format="qcow2")
    return clone


@contextmanager
def opened(image, *, watched):
    command = ["qemu-storage-daemon", "--blockdev", f"driver=qcow2,node-name=d,file.driver=file,file.filename={image}"]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + 60
            while not OpenFiles.look().holders(watched):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def test_layers_that_nobody_else_needs_may_go(chain):
    base, one, two, disk = chain
    found = around(disk)
    assert found.why_keep(two) == f"{disk} stands on it"
    assert found.why_keep(two, ours=[disk]) is None
    assert found.sort_out([two, one], ours=[disk]) == {}
    assert found.sort_out([two, base], ours=[disk]) == {base: f"{one} stands on it"}
    assert found.searched == f"searched {disk.parent} (4 files), {ALL_PROCESSES}"


def test_what_was_searched_says_that_there_is_no_libvirt(chain, monkeypatch, tmp_path):
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={tmp_path / 'nowhere'}")
    assert Neighbourhood(chain[-1]).searched.endswith(f"{ALL_PROCESSES}; no libvirt answers here")


def test_a_clone_elsewhere_keeps_its_layers_while_it_runs_or_where_it_is_searched(chain, tmp_path):
    _, one, two, disk = chain
    clone = clone_of(one, tmp_path / "clones")
    assert around(disk).sort_out([two, one], ours=[disk]) == {}
    found = around(disk, search=[tmp_path / "clones"])
    assert found.sort_out([two, one], ours=[disk]) == {one: f"{clone} stands on it"}
    assert found.searched.startswith(f"searched {disk.parent}, {tmp_path / 'clones'} (5 files)")
    with opened(clone, watched=one) as process:
        found = around(disk)
        assert found.why_keep(one, ours=[disk, two]) == f"qemu-storage-da (process {process.pid}) has it open"
        assert found.why_keep(two, ours=[disk]) is None
        with pytest.raises(ImageError, match=rf"one: is open in qemu-storage-da \(process {process.pid}\)"):
            found.refuse_if_open(one)
        assert around(disk, our_processes=[process.pid]).why_keep(one, ours=[disk, two]) is None
    assert around(disk).why_keep(one, ours=[disk, two]) is None


def test_what_a_layer_that_is_kept_stands_on_is_kept(chain, tmp_path):
    base, one, two, disk = chain
    subprocess.run(["qemu-img", "snapshot", "-c", "before-upgrade", two], check=True)
    assert around(disk).sort_out([two, one], ours=[disk]) == {
        two: "it holds the internal snapshot before-upgrade",
        one: f"{two} stands on it and is kept",
    }
    # Also where the layer that is kept lies where nothing was searched, and names what lies here.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    between, outside = elsewhere / "between", elsewhere / "outside"
    write_image(between, virtual_size=MIB, backing_file=str(base), backing_format="qcow2")
    write_image(outside, virtual_size=MIB, backing_file="between", backing_format="qcow2")
    one.unlink()
    assert around(disk).sort_out([outside, base], ours=[disk]) == {
        outside: "it lies outside the directories that were searched",
        base: f"{between} stands on it and is kept",
    }


def test_other_names_keep_a_file(chain, tmp_path):
    _, one, two, disk = chain
    os.link(one, tmp_path / "backup")
    assert around(disk).why_keep(one, ours=[two]) == "it has another name (a hard link) where nothing was searched"
    found = around(disk, search=[tmp_path])
    assert found.why_keep(one, ours=[two]) == f"it has another name: {tmp_path / 'backup'}"
    (tmp_path / "backup").unlink()
    (disk.parent / "current").symlink_to("one")
    assert around(disk).why_keep(one, ours=[two]) == f"{disk.parent / 'current'} is a symbolic link to it"


def test_an_image_that_is_reached_by_a_link_is_searched_on_both_sides(chain, tmp_path):
    _, one, two, disk = chain
    place = tmp_path / "links"
    place.mkdir()
    (place / "vm").symlink_to(disk)
    write_image(place / "other", virtual_size=MIB, backing_file=str(one), backing_format="qcow2")
    found = around(place / "vm")
    assert found.why_keep(one, ours=[two]) == f"{place / 'other'} stands on it"
    assert found.why_keep(two, ours=[place / "vm"]) is None


def test_a_record_counts_unless_it_is_ours(chain):
    _, one, two, disk = chain
    lift = disk.with_name("disk.lift")
    lift.mkdir()
    (lift / "index-1.vmdk").touch()
    record = lift / "index-1.json"
    identity = {"path": str(one), "device": 0, "inode": 0}
    files = [{**identity, "path": str(lift / "index-1.vmdk")}]
    record.write_text(json.dumps({"kind": "index", "layers": [{"identity": identity}], "files": files}))
    assert around(disk).why_keep(one, ours=[two, disk]) == f"{record} names it for the way back of a lift"
    assert around(disk).why_keep(one, ours=[two, disk, record]) is None


@pytest.mark.needs("root")
def test_a_device_is_never_deleted(chain):
    _, one, _, disk = chain
    done = subprocess.run(["losetup", "-f", "--show", one], capture_output=True, text=True)
    if done.returncode != 0:
        missing("loop", done.stderr.strip())
    device = Path(done.stdout.strip())
    try:
        found = around(disk)
        assert found.why_keep(device) == "it is a block device"
        assert found.why_keep(one) == f"loop device {device} has it open"
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.needs("libvirt")
def test_a_definition_keeps_what_it_names():
    with running_libvirtd() as place:
        base, one, two, disk = make_chain(place / "images" / "vm")
        owner = place.stat()
        for path in (disk.parent, base, one, two, disk):
            os.chown(path, owner.st_uid, owner.st_gid)
        chained = "".join(
            f"<backingStore type='file'><format type='qcow2'/><source file='{path}'/>" for path in (two, one, base)
        )
        xml = disk.parent / "vm.xml"
        xml.write_text(
            "<domain type='qemu'><name>vm7</name><memory unit='MiB'>32</memory><os><type>hvm</type></os><devices>"
            f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{disk}'/>{chained}<backingStore/>"
            "</backingStore></backingStore></backingStore><target dev='vda' bus='virtio'/></disk></devices></domain>"
        )
        virsh("define", xml)
        found = Neighbourhood(disk)
        assert found.why_keep(one, ours=[two]) == "domain vm7 names it in <backingStore>"
        assert "the definitions of 1 libvirt domain, the open files" in found.searched
        virsh("undefine", "vm7")
        assert Neighbourhood(disk).why_keep(one, ours=[two]) is None
        assert "the definitions of 0 libvirt domains" in Neighbourhood(disk).searched
