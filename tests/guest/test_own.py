"""A person's own image. What needs a whole distribution in it is for `script/test --long`."""

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support import bootable

from chainlift.errors import GuestError, InputError, MissingToolError, PolicyError
from chainlift.guest import own
from chainlift.guest.boot import boot
from chainlift.guest.catalog import guest_kind
from chainlift.guest.interface import Guest, GuestKind
from chainlift.guest.micro import MicroGuest
from chainlift.guest.ssh import SshGuest, SshLogin
from chainlift.qemu.binary import Qemu
from chainlift.qemu.find import find_qemu
from chainlift.qemu.machine import Disk

NO_QEMU = Qemu("none", None, None, None, None, (9, 0, 0), "9.0.0", "path")


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "own.raw"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    return path


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.touch(mode=0o600)
    return path


def test_an_image_is_a_kind_of_guest_named_by_its_path(image):
    kind = guest_kind(str(image), NO_QEMU)
    assert isinstance(kind, GuestKind)
    assert kind.name == str(image)
    assert kind.prepare().kernel is None
    assert kind.prepare().forward_guest_port is None


def test_a_login_forwards_the_guests_ssh_port(image, key):
    kind = guest_kind(str(image), NO_QEMU, ssh_key=key, ssh_user="ubuntu", ssh_port=2222)
    assert kind.login == SshLogin(key, "ubuntu", 2222)
    assert kind.prepare().forward_guest_port == 2222


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"append": "quiet"}, InputError, "without a kernel"),
        ({"initrd": Path("/bin/sh")}, InputError, "without a kernel"),
        ({"kernel": Path("/none")}, InputError, "/none: no such file"),
        ({"kernel": Path("/")}, InputError, "/: is not a regular file"),
        ({"kernel": Path("/bin/sh"), "firmware": "uefi"}, InputError, "not both"),
        ({"directory": "srv"}, InputError, "not the absolute path"),
        ({"suite": "trixie"}, InputError, "suite is for the guests micro and debian"),
        ({"ssh_key": Path("/none")}, InputError, "/none: the SSH key cannot be read"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(image, options, error, text):
    with pytest.raises(error, match=text):
        guest_kind(str(image), NO_QEMU, **options)


def test_an_option_for_images_is_refused_for_the_other_guests():
    for name in ("micro", "debian"):
        with pytest.raises(InputError, match=f"ssh_key is for an image of your own, not for '{name}'"):
            guest_kind(name, NO_QEMU, ssh_key=Path("key"))


def test_a_key_that_others_may_read_is_refused_as_ssh_would(image, key):
    key.chmod(0o644)
    with pytest.raises(InputError, match=r"others may read this SSH key.*chmod 600 it"):
        guest_kind(str(image), NO_QEMU, ssh_key=key)


def test_uefi_without_its_firmware_names_the_package(image, monkeypatch):
    monkeypatch.setattr(own, "_UEFI", (Path("/none"),))
    with pytest.raises(MissingToolError, match="install the package ovmf"):
        guest_kind(str(image), NO_QEMU, firmware="uefi")


def test_an_image_that_is_larger_than_the_studys_disk_is_refused(image, tmp_path):
    with pytest.raises(InputError, match=r"is a disk of 64.0 MiB, the study's is one of 32.0 MiB.*make chain.size"):
        guest_kind(str(image), NO_QEMU).make_disk(tmp_path / "disk", 32 << 20)


@pytest.mark.integration
def test_an_image_that_is_no_clean_chain_is_refused_and_nothing_is_left_behind(tmp_path):
    for number, backing in enumerate(("nbd://somewhere/x", "missing.qcow2")):
        image = tmp_path / f"{number}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", "raw", image, "64M"])
        with pytest.raises((PolicyError, InputError), match=r"nbd|missing.qcow2"):
            guest_kind(str(image), NO_QEMU).make_disk(tmp_path / "disk", 64 << 20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.qcow2", "1.qcow2"]


@pytest.mark.integration
def test_the_image_is_copied_and_grown_and_stays_as_it_is(image, tmp_path):
    image.write_bytes(os.urandom(1 << 20) + bytes(63 << 20))
    before = image.read_bytes()
    disk = tmp_path / "disk"
    guest_kind(str(image), find_qemu()).make_disk(disk, 128 << 20)
    assert image.read_bytes() == before
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
    assert raw.read_bytes() == before + bytes(64 << 20)


@pytest.mark.integration
def test_an_image_that_does_not_boot_or_has_no_agent_is_said_to_have_none(image):
    kind = guest_kind(str(image), find_qemu())
    with (
        pytest.raises(InputError, match=r"own.raw: no guest agent was started in this image.*install qemu-guest-agent"),
        boot(kind, find_qemu(), Disk(image, format="raw"), accelerator="tcg", deadline_s=3),
    ):
        pass


@pytest.mark.integration
@pytest.mark.parametrize(
    ("fio", "text"), [(True, r"/work is on \w+, not on its disk"), (False, "the guest has no fio")]
)
def test_a_guest_that_cannot_be_measured_is_told_from_one_that_can(tmp_path, fio, text):
    """The micro guest's kernel on a disk of our own: it has an agent and lives in memory."""
    micro = MicroGuest(fio=fio).prepare()
    image = tmp_path / "own.raw"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    options = {"kernel": micro.kernel, "initrd": micro.initrd, "append": micro.append, "directory": "/work"}
    kind = guest_kind(str(image), find_qemu(), **options)
    with pytest.raises(InputError, match=text):
        kind.make_disk(tmp_path / "disk", 64 << 20, data_bytes=1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["own.raw"]


def test_a_server_that_never_answers_is_an_error_with_ssh_and_console(key, tmp_path):
    vm = SimpleNamespace(
        directory=tmp_path,
        config=SimpleNamespace(forward_ports={1: 22}),
        process=SimpleNamespace(running=True),
        console_tail=lambda: "login:",
    )
    with pytest.raises(
        GuestError, match=r"did not come up within 0.5 s \(ssh: .*[Cc]onnect.*\); its console ends: login:"
    ):
        SshGuest(vm, SshLogin(key)).connect(0.5)


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A stock Debian that boots by itself."""
    scratch = tmp_path_factory.mktemp("scratch")
    path = scratch.parent / "stock.raw"
    bootable.make_image(path, scratch)
    return path


def drive(kind, disk):
    """Do all that a study does with a guest."""
    with boot(kind, find_qemu(), Disk(disk), accelerator="tcg", deadline_s=600) as guest:
        assert isinstance(guest, Guest)
        result = guest.run("echo out; echo err >&2; exit 3")
        assert (result.status, result.stdout) == (3, "out\n")
        assert result.stderr.endswith("err\n")
        assert guest.run("kill -9 $$").status == 137
        assert guest.run("id -u").stdout == "0\n"
        with pytest.raises(GuestError, match=r"'sleep 60' was not done after 0.5 s"):
            guest.run("sleep 60", timeout_s=0.5)
        work = guest.work_directory()
        job = "--rw=randrw --bs=16k --size=16m --io_size=1m --direct=1 --ioengine=libaio"
        guest.run(f"fio --name=fio --directory={work} {job}", 120).require()
        guest.run("sync").require()
        assert guest.freeze() == 1
        assert guest.thaw() == 1
        guest.run(f"echo kept > {work}/kept").require()
        said = guest.run("ls -d /sys/firmware/efi; cat /proc/cmdline").stdout
        assert guest.halt(300).returncode == 0
    return said


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_stock_image_is_grown_and_driven_by_its_agent_and_over_ssh(stock, tmp_path):
    qemu, disk, key = find_qemu(), tmp_path / "disk", bootable.make_key()
    by_agent = guest_kind(str(stock), qemu)
    # More than its partition has room for.
    by_agent.make_disk(disk, 4 << 30, data_bytes=1 << 30)
    assert "root=/dev/sda2" in drive(by_agent, disk)
    for user in ("root", "somebody"):
        drive(guest_kind(str(stock), qemu, ssh_key=key, ssh_user=user), disk)
    assert "/sys/firmware/efi" in drive(guest_kind(str(stock), qemu, firmware="uefi"), disk)


@pytest.mark.integration
@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_key_that_the_guest_does_not_know_is_refused(stock, tmp_path):
    other = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    kind = guest_kind(str(stock), find_qemu(), ssh_key=other)
    disk = tmp_path / "disk"
    kind.make_disk(disk, 2 << 30)
    with (
        pytest.raises(InputError, match=r"lets nobody in as root with this key: .*Permission denied"),
        boot(kind, find_qemu(), Disk(disk), accelerator="tcg", deadline_s=600),
    ):
        pass
