"""What a backing name means, as the options of a node that stock QEMU opens."""

import json
import subprocess

import pytest

from chainlift.errors import PolicyError
from chainlift.lift.target import backing_target
from chainlift.qcow2.writer import write_image

CLUSTER = 65536


def read_first(options):
    """The first bytes through stock QEMU."""
    done = subprocess.run(
        ["qemu-img", "dd", "bs=512", "count=1", "-O", "raw", f"if=json:{json.dumps(options)}", "of=out"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open("out", "rb") as file:  # noqa: PTH123
        return file.read(1)


@pytest.fixture
def place(tmp_path, monkeypatch):
    directory = tmp_path / "d"
    directory.mkdir()
    (directory / "base").write_bytes(b"r" * CLUSTER)
    write_image(
        directory / "layer", virtual_size=CLUSTER, backing_file="base", backing_format="raw", clusters=[0],
        data=b"q" * CLUSTER,
    )  # fmt: skip
    write_image(directory / "top", virtual_size=CLUSTER, backing_file="layer", backing_format="qcow2")
    monkeypatch.chdir(tmp_path)
    return directory


@pytest.mark.integration
def test_every_way_to_name_a_file(place):
    image = place / "active"

    def named(options):
        return "json:" + json.dumps(options)

    for pointer, pointer_format, expected in [
        ("base", "raw", b"r"),
        ("base", None, b"r"),
        ("layer", "raw", b"Q"),
        ("layer", "qcow2", b"q"),
        ("layer", None, b"q"),
        ("top", "qcow2", b"q"),
        ("./top", None, b"q"),
        (str(place / "top"), "qcow2", b"q"),
        ("file:d/top", "qcow2", b"q"),  # relative to the working directory
        (named({"driver": "qcow2", "file": {"driver": "file", "filename": "d/top"}}), None, b"q"),
        (named({"driver": "raw", "file": {"driver": "file", "filename": "d/top"}}), "qcow2", b"q"),
        (named({"file": {"filename": "d/top"}}), None, b"q"),
        (named({"file.filename": "d/base", "file.driver": "file"}), None, b"r"),
        (named({"driver": "file", "filename": "d/base"}), "raw", b"r"),
        (named({"driver": "qcow2", "file.filename": "d/top", "backing": None}), "qcow2", b"\0"),
        (named({"driver": "qcow2", "file.filename": "d/top", "backing.file.filename": "d/base"}), "qcow2", b"r"),
    ]:
        target = backing_target(image, pointer, pointer_format)
        assert target.pointer == pointer
        assert target.options["read-only"] is True
        assert read_first(target.options) == expected, (pointer, target.options)
        _has_drivers(target.options)


def _has_drivers(options):
    """``blockdev-add`` looks at nothing by itself."""
    assert options["driver"]
    for key in ("file", "backing"):
        if options.get(key) is not None:
            _has_drivers(options[key])


def test_what_is_no_local_file_is_refused(tmp_path):
    for pointer in ("nbd://host/x", "a:b.qcow2", 'json:{"driver":"nbd","host":"x"}'):
        with pytest.raises(PolicyError):
            backing_target(tmp_path / "active", pointer, "raw")
