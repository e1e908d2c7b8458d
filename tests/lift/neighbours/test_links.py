import pytest

from chainlift.lift.neighbours.links import reached_by_link


@pytest.fixture
def image(tmp_path):
    for name in ("pool", "store"):
        (tmp_path / name).mkdir()
    path = tmp_path / "pool/disk"
    path.touch()
    return path


def test_an_image_with_one_name_is_reached_by_no_link(image):
    (image.parent / "beside").symlink_to("disk")  # the same relative names are right from there
    assert reached_by_link(image) is None
    assert reached_by_link(image.parent / "beside") is None


@pytest.mark.parametrize("place", [".", "store"])
def test_a_symbolic_link_from_another_directory_is_seen(image, tmp_path, place):
    link = tmp_path / place / "link"
    link.symlink_to(image)
    assert reached_by_link(image) == link
    assert reached_by_link(link) == link


def test_a_hard_link_anywhere_is_seen(image, tmp_path):
    (tmp_path / "store/other").hardlink_to(image)
    assert reached_by_link(image) == image


def test_a_directory_that_may_not_be_searched_says_nothing(image, tmp_path):
    (tmp_path / "store/loop").symlink_to("loop")
    assert reached_by_link(image) is None
