"""A real libvirtd: what its definitions name, while it runs and when it does not."""

import os
import socket
import subprocess
import time

import pytest
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.need import missing
from tests.support.stock import create

from chainlift.lift.neighbours.ask_libvirt import read_definitions, read_files
from chainlift.lift.neighbours.definitions import Definitions
from chainlift.qcow2.writer import write_image

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("libvirt"),
]
NAME = "o'neill; list"
DOMAIN = """
<domain type='qemu'><name>{name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>{source}<target dev='vda' bus='virtio'/></disk>
</devices>{more}</domain>
"""


@pytest.fixture(scope="module")
def place():
    with running_libvirtd() as path:
        yield path


@pytest.fixture
def chain(place):
    """Base, middle and top, with absolute names, in a directory of libvirt's user."""
    directory = place / "images" / str(time.monotonic_ns())
    directory.mkdir()
    files, below = [], {}
    for name in ("base", "middle", "top"):
        files.append(directory / name)
        write_image(files[-1], virtual_size=8 << 20, **below)
        below = {"backing_file": str(files[-1]), "backing_format": "qcow2"}
    owner = place.stat()
    for path in (directory, *files):
        os.chown(path, owner.st_uid, owner.st_gid)
    return files


@pytest.fixture
def define(place, chain):
    """Defines a domain, and takes it away again with its snapshots and checkpoints."""
    defined = []

    def make(name=NAME, *, source=None, more="", disk_type="file"):
        xml = chain[0].parent / "domain.xml"
        source = source or f"<source file='{chain[-1]}'/>"
        text = DOMAIN.format(name=name.replace("'", "&apos;"), source=source, more=more)
        xml.write_text(text.replace("<disk type='file'", f"<disk type='{disk_type}'"))
        virsh("define", xml)
        defined.append(name)

    yield make
    for name in defined:
        subprocess.run(["virsh", "destroy", name], capture_output=True)
        virsh("undefine", name, "--snapshots-metadata", "--checkpoints-metadata")


def test_a_definition_at_rest_and_a_running_one_name_their_files(define, chain):
    base, middle, top = chain
    define()
    found = read_definitions()
    assert (found.is_there, found.problem, found.domains) == (True, None, [NAME])
    assert found.naming(top) == [f"domain {NAME} (<source>)"]
    assert found.naming(middle) == []  # a definition that names the top only
    (disk,) = found.domains_of(top)
    assert (disk.domain, disk.target, disk.running) == (NAME, "vda", False)
    virsh("start", NAME)
    found = read_definitions()
    assert found.naming(middle) == found.naming(base) == [f"domain {NAME} (<backingStore>)"]
    assert [disk.running for disk in found.domains_of(top)] == [True, False]


def test_a_domain_stands_on_the_layers_that_headers_name(define, chain, tmp_path):
    define()
    found = read_definitions()
    for layer in chain:
        assert [disk.domain for disk in found.domains_over(layer)] == [NAME]
    assert found.domains_over(create(tmp_path / "clone.qcow2", chain[1])) == []


def test_snapshots_and_checkpoints_are_read_under_awkward_names(define, chain):
    _, _, top = chain
    define()
    virsh("start", NAME)
    (top.parent / "cp.xml").write_text("<domaincheckpoint><name>cp.1</name></domaincheckpoint>")
    virsh("checkpoint-create", NAME, top.parent / "cp.xml")
    over = top.with_name("over")
    virsh("snapshot-create-as", NAME, "before ' it", "--disk-only", "--diskspec", f"vda,file={over}")
    virsh("destroy", NAME)
    found = read_definitions()
    assert found.problem is None
    assert found.naming(top) == [
        f"domain {NAME} (<backingStore>)",
        f"snapshot before ' it of domain {NAME}",
        f"checkpoint cp.1 of domain {NAME}",
    ]


