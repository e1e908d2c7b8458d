"""What a program imports."""

import pytest
from tests.support.chains import plain_chain

import chainlift

pytestmark = pytest.mark.integration


def test_every_name_at_the_front_door_is_there():
    assert all(getattr(chainlift, name) is not None for name in chainlift.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lift_index'"):
        chainlift.lift_index  # noqa: B018


def test_a_disk_is_lifted_verified_and_restored(tmp_path):
    image = plain_chain(tmp_path / "chain", length=5)
    before = image.read_bytes()
    with chainlift.open_disk(image) as disk:
        assert chainlift.plan(disk, measure=False).length == 5
        assert chainlift.index(disk).manifest.extents > 1
        assert [lift.findings for lift in chainlift.verify(disk, content=True)] == [[]]
        assert chainlift.squash(disk, clean=True).manifest.kind == "squash"
        (found,) = chainlift.restore(disk, clean=True).found
    assert found.change.owner == image
    assert image.read_bytes()[:512] == before[:512]
    with pytest.raises(chainlift.ChainliftError, match="is not lifted"), chainlift.open_disk(image) as disk:
        chainlift.restore(disk)
