"""The verb `map`, as a person runs it."""

import json
import subprocess
import sys

import pytest

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


@pytest.mark.integration
@pytest.mark.parametrize("options", [("--output=json",), ()])
def test_it_prints_what_qemu_img_map_prints(chain, options):
    theirs = subprocess.run(
        ["qemu-img", "map", *options, "top.qcow2"], capture_output=True, text=True, cwd=chain
    ).stdout
    version = "8.2" if '"compressed"' in theirs else "7.2"
    ours = chainlift("map", *(("--json", "--as-qemu", version) if options else ()), "top.qcow2", cwd=chain)
    assert (ours.stdout, ours.returncode) == (theirs, 0)


def test_json_says_which_clusters_are_compressed(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB, clusters=[1], data=b"B" * 65536, compress=True)
    entries = json.loads(chainlift("map", "--json", "image", cwd=tmp_path).stdout)
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
