"""The verb `inspect`, as a person runs it."""

import os
import subprocess
import sys

import pytest
from tests.support.json_schemas import valid

from chainlift.qcow2.writer import write_image

MIB = 1 << 20


def inspect(*arguments, columns=80, encoding="utf-8"):
    environment = {**os.environ, "COLUMNS": str(columns), "PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, "-m", "chainlift", "inspect", *map(str, arguments)],
        capture_output=True, encoding=encoding, env=environment, timeout=60,
    )  # fmt: skip


@pytest.fixture(scope="module")
def long_chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    for index in range(301):
        backing = {"backing_file": f"{index - 1}.qcow2", "backing_format": "qcow2"} if index else {}
        write_image(
            directory / f"{index}.qcow2", virtual_size=MIB, cluster_size=512, clusters=[index, index + 1], **backing
        )
    return directory / "300.qcow2"


@pytest.mark.parametrize("columns", [60, 80, 120, 160])
def test_a_long_chain_fits_the_terminal_and_a_screen(long_chain, columns):
    done = inspect(long_chain, columns=columns)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    # The first line may be longer by the name of the image, which is a temporary one here.
    assert max(len(line) for line in lines[1:] if str(long_chain.parent) not in line) <= max(columns, 80)
    assert len(lines) < (45 if columns >= 80 else 50)  # what is found is broken over more lines
    assert "300 layers over 0.qcow2" in lines[0]


def test_all_layers_are_listed_when_asked(long_chain):
    listed = inspect("--all", long_chain).stdout
    assert all(f" {index}.qcow2 " in listed for index in range(301))


def test_a_terminal_without_block_characters_gets_ascii(long_chain):
    done = inspect(long_chain, encoding="ascii")
    assert (done.returncode, done.stdout.isascii()) == (0, True)


def test_json_has_every_layer_and_adds_up(long_chain):
    whole = valid("inspect", inspect("--json", long_chain).stdout)
    assert len(whole["layers"]) == 301
    assert sum(layer["visible_bytes"] for layer in whole["layers"]) == 302 * 512 == whole["visible_bytes"]
    assert [layer["shadowed_clusters"] for layer in whole["layers"]] == [0.0] + [1.0] * 300
    assert sum(whole["answered_bytes"]) + sum(whole["unanswered_bytes"]) == MIB


def test_a_single_image_is_shown_too(tmp_path):
    write_image(tmp_path / "image", virtual_size=MIB, clusters=[0], data=b"x" * 65536)
    done = inspect(tmp_path / "image")
    assert done.returncode == 0
    assert "no backing file" in done.stdout


def test_what_is_no_image_is_one_line_and_status_two(tmp_path):
    done = inspect(tmp_path / "missing")
    assert (done.returncode, done.stdout, done.stderr) == (
        2, "", f"chainlift: {tmp_path}/missing: cannot be opened: No such file or directory\n"
    )  # fmt: skip


@pytest.mark.integration
def test_a_lifted_image_is_shown_as_what_it_is_and_mapped_as_qemu_maps_it(tmp_path):
    write_image(tmp_path / "0", virtual_size=MIB, clusters=[0, 1, 2], data=b"B" * 3 * 65536)
    write_image(tmp_path / "1", virtual_size=MIB, clusters=[1], data=None, backing_file="0", backing_format="qcow2")
    write_image(tmp_path / "2", virtual_size=MIB, clusters=[2], data=None, backing_file="1", backing_format="qcow2")
    chainlift = [sys.executable, "-m", "chainlift"]
    subprocess.run([*chainlift, "index", tmp_path / "2"], check=True, capture_output=True, timeout=60)
    shown = inspect(tmp_path / "2").stdout
    assert "layer 1: an index that points into 2 files" in shown
    assert "corrupt" not in shown
    theirs = subprocess.run(
        ["qemu-img", "map", "--output=json", tmp_path / "2"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    version = "8.2" if '"compressed"' in theirs else "7.2"
    ours = subprocess.run(
        [*chainlift, "map", "--json", "--as-qemu", version, tmp_path / "2"], capture_output=True, text=True, timeout=60
    )
    assert (ours.stdout, ours.stderr) == (theirs, "")
