"""Verbs at rest on images of domains that libvirt has defined: the next start is on what the image stands on then."""

import subprocess

import pytest
from tests.support.domain import DISK, XML, Machine
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.stock import create, everything, make_pool, read

from chainlift import index
from chainlift.errors import ImageError
from chainlift.lift import at_rest
from chainlift.lift.compare.stock import compare_stock

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]


@pytest.fixture
def stopped(machine):
    """A domain that is shut off, whose definition has ``<backingStore>`` since its snapshot."""
    machine.snapshot("first")
    machine.snapshot("second")
    virsh("destroy", "vm")
    assert machine.definition(inactive=True).below
    return machine


def started(machine):
    """The chain that libvirt has after a start."""
    machine.give_to_libvirt()
    virsh("start", "vm")
    return machine.chain


def test_the_definition_follows_the_headers_after_a_squash(verb, stopped):
    image = stopped.images / "second.qcow2"
    before = read(image)
    said = verb("squash", image)
    assert said.status == 0, said
    assert f"the definition of domain vm follows the headers below {image} now" in said.err
    assert stopped.definition(inactive=True).below is None
    squash = stopped.images / "second.qcow2.lift/squash-1.qcow2"
    assert started(stopped) == [image, squash, stopped.files[0]]
    assert read(image) == before
    # libvirt finds the newest snapshot's overlay and what is below it.
    assert subprocess.run(["virsh", "-q", "snapshot-delete", "vm", "second"], capture_output=True).returncode == 0
    assert stopped.disk == squash
    assert read(squash) == before


def test_it_follows_them_again_after_a_restore(verb, stopped):
    image = stopped.images / "second.qcow2"
    before = read(image)
    assert verb("squash", image).status == 0
    started(stopped)
    overlay = stopped.snapshot("third")
    virsh("destroy", "vm")
    said = verb("restore", overlay, "--clean")
    assert said.status == 0, said
    assert started(stopped) == [overlay, image, stopped.images / "first.qcow2", *reversed(stopped.files)]
    assert not (stopped.images / "second.qcow2.lift").exists()
    assert read(overlay) == before


def test_an_image_further_down_is_followed_too(verb, stopped):
    middle = stopped.images / "first.qcow2"
    top = stopped.images / "second.qcow2"
    before = read(top)
    said = verb("squash", middle)
    assert said.status == 0, said
    assert started(stopped) == [top, middle, stopped.images / "first.qcow2.lift/squash-1.qcow2", stopped.files[0]]
    assert read(top) == before


def test_layers_that_snapshots_name_are_kept(verb, stopped):
    image = stopped.images / "second.qcow2"
    before = read(image)
    said = verb("squash", image, "--delete-layers")
    assert said.status == 0, said
    assert f"kept {stopped.images / 'first.qcow2'}: snapshot" in said.err, said
    assert all(path.exists() for path in stopped.files)
    assert len(started(stopped)) == 3
    assert read(image) == before


def test_the_domain_starts_after_its_layers_were_deleted(verb, machine):
    image = machine.snapshot("one", "--no-metadata")
    virsh("destroy", "vm")
    before = read(image)
    said = verb("squash", image, "--delete-layers")
    assert said.status == 0, said
    assert [path.name for path in machine.files if path.exists()] == ["base.qcow2"], said
    assert len(started(machine)) == 3
    assert read(image) == before


def test_a_definition_without_such_elements_stays_as_it_is(verb, machine):
    virsh("destroy", "vm")
    before = virsh("dumpxml", "vm", "--inactive")
    assert verb("squash", machine.files[-1]).status == 0
    assert virsh("dumpxml", "vm", "--inactive") == before
    assert len(started(machine)) == 3


