import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from chainlift.errors import QemuCrashed
from chainlift.qemu.binary import Qemu
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk, MachineConfig
from chainlift.qemu.vm import VirtualMachine, disk_arguments

QEMU = Qemu(
    "x",
    Path("/opt/qemu"),
    None,
    None,
    None,
    (7, 2, 0),
    "",
    "path",
    {},
    ("/ld.so", "--library-path", "/lib"),
    ("-L", "/fw"),
)


def argv(qemu=QEMU, **settings):
    machine = VirtualMachine(qemu, MachineConfig(**{"disks": [], **settings}))
    words = machine.argv()
    machine.close()
    return words


def after(words, option):
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def test_a_release_brings_its_loader_and_its_firmware():
    assert argv()[:6] == ["/ld.so", "--library-path", "/lib", "/opt/qemu", "-L", "/fw"]


def test_guest_ram_is_a_shared_memfd_of_the_size_asked_for():
    words = argv(memory_bytes=256 << 20, vcpus=2)
    assert "memory-backend-memfd,id=ram,size=268435456,share=on" in after(words, "-object")
    assert any("memory-backend=ram" in value for value in after(words, "-machine"))
    assert (after(words, "-m"), after(words, "-smp")) == (["256M"], ["2"])


def test_a_kernel_speaks_to_the_console_and_a_panic_ends_qemu():
    words = argv(kernel=Path("/k"), initrd=Path("/i"), append="quiet", accelerator="kvm")
    assert after(words, "-append") == ["console=ttyS0,115200 panic=-1 quiet"]
    assert "-no-reboot" in words


def test_only_an_emulator_before_8_0_keeps_a_kernel_from_cmpxchg16b():
    newer = replace(QEMU, version=(8, 0, 0))
    told = {
        name: "clearcpuid=cx16" in after(argv(qemu, kernel=Path("/k"), accelerator=accelerator), "-append")[0].split()
        for name, qemu, accelerator in (("old", QEMU, "tcg"), ("kvm", QEMU, "kvm"), ("new", newer, "tcg"))
    }
    assert told == {"old": True, "kvm": False, "new": False}


def test_an_emulated_timer_may_be_late():
    for accelerator, told in (("tcg", True), ("kvm", False)):
        words = after(argv(kernel=Path("/k"), accelerator=accelerator), "-append")[0].split()
        assert ("no_timer_check" in words) == told


def test_an_iothread_serves_the_disks_only_where_asked_for():
    assert "virtio-scsi-pci,id=scsi0" in after(argv(), "-device")
    words = argv(iothread=True)
    assert "iothread,id=io0" in after(words, "-object")
    assert "virtio-scsi-pci,id=scsi0,iothread=io0" in after(words, "-device")


def test_a_network_is_there_only_for_forwarded_ports_and_reaches_nobody():
    assert "-netdev" not in argv()
    (network,) = after(argv(forward_ports={2222: 22}), "-netdev")
    assert network == "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"


@pytest.mark.parametrize(
    ("mode", "direct", "no_flush", "write_cache"),
    [
        ("writeback", False, False, "on"),
        ("none", True, False, "on"),
        ("directsync", True, False, "off"),
        ("writethrough", False, False, "off"),
        ("unsafe", False, True, "on"),
    ],
)
def test_cache_modes_are_those_of_qemus_manual(mode, direct, no_flush, write_cache):
    words = disk_arguments(Disk(Path("/a,b.qcow2"), cache=mode, options={"l2-cache-size": 1 << 20}), 0)
    options = json.loads(words[1])
    assert options["cache"] == options["file"]["cache"] == {"direct": direct, "no-flush": no_flush}
    assert options["file"]["filename"] == "/a,b.qcow2"
    assert options["l2-cache-size"] == 1 << 20
    assert words[3].endswith(f",write-cache={write_cache}")


def test_explicit_layers_come_before_the_disk_and_back_it():
    layers = [{"driver": "null-co", "node-name": "base"}, {"driver": "null-co", "node-name": "one", "x": 1}]
    words = disk_arguments(Disk(Path("/top"), layers=layers), 3)
    assert [json.loads(word).get("node-name") for word in words[1:6:2]] == ["base", "one", "disk0"]
    assert json.loads(words[5])["backing"] == "one"
    assert ",lun=3," in words[7]


@pytest.mark.integration
def test_a_machine_starts_answers_and_ends(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    config = MachineConfig([Disk(disk, format="raw", serial="a,b")], memory_bytes=64 << 20, iothread=True, extra=["-S"])
    with VirtualMachine(find_qemu(), config, console=tmp_path / "console") as vm:
        nodes = {node["node-name"]: node for node in vm.monitor.execute("query-named-block-nodes", flat=True)}
        assert nodes.keys() == {"disk0", "disk0-file"}
        # The first sample may be of the shell that becomes QEMU; one of the next is QEMU's own.
        while vm.peak_own_bytes < 4 << 20:
            time.sleep(0.01)
        assert vm.spare_qmp_path.exists()
        vm.monitor.execute("quit")
        assert vm.wait(120).returncode == 0
    assert not vm.directory.exists()
    assert (tmp_path / "console").exists()


@pytest.mark.integration
def test_a_machine_that_cannot_start_leaves_nothing(tmp_path):
    vm = VirtualMachine(find_qemu(), MachineConfig([], extra=["-device", "no-such-device"]))
    with pytest.raises(QemuCrashed, match="'no-such-device' is not a valid device model name"), vm:
        pass
    assert not vm.directory.exists()
