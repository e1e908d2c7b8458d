from pathlib import Path

import pytest

from chainlift.errors import InputError
from chainlift.guest.own import OwnImage
from chainlift.guest.ssh import SshLogin
from chainlift.qemu.binary import Qemu
from chainlift.study.build import _guest_kind
from chainlift.study.plan_tables import GuestPlan

QEMU = Qemu("none", None, None, None, None, (9, 0, 0), "9.0.0", "path")


def test_a_plans_guest_options_reach_an_own_image(tmp_path):
    image, key = tmp_path / "own.raw", tmp_path / "key"
    image.touch()
    key.touch(mode=0o600)
    plan = GuestPlan(kind=str(image), ssh_key=str(key), ssh_user="ubuntu", ssh_port=2222, directory="/srv")
    kind = _guest_kind(plan, QEMU, "kvm")
    assert kind == OwnImage(image, QEMU, accelerator="kvm", login=SshLogin(key, "ubuntu", 2222), work="/srv")
    kernel = GuestPlan(kind=str(image), kernel="/bin/sh", initrd="/bin/ls", append="quiet")
    assert _guest_kind(kernel, QEMU).prepare().kernel == Path("/bin/sh")


def test_a_guest_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"there is no guest 'none.qcow2' and no image of that name"):
        _guest_kind(GuestPlan(kind="none.qcow2"), QEMU)
