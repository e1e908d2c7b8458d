"""A real libvirtd, of a user of its own, with a domain whose disk is lifted through it."""

import os
import subprocess
import time

import pytest
from tests.support.libvirt import running_libvirtd, virsh
from tests.support.lifts import live_index, live_restore, live_squash

from chainlift.errors import InputError, QemuError
from chainlift.host.virsh import Domain
from chainlift.lift.live.libvirt_monitor import VirshMonitor
from chainlift.lift.live.session import open_session
from chainlift.lift.live.stream import stream_live
from chainlift.lift.record.pointer import named_in

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("libvirt"),
]
DOMAIN = """
<domain type='qemu'><name>chainlift's</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>
"""


@pytest.fixture(scope="module")
def place():
    """A directory that libvirtd's user may use, with libvirtd running."""
    with running_libvirtd() as path:
        yield path


@pytest.fixture
def domain(place, make_chain):
    """A domain that runs, and its chain; its name has an apostrophe, to be quoted."""
    directory = place / "images" / str(time.monotonic_ns())
    chain = make_chain(6, virtual_size=8 << 20, directory=directory, absolute_names=True)
    owner = place.stat()
    for path in (directory, *directory.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid)
    xml = directory / "domain.xml"
    xml.write_text(DOMAIN.format(image=chain.active))
    virsh("define", xml)
    try:
        virsh("start", "chainlift's")
        yield Domain("chainlift's"), chain
    finally:
        subprocess.run(["virsh", "destroy", "chainlift's"], capture_output=True)
        virsh("undefine", "chainlift's")


def nodes(domain) -> list[str]:
    with VirshMonitor(domain) as monitor:
        return sorted(node["node-name"] for node in monitor.execute("query-named-block-nodes", flat=True))


def test_an_index_lasts_until_the_domain_is_shut_down(domain, same_bytes):
    where, chain = domain
    pointer = named_in(chain.active)
    with open_session(where) as session:
        assert any("libvirt does not learn" in warning for warning in session.warnings)
        assert session.disk.users[0] == "/machine/peripheral/virtio-disk0/virtio-backend"
        assert live_index(session, qemu=None).left == []
        session.refresh()
        assert len(session.graph.backing_chain(session.disk.node)) == 2
    assert named_in(chain.active) == pointer
    # A snapshot that libvirt takes lies over the image that stands on the index, and is indexed together with it.
    virsh("snapshot-create-as", "chainlift's", "one", "--disk-only", "--no-metadata")
    overlay = chain.directory / "active.one"
    with open_session(where) as session:
        assert session.image == overlay
        assert live_index(session, qemu=None).left == []
        session.refresh()
        assert len(session.graph.backing_chain(session.disk.node)) == 2
    with open_session(where) as session:
        live_index(session, qemu=None)
    with open_session(where, device="vda") as session:
        assert session.disk.path == overlay
        assert live_restore(session, clean=True).left == []
        session.refresh()
        assert len(session.graph.backing_chain(session.disk.node)) == 8
    with open_session(where) as session:
        live_index(session, qemu=None)
    virsh("destroy", "chainlift's")
    virsh("start", "chainlift's")
    same_bytes(overlay, chain.files[-2])


def test_a_squash_is_durable_and_libvirt_starts_from_it(domain, same_bytes):
    where, chain = domain
    with open_session(where) as session:
        assert live_squash(session, qemu=None).left == []
    assert "active.qcow2.lift" in named_in(chain.active)
    virsh("destroy", "chainlift's")
    virsh("start", "chainlift's")
    with open_session(where) as session:
        assert len(session.graph.backing_chain(session.disk.node)) == 3
        live_restore(session, clean=True)
    assert named_in(chain.active) == str(chain.files[-2])
    same_bytes(chain.active, chain.files[-2])


def test_a_stream_through_libvirt_ends_though_no_event_comes(domain, same_bytes):
    where, chain = domain
    with open_session(where) as session:
        assert stream_live(session, qemu=None).bytes > 0
    assert named_in(chain.active) is None
    assert not any(name.startswith("chainlift-") for name in nodes(where))
    virsh("destroy", "chainlift's")
    same_bytes(chain.active, chain.files[-2])


def test_what_libvirt_and_qemu_refuse_is_told(domain):
    where, _ = domain
    with pytest.raises(InputError, match="domain nobody's: failed to get domain"):
        open_session(Domain("nobody's")).__enter__()
    with pytest.raises(InputError, match="has no qcow2 disk 'vdb'"):
        open_session(where, device="vdb").__enter__()
    with open_session(where, device="virtio-disk0") as session:
        assert "virtio-disk0" in session.disk.users
    with VirshMonitor(where) as monitor, pytest.raises(QemuError, match="nonsense: The command nonsense has not been"):
        monitor.execute("nonsense")
    virsh("destroy", "chainlift's")
    with pytest.raises(InputError, match="does not run on this machine"):
        open_session(where).__enter__()
    with VirshMonitor(where) as monitor, pytest.raises(QemuError, match=r"libvirt, query-status: .*not running"):
        monitor.execute("query-status")
