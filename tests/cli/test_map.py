"""The verb `map`, as a person runs it."""

import os
import subprocess
import sys

import pytest
from tests.support.json_schemas import valid

from chainlift.qcow2.writer import write_image

MIB = 1 << 20


def chainlift(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "chainlift", *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=60
    )


@pytest.fixture
def chain(tmp_path):
    write_image(tmp_path / "base.qcow2", virtual_size=MIB, clusters=[0, 1, 5], data=b"B" * 3 * 65536)
    write_image(
        tmp_path / "top.qcow2", virtual_size=2 * MIB, clusters=[1], data=b"T" * 65536, zero_clusters=[5],
        backing_file="base.qcow2", backing_format="qcow2",
    )  # fmt: skip
    return tmp_path


@pytest.fixture
def qemu_img(any_qemu):
    """Run the qemu-img of each QEMU; its version is an attribute."""

    def run(*arguments, cwd):
        command = any_qemu.command("img", *map(str, arguments))
        environment = {**os.environ, **any_qemu.environment}
        return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)

    run.version = ".".join(map(str, any_qemu.version[:2]))
    return run


@pytest.mark.integration
@pytest.mark.qemu(since=(6, 1))
def test_it_prints_what_qemu_img_map_prints(chain, qemu_img):
    theirs = qemu_img("map", "top.qcow2", cwd=chain)
    ours = chainlift("map", "top.qcow2", cwd=chain)
    assert (ours.stdout, ours.returncode) == (theirs.stdout, theirs.returncode)
    assert ours.stdout.count("\n") > 2


@pytest.mark.integration
@pytest.mark.qemu(since=(6, 1))
def test_json_is_the_text_of_the_release_that_is_asked_for(chain, qemu_img):
    with (chain / "base.raw").open("wb") as raw:
        raw.write(b"R" * 65536)
        raw.truncate(MIB)
    backing = {"backing_file": "base.raw", "backing_format": "raw"}
    write_image(chain / "0", virtual_size=MIB, clusters=[1, 4], data=b"B" * 2 * 65536, compress=True, **backing)
    for name, below in (("1", "0"), ("2", "1")):
        backing = {"backing_file": below, "backing_format": "qcow2"}
        cluster = int(name) * 3
        write_image(
            chain / name, virtual_size=2 * MIB, clusters=[cluster], data=name.encode() * 65536, zero_clusters=[15],
            zero_alloc_clusters=[14], **backing,
        )  # fmt: skip
    theirs = qemu_img("map", "--output=json", "2", cwd=chain).stdout
    assert {(entry["depth"], entry["data"]) for entry in valid("map", theirs)} >= {
        (0, True),
        (1, True),
        (2, True),
        (3, True),
    }
    assert chainlift("map", "--json", "--as-qemu", qemu_img.version, "2", cwd=chain).stdout == theirs
    if qemu_img.version in ("10.0", "11.1"):
        assert chainlift("map", "--json", "2", cwd=chain).stdout == theirs  # nothing said: today's form


def test_the_form_of_a_release_that_is_too_old_is_refused(chain):
    done = chainlift("map", "--json", "--as-qemu", "5.2", "top.qcow2", cwd=chain)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "6.1" in done.stderr


def test_json_says_which_clusters_are_compressed(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB, clusters=[1], data=b"B" * 65536, compress=True)
    entries = valid("map", chainlift("map", "--json", "image", cwd=tmp_path).stdout)
    assert [entry["compressed"] for entry in entries] == [False, True, False]
    assert "offset" not in entries[1]


def test_a_table_of_compressed_clusters_is_refused_as_qemu_refuses_it(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB, clusters=[1], data=b"B" * 65536, compress=True)
    done = chainlift("map", "image", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "use --json" in done.stderr


def test_a_file_outside_the_allowed_directories_is_refused_by_name(chain):
    (chain / "inside").mkdir()
    write_image(chain / "inside" / "top", virtual_size=MIB, backing_file="../base.qcow2", backing_format="qcow2")
    assert chainlift("map", "inside/top", cwd=chain).returncode == 0
    done = chainlift("map", "--within", "inside", "inside/top", cwd=chain)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "base.qcow2" in done.stderr
    assert "outside" in done.stderr
