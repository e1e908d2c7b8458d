import re
import subprocess

import pytest

from chainlift.guest.initramfs import Initramfs


@pytest.mark.needs("cpio")
def test_cpio_reads_what_we_write(tmp_path):
    image = Initramfs().file("init", b"#!/bin/sh\n", executable=True).symlink("lib64/ld.so", "/lib/ld.so")
    image.file("usr/share/odd length", b"x" * 4097).character_device("dev/console", 5, 1)
    size = image.write(tmp_path / "image")
    assert size == (tmp_path / "image").stat().st_size
    listing = subprocess.run(["cpio", "-tv"], stdin=(tmp_path / "image").open("rb"), capture_output=True, text=True)
    assert listing.returncode == 0
    # Mode, links, owner, group, size, three of a date, name; a device has "major, minor" for its size.
    rows = [re.sub(r", +", ",", line).split(maxsplit=8) for line in listing.stdout.splitlines()]
    lines = {row[8]: row for row in rows}
    assert lines["init"][0] == "-rwxr-xr-x"
    assert lines["usr/share/odd length"][4] == "4097"
    assert lines["lib64/ld.so -> /lib/ld.so"][0] == "lrwxrwxrwx"
    assert lines["dev/console"][4] == "5,1"
    order = list(lines)
    assert order.index("usr") < order.index("usr/share") < order.index("usr/share/odd length")


def test_the_same_files_make_the_same_archive(tmp_path):
    for name in ("one", "two"):
        Initramfs().file("a/b", b"data").write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
