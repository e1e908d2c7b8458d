"""The map's holes: asked of the file system, which answers by what is in the page cache too."""

import os
import subprocess

import numpy as np
import pytest
from tests.support.need import missing

from chainlift import open_chain
from chainlift.chain.extents import map_chain, map_json
from chainlift.chain.summarize import summarize

KIB = 1 << 10
MIB = 1 << 20


def holes(path):
    return [(start, stop - start) for start, stop, is_hole in pieces(path) if is_hole]


def pieces(path):
    """What the file system says of a file: (begin, end, is a hole)."""
    with path.open("rb") as stream:
        size, position = os.fstat(stream.fileno()).st_size, 0
        while position < size:
            is_hole = position == os.lseek(stream.fileno(), position, os.SEEK_HOLE)
            try:
                stop = os.lseek(stream.fileno(), position, os.SEEK_DATA if is_hole else os.SEEK_HOLE)
            except OSError:  # only a hole is left
                stop = size
            yield position, stop, is_hole
            position = stop


@pytest.mark.integration
def test_looking_at_an_image_turns_no_hole_into_data(tmp_path):
    path = tmp_path / "image"
    options = "preallocation=falloc,cluster_size=4k"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "480k"], check=True)
    subprocess.run(["qemu-img", "resize", "-q", "-f", "qcow2", "--preallocation=metadata", path, "2M"], check=True)
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = holes(path)
    if not before:
        missing("holes")
    with open_chain(path) as chain:
        first = "".join(map_json(chain))
        summarize(chain)
        assert "".join(map_json(chain)) == first
    assert holes(path) == before
    # The extents that were set aside and never written are what is asked about here.
    assert '"zero": true, "data": true' in first


def test_a_raw_file_with_many_holes_is_split_where_the_file_system_says(tmp_path):
    path = tmp_path / "raw"
    rng = np.random.default_rng(7)
    with path.open("wb") as stream:
        for place in np.sort(rng.choice(512, 100, replace=False)).tolist():
            stream.seek(place * 16 * KIB)
            stream.write(b"x" * 4 * KIB)
        stream.truncate(8 * MIB)
        os.fsync(stream.fileno())
    expected = [(begin, stop - begin, is_hole) for begin, stop, is_hole in pieces(path)]
    with open_chain(path, format="raw") as chain:
        found = [
            row
            for entries in map_chain(chain)
            for row in zip(entries.start.tolist(), entries.length.tolist(), entries.zero.tolist(), strict=True)
        ]
    assert found == expected


@pytest.mark.integration
def test_a_zeroed_first_cluster_of_an_external_data_file_has_no_place(tmp_path, qemu_img):
    path = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, MIB)
    commands = ("-c", "write -P 3 0 128k", "-c", "write -z 0 128k")
    subprocess.run(["qemu-io", *commands, path], check=True, capture_output=True)
    theirs = subprocess.run(["qemu-img", "map", "--output=json", path], check=True, capture_output=True, text=True)
    with open_chain(path) as chain:
        assert "".join(map_json(chain, with_compressed='"compressed"' in theirs.stdout)) == theirs.stdout
