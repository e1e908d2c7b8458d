import subprocess
from pathlib import Path

from chainlift.host.filesystem import free_bytes, place_of


def findmnt(path, column):
    return subprocess.run(
        ["findmnt", "-n", "-o", column, "-T", path], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_place_is_what_findmnt_says(tmp_path):
    place = place_of(tmp_path)
    assert place.file_system == findmnt(tmp_path, "FSTYPE")
    assert place.mount_point == findmnt(tmp_path, "TARGET")
    assert place.device_number == tmp_path.stat().st_dev


def test_another_file_system_is_another_place():
    assert place_of(Path("/proc/self/status")).file_system == "proc"
    assert str(place_of(Path("/proc"))) == "proc on proc"


def test_free_space_is_found_above_a_directory_that_is_not_there_yet(tmp_path):
    assert free_bytes(tmp_path / "a/b/c") > 0
