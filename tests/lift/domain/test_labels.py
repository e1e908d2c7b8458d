"""The system's instance of libvirt runs QEMU as another user and gives it what it may read: a lift too."""

import pwd
import stat
from contextlib import contextmanager

import pytest
from tests.support.domain import DISK, SIZE, XML
from tests.support.libvirt import running_system_libvirtd, virsh
from tests.support.stock import create, make_pool, read

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt", "root")]


def owner(path):
    status = path.stat()
    return pwd.getpwuid(status.st_uid).pw_name, oct(stat.S_IMODE(status.st_mode))


@contextmanager
def started(*names):
    """Yield the layers and the disk of a domain that runs, which nobody but their owner may read."""
    with running_system_libvirtd() as place:
        images = place / "images"
        files = make_pool(images, *names, size=SIZE, absolute=True)
        disk = create(images / "disk.qcow2", files[-1], named=str(files[-1]))
        for path in (*files, disk):
            path.chmod(0o600)
        (images / "some.xml").write_text(
            XML.format(name="vm", disks=DISK.format(image=disk, target="vda", store="", more="", cache="none"))
        )
        virsh("define", images / "some.xml")
        virsh("start", "vm")
        try:
            yield files, disk
        finally:
            virsh("destroy", "vm")
            virsh("undefine", "vm")


def test_qemus_user_reads_layers_that_are_written_anew(verb):
    with started("base.qcow2", "a.qcow2", "b.qcow2", "c.qcow2") as (files, disk):
        before = read(disk)
        for layer in files[1:3]:
            said = verb("drop", "--libvirt", "vm", layer)
            assert said.status == 0, said
            assert [owner(path) for path in (disk, files[-1], files[0])] == [("nobody", "0o600")] * 3
        assert not list(disk.parent.glob("disk.lift*"))
        virsh("destroy", "vm")
        virsh("start", "vm")
        assert read(disk) == before


def test_qemus_user_reads_a_lift_whatever_the_images_mode_is(verb):
    with started("base.qcow2", "a.qcow2", "b.qcow2") as (files, disk):
        before = read(disk)
        assert owner(disk) == ("nobody", "0o600")
        said = verb("squash", "--libvirt", "vm")
        assert said.status == 0, said
        lifted = disk.with_name("disk.lift1")
        assert owner(lifted) == owner(disk.parent / "disk.qcow2.lift/squash-1.qcow2") == ("nobody", "0o600")
        # libvirt has given back what is no part of the disk any more.
        assert owner(disk) == ("root", "0o600")
        virsh("destroy", "vm")
        virsh("start", "vm")
        assert read(lifted) == before
        said = verb("restore", "--libvirt", "vm", "--clean")
        assert said.status == 0, said
        assert [owner(path)[0] for path in files] == ["nobody"] * 3
        virsh("destroy", "vm")
        virsh("start", "vm")
        assert read(disk.with_name("disk.lift2")) == before