def test_the_state_of_a_machine_that_was_saved_names_its_files(define, chain):
    _, _, top = chain
    define()
    virsh("start", NAME)
    virsh("managedsave", NAME)
    try:
        found = read_definitions()
        assert found.problem is None
        assert found.naming(top) == [f"domain {NAME} (<source>)", f"managed save of domain {NAME}"]
    finally:
        virsh("managedsave-remove", NAME)
    assert read_definitions().naming(top) == [f"domain {NAME} (<source>)"]


def test_a_file_is_known_under_each_of_its_names(define, chain):
    _, middle, top = chain
    link = top.with_name("link")
    link.symlink_to(top)
    define(source=f"<source file='{link}'/>")
    found = read_definitions()
    assert found.naming(top) == found.naming(link) == [f"domain {NAME} (<source>)"]
    # The name counts also where there is no file any more.
    top.unlink()
    assert found.naming(top)
    assert found.naming(middle) == []


def test_a_volume_of_a_storage_pool_and_arguments_for_qemu_are_found(define, chain):
    _, middle, top = chain
    pool = top.parent / "pool.xml"
    pool.write_text(f"<pool type='dir'><name>p 1</name><target><path>{top.parent}</path></target></pool>")
    done = subprocess.run(["virsh", "pool-create", pool], capture_output=True, text=True)
    if "not supported by the connection driver" in done.stderr:
        missing("pools", done.stderr.strip())
    assert done.returncode == 0, done.stderr
    try:
        define("pooled", source="<source pool='p 1' volume='top'/>", disk_type="volume")
        arguments = f"<qemu:arg value='-drive'/><qemu:arg value='if=none,file={middle},format=qcow2'/>"
        command = f"<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>{arguments}"
        define("by hand", source=f"<source file='{chain[0]}'/>", more=command + "</qemu:commandline>")
        found = read_definitions()
        assert found.problem is None
        assert not found.volumes  # the next connection is not asked where they are
        assert found.naming(top) == ["domain pooled (<source>)"]
        assert [disk.domain for disk in found.domains_of(top)] == ["pooled"]
        assert found.naming(middle) == ["domain by hand (<qemu:commandline>)"]
    finally:
        virsh("pool-destroy", "p 1")


def test_definitions_are_read_from_libvirts_files_where_no_daemon_answers(define, chain, place):
    _, _, top = chain
    define()
    virsh("start", NAME)
    over = top.with_name("over")
    virsh("snapshot-create-as", NAME, "s1", "--disk-only", "--diskspec", f"vda,file={over}")
    found = Definitions()
    read_files(found, place / "config/libvirt/qemu", place / "config/libvirt/qemu")
    assert (found.is_there, found.problem, found.domains) == (True, None, [NAME])
    assert found.naming(over) == [f"domain {NAME} (<source>)", f"snapshot s1 of domain {NAME}"]
    assert f"snapshot s1 of domain {NAME}" in found.naming(top)


def test_without_a_libvirt_nothing_is_known_and_nothing_waits(monkeypatch, tmp_path):
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={tmp_path / 'nowhere'}")
    assert read_definitions() == Definitions()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_definitions() == Definitions()


def test_a_libvirt_that_does_not_answer_is_told(monkeypatch, tmp_path):
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        monkeypatch.setenv("LIBVIRT_DEFAULT_URI", f"qemu+unix:///session?socket={tmp_path / 'silent'}")
        found = read_definitions(timeout_s=0.5)
    assert found.is_there
    assert found.problem == "libvirt did not answer within 0.5 s"


def test_a_definition_with_entities_is_not_expanded(tmp_path):
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x"}">' for n in range(10))
    (tmp_path / "bomb.xml").write_text(f"<!DOCTYPE domain [{lines}]><domain><name>&e9;</name></domain>")
    found = Definitions()
    read_files(found, tmp_path, tmp_path)
    assert found.domains == []
    assert found.problem == "a definition of libvirt's has a document type"
