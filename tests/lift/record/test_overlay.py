import shutil

import pytest
from tests.support.mounts import mount, unmount
from tests.support.need import missing

from chainlift.errors import InputError
from chainlift.lift.record.overlay import OverlayMark, read_overlay_mark, write_overlay_mark

MARK = OverlayMark("copy", "01234567-89ab-cdef-0123-456789abcdef", "vda", "/srv/squash.qcow2")


def test_a_mark_belongs_to_the_file_and_not_to_its_name(tmp_path):
    image, other = tmp_path / "disk.lift1", tmp_path / "disk.lift2"
    image.write_bytes(b"x")
    assert read_overlay_mark(image) is None
    write_overlay_mark(image, MARK)
    assert read_overlay_mark(image) == MARK
    assert image.rename(other) == other
    assert read_overlay_mark(other) == MARK
    # A copy is nobody's, though it has all attributes.
    shutil.copy2(other, image)
    assert read_overlay_mark(image) is None
    assert read_overlay_mark(tmp_path / "nowhere") is None


@pytest.mark.needs("mount")
def test_where_there_are_no_attributes_it_is_refused(tmp_path):
    if failed := mount(tmp_path, "-t", "ramfs", "none"):
        missing("mount", failed)
    try:
        image = tmp_path / "disk.lift1"
        image.write_bytes(b"x")
        with pytest.raises(InputError, match="keeps no extended attributes"):
            write_overlay_mark(image, MARK)
    finally:
        unmount(tmp_path)