@pytest.mark.parametrize("stores", [True, False])
def test_with_and_without_elements_a_running_domain_is_lifted_alike(place, verb, stores):
    with Machine(place, start=False) as machine:
        if stores:
            virsh("start", "vm")
            machine.snapshot("one", "--no-metadata")
            virsh("destroy", "vm")
        assert bool(machine.definition(inactive=True).below) == stores
        virsh("start", "vm")
        before = machine.content()
        assert verb("squash", "--libvirt", "vm").status == 0
        chain = machine.chain
        machine.restart()
        assert machine.chain == chain
        assert verb("restore", "--libvirt", "vm").status == 0
        machine.restart()
        assert machine.content() == before


def test_no_index_is_made_of_a_disk_whose_definition_says_what_is_below(verb, tmp_path):
    images = make_pool(tmp_path / "images", "base.qcow2", "a.qcow2", "b.qcow2", absolute=True)
    files = everything(tmp_path / "images")
    with running_libvirtd() as place:
        image = create(images[0].parent / "top.qcow2", images[-1], named=str(images[-1]))
        below = f"<backingStore type='file'><format type='qcow2'/><source file='{images[-1]}'/></backingStore>"
        disk = DISK.format(image=image, target="vda", store=below, more="", cache="none")
        (place / "some.xml").write_text(XML.format(name="other", disks=disk))
        virsh("define", place / "some.xml")
        said = verb("index", image)
        assert (said.status, "<backingStore>" in said.err) == (2, True), said
        virsh("undefine", "other")
    image.unlink()
    assert everything(tmp_path / "images") == files


def test_a_domain_that_is_defined_while_an_index_is_built_is_seen(tmp_path, monkeypatch):
    image = make_pool(tmp_path / "images", "base.qcow2", "a.qcow2", "b.qcow2", absolute=True)[-1]
    files = everything(tmp_path / "images")
    with running_libvirtd() as place:
        disk = DISK.format(image=image, target="vda", store="", more="", cache="none")
        (place / "some.xml").write_text(XML.format(name="late", disks=disk))

        def compare(*parts, **options):
            virsh("define", place / "some.xml")
            compare_stock(*parts, **options)

        monkeypatch.setattr(at_rest, "compare_stock", compare)
        monkeypatch.setattr(at_rest, "_FRESH_S", 0.0)
        with pytest.raises(ImageError, match="the disk vda of the libvirt domain late"):
            index(at_rest.DiskAtRest(image))
        virsh("undefine", "late")
    assert everything(tmp_path / "images") == files


@pytest.mark.long
def test_a_chain_that_is_too_long_for_libvirt_is_not_restored_under_it(place, verb):
    with Machine(place, layers=199, start=False) as machine:
        assert subprocess.run(["virsh", "start", "vm"], capture_output=True).returncode != 0
        before = read(machine.files[-1])
        assert verb("squash", machine.files[-1]).status == 0
        machine.give_to_libvirt()
        virsh("start", "vm")
        said = verb("restore", "--libvirt", "vm")
        assert said.status == 2, said
        assert "its chain would have 200 layers over the base, and libvirt" in said.err
        assert len(machine.chain) == 3
        assert machine.content() == before


@pytest.mark.parametrize("words", [["squash"], ["restore"]])
def test_no_lift_brings_an_index_to_a_domain_that_a_squash_has_hidden_from_it(verb, machine, words):
    """A layer that the squash stands for is no domain's, and may be indexed."""
    image, hidden = machine.files[-1], machine.files[2]
    virsh("destroy", "vm")
    assert verb("squash", image).status == 0
    said = verb("index", hidden)
    assert said.status == 0, said
    machine.give_to_libvirt()
    before = everything(machine.images)
    said = verb(*words, image)
    assert said.status == 2, said
    assert "the libvirt domain vm, which does not start on an index" in said.err
    assert f"chainlift restore {hidden}" in said.err
    assert everything(machine.images) == before
    virsh("start", "vm")
    said = verb(*words, "--libvirt", "vm")
    assert said.status == 2, said
    assert everything(machine.images) == before
    virsh("destroy", "vm")
    assert verb("restore", hidden).status == 0
    said = verb(*words, image)
    assert said.status == 0, said
    assert started(machine)[0] == image
