"""A libvirtd of a user of its own, and domains whose disks are lifted by libvirt's own block copy."""

import pytest
from tests.support.domain import Machine
from tests.support.libvirt import running_libvirtd
from tests.support.verbs import Verbs

from chainlift.host.virsh import Domain
from chainlift.lift.domain.open import open_domain_disk
from chainlift.qemu.find import find_qemu


@pytest.fixture(scope="module")
def place():
    """A directory that libvirtd's user may use, with libvirtd running.

    It says by the environment where it answers, so no two of them may live side by side: without an ``__init__.py`` a
    fixture of a package lives as long as the session.
    """
    with running_libvirtd() as path:
        yield path


@pytest.fixture
def machine(place):
    with Machine(place) as made:
        yield made


@pytest.fixture(scope="session")
def verb():
    """Runs a verb of ours in a process of its own; returns its status and what it said."""
    with Verbs() as verbs:
        yield verbs


@pytest.fixture
def open_disk():
    """Opens a machine's disk."""

    def opened(machine, *, device=None, **options):
        disk = open_domain_disk(Domain(machine.name), device=device, qemu=find_qemu(need=["img", "storage-daemon"]))
        for name, value in options.items():
            setattr(disk, name, value)
        return disk

    return opened
