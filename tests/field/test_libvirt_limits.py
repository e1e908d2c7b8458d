"""A chain grows until libvirt does not start its domain any more: what is said before, and what helps then.

On the libvirt that is there: 200 images from 9.0 to 10.7 and from 12.0 on, some 25 in between (Debian 13).
"""

import shutil
import subprocess
import time

import pytest
from tests.support.domain import Machine
from tests.support.libvirt import give_to, libvirtd_of, running_libvirtd, virsh
from tests.support.long_chain import make_long_chain
from tests.support.stock import read

from chainlift import open_chain
from chainlift.chain.libvirt_limits import libvirt_limit
from chainlift.host.libvirt_version import libvirt_version

pytestmark = [pytest.mark.integration, pytest.mark.needs("libvirt")]
DOMAIN = """
<domain type='qemu'><name>long</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
<source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices></domain>
"""


@pytest.fixture(scope="module")
def place():
    with running_libvirtd() as path:
        yield path


@pytest.fixture
def start(place):
    """Defines a domain on an image and starts it; returns what virsh complains about, nothing if it runs."""

    def start(image):
        xml = place / "images/long.xml"
        xml.write_text(DOMAIN.format(image=image))
        end()
        virsh("define", xml)
        done = subprocess.run(["virsh", "start", "long"], capture_output=True, text=True)
        return done.stderr if done.returncode else ""

    def end():
        for command in ("destroy", "undefine"):
            subprocess.run(["virsh", command, "long"], capture_output=True)

    yield start
    end()


def limit_of(chain=()):
    version = libvirt_version()
    assert version is not None
    return libvirt_limit(version, chain)


def test_inspect_and_plan_warn_before_it_is_reached(verb, tmp_path):
    limit = limit_of()
    files = make_long_chain(tmp_path, limit.longest + 1)
    for length, is_near in ((limit.longest // 2, False), (limit.longest * 9 // 10, True), (limit.longest + 1, True)):
        for words in ("inspect", "plan"):
            said = verb(*words.split(), files[length])
            assert said.status == 0, said
            assert (f"starts no domain on more than {limit.longest} layers" in said.out) == is_near, said


def test_the_longest_chain_starts_and_a_squash_brings_a_longer_one_back(verb, place, start):
    kinds = ["qcow2", *(["raw", "bitmap"] if limit_of().ends_domains else [])]
    for kind in kinds:
        directory = place / "images" / kind
        with open_chain(make_long_chain(directory, 1, kind)[-1]) as chain:
            longest = limit_of(chain.layers).longest
        shutil.rmtree(directory)
        files = make_long_chain(directory, longest + 6, kind)
        give_to(place, directory)
        assert start(files[longest]) == ""
        said = verb("index", "--libvirt", "long", "--drop-bitmaps")
        assert f"starts no domain on more than {longest} layers" in said.err, said
        assert "too deep" in start(files[longest + 1])
        before = read(files[-1])
        assert start(files[-1]) != ""
        said = verb("squash", files[-1])
        assert said.status == 0, said
        assert start(files[-1]) == ""
        assert read(files[-1]) == before


def test_a_libvirt_that_statistics_have_put_out_of_order_is_told_and_a_squash_at_rest_helps(verb, place):
    limit = limit_of()
    with Machine(place, 4) as machine:
        for number in range(1, min(limit.longest, 24) + 1):
            machine.snapshot(f"more{number}", "--no-metadata")
        chain, before = machine.chain, machine.content()
        subprocess.run(["virsh", "domstats", "vm"], capture_output=True)
        said = verb("squash", "--libvirt", "vm")
        if limit.ends_domains:
            assert said.status == 3, said
            assert "nesting too deep" in said.err
            assert "shut it off, then chainlift squash its image" in said.err
            assert machine.chain == chain
            virsh("destroy", "vm")
            said = verb("squash", chain[0])
            virsh("start", "vm")
        assert said.status == 0, said
        assert (len(machine.chain), machine.content()) == (3, before)


@pytest.mark.parametrize("squashes", [False, True])
def test_a_domain_that_grew_while_it_ran_is_squashed_before_libvirtd_is_restarted(verb, place, squashes):
    limit = limit_of()
    with Machine(place, 4) as machine:
        number = 0
        while len(machine.chain) - 1 <= min(limit.longest, 24):
            number += 1
            machine.snapshot(f"more{number}", "--no-metadata")
        before, pid = machine.content(), machine.pid
        if squashes:
            said = verb("squash", "--libvirt", "vm")
            assert said.status == 0, said
        libvirtd_of(place).stop()
        libvirtd_of(place).start()
        survives = squashes or not limit.ends_domains
        # The daemon answers before it has looked at its domains.
        deadline = time.monotonic() + 60
        while not survives and "running" in virsh("domstate", "vm"):
            assert time.monotonic() < deadline, "the domain goes on"
            time.sleep(0.05)
        if survives:
            virsh("iothreadinfo", "vm")  # which waits until it has
        state = virsh("domstate", "vm", "--reason")
        assert ("running" in state) == survives, f"{state}: {libvirtd_of(place).complaints}"
        if survives:
            assert machine.pid == pid
            machine.restart()
        assert read(machine.disk) == before


def test_a_domain_that_has_grown_by_snapshots_and_does_not_start_is_squashed_at_rest(verb, place):
    limit = limit_of()
    with Machine(place, 4) as machine:
        # Its definition names every layer.
        for number in range(1, min(limit.longest, 24) + 1):
            machine.snapshot(f"more{number}", "--no-metadata")
        disk, before = machine.disk, machine.content()
        virsh("destroy", "vm")
        if limit.ends_domains:
            done = subprocess.run(["virsh", "start", "vm"], capture_output=True, text=True)
            assert "nesting too deep" in done.stderr
        said = verb("squash", disk)
        assert said.status == 0, said
        virsh("start", "vm")
        assert (len(machine.chain), read(machine.disk)) == (3, before)
