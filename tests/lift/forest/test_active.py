"""Which images a program lifts that lifts all disks of a directory."""

import pytest
from tests.support.chains import plain_chain
from tests.support.lifts import lift_index, lift_squash
from tests.support.stock import create

from chainlift.errors import ImageError
from chainlift.lift.forest.active import active_layers

pytestmark = pytest.mark.integration


def test_active_layers_are_those_that_nobody_stands_on_before_and_after_a_lift(tmp_path, host_qemu):
    (tmp_path / "b").mkdir()
    one, other = plain_chain(tmp_path / "a"), plain_chain(tmp_path / "b/deep")
    alone = create(tmp_path / "b/clone.qcow2", tmp_path / "b/deep/layer0.qcow2")
    (tmp_path / "b/text.qcow2").write_text("no image")
    wanted = [one, alone, other]
    assert active_layers([tmp_path]) == active_layers(tmp_path) == active_layers(str(tmp_path)) == wanted
    assert active_layers([tmp_path / "b/deep", tmp_path / "a"]) == [one, other]
    lift_index(one, host_qemu)
    lift_squash(other, host_qemu)
    assert active_layers([tmp_path]) == wanted
    with pytest.raises(ImageError, match="is no directory"):
        active_layers([tmp_path / "nowhere"])
