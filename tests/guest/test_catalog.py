import pytest

from chainlift.errors import InputError
from chainlift.guest.catalog import guest_kind
from chainlift.guest.interface import GuestKind
from chainlift.qemu.binary import Qemu

QEMU = Qemu("none", None, None, None, None, (9, 0, 0), "9.0.0", "path")


@pytest.mark.parametrize("name", ["micro", "debian"])
def test_each_kind_has_the_name_that_a_plan_gives_it(name):
    kind = guest_kind(name, QEMU)
    assert isinstance(kind, GuestKind)
    assert kind.name == name


def test_another_name_is_refused():
    with pytest.raises(
        InputError, match="there is no guest 'macro' and no image of that name; give micro, debian or a path"
    ):
        guest_kind("macro", QEMU)
