"""Broken and moved chains: what is intact is shown, and what mends them does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.json_schemas import valid

from chainlift.chain import ChainPolicy
from chainlift.chain.broken import inspect_chain
from chainlift.errors import ImageError, PolicyError
from chainlift.qcow2.writer import write_image

MIB = 1 << 20
K64 = 65536


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Five layers, of which each has a cluster that can be seen; the working directory is theirs."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    backing = {}
    for number in range(5):
        data = bytes([65 + number]) * K64
        write_image(place / str(number), virtual_size=MIB, clusters=[number], data=data, **backing)
        backing = {"backing_file": str(number), "backing_format": "qcow2"}
    return place


def inspect(*words):
    done = subprocess.run([sys.executable, "-m", "chainlift", "inspect", *words], capture_output=True, text=True)
    assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
    return done


def broken_in(image, **how):
    summary, trouble = inspect_chain(str(image), ChainPolicy(**how))
    assert trouble is not None
    assert len(summary.layers) == trouble[0].depth
    return trouble[0]


def mend(broken):
    subprocess.run(broken.mend, shell=True, check=True, capture_output=True)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_what_lies_above_a_missing_layer_is_shown(chain, depth):
    (chain / str(4 - depth)).unlink()
    done = inspect("4")
    assert done.returncode == 2
    missing, above = str(4 - depth), str(5 - depth)
    assert done.stderr == (
        f"chainlift: {missing}: cannot be opened: No such file or directory; it is the backing file of {above}\n"
    )
    table = done.stdout.partition("frees\n")[2]
    listed = [line.split()[1] for line in table.splitlines() if line[:11].strip().isdecimal()]
    assert listed == [str(4 - number) for number in range(depth)]
    assert f"x layer {depth}: {missing}: cannot be opened: No such file or directory" in done.stdout
    assert f"{above} names it as '{missing}' (qcow2)" in done.stdout
    assert f"qemu-img rebase -u -F qcow2 -b FOUND {above}" in done.stdout


def test_the_json_says_where_it_ends(chain):
    assert valid("inspect", inspect("--json", "4").stdout)["broken"] is None
    (chain / "1").unlink()
    done = inspect("--json", "4")
    said = valid("inspect", done.stdout)
    assert done.returncode == 2
    assert [layer["visible_bytes"] for layer in said["layers"]] == [K64] * 3
    assert said["broken"]["depth"] == 3
    assert (said["broken"]["path"], said["broken"]["named_by"]) == ("1", "2")
    assert (said["broken"]["backing_name"], said["broken"]["mend"]) == ("1", None)


def test_an_image_that_is_not_there_is_an_error_like_any_other(chain):
    done = inspect("5")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.integration
@pytest.mark.parametrize("name", ["moved", "with 'quotes' and $(words)", "co:lon"])
def test_a_moved_chain_with_absolute_names_is_mended_step_by_step(tmp_path, monkeypatch, name):
    old, new = tmp_path / "old", tmp_path / name
    for directory in (old, old / "base"):
        directory.mkdir()
    backing = {}
    for layer in ("base/0:base", "1", "2:top"):
        write_image(old / layer, virtual_size=MIB, clusters=[0], data=layer[:1].encode() * K64, **backing)
        backing = {"backing_file": str(old / layer), "backing_format": "qcow2"}
    old.rename(new)
    monkeypatch.chdir(new)
    for image, depth, found in (("2:top", 1, "./1"), ("2:top", 2, "base/0:base")):
        broken = broken_in(image)
        assert broken.depth == depth
        assert Path(found).samefile(broken.found)
        mend(broken)
    assert inspect_chain("2:top")[1] is None
    assert subprocess.run(["qemu-img", "compare", "-q", "./2:top", "./2:top"]).returncode == 0


def test_what_lies_beside_and_is_something_else_is_not_proposed(chain):
    write_image(
        chain / "x", virtual_size=MIB, clusters=[5], data=b"x" * K64, backing_file="/gone/1", backing_format="qcow2"
    )
    assert broken_in("x").found == "1"
    (chain / "1").write_text("no image")
    assert broken_in("x").found is None
    shutil.rmtree(chain / "1", ignore_errors=True)
    (chain / "1").unlink()
    (chain / "1").symlink_to("x")  # a layer that the chain has already
    assert broken_in("x").found is None
    (chain / "1").unlink()
    os.mkfifo(chain / "1")
    assert broken_in("x").found is None


def test_a_place_that_is_not_allowed_is_not_searched(chain, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    write_image(tmp_path / "elsewhere/1", virtual_size=MIB)
    (chain / "1").unlink()
    (chain / "1").symlink_to(tmp_path / "elsewhere/1")
    broken = broken_in("4", within=(chain,))
    assert (broken.found, broken.mend) == (None, None)
    assert "outside the directories" in broken.what


def test_a_layer_with_a_malformed_table_is_named(chain):
    with (chain / "2").open("r+b") as file:
        file.seek(40)
        (table,) = (int.from_bytes(file.read(8), "big"),)
        file.seek(table)
        file.write((1 << 62 | 512).to_bytes(8, "big"))
    broken = broken_in("4")
    assert (broken.depth, broken.named_by) == (2, "3")
    assert "not aligned" in broken.what
    assert "qemu-img check 2" in broken.advice
    with (chain / "4").open("r+b") as file:
        file.write(b"nothing")
    with pytest.raises(ImageError):
        inspect_chain("4", format="qcow2")


def test_names_that_lead_elsewhere_end_a_chain(chain):
    write_image(chain / "net", virtual_size=MIB, backing_file="nbd://host/x", backing_format="qcow2")
    broken = broken_in("net")
    assert (broken.depth, broken.backing_name) == (1, "nbd://host/x")
    assert "protocol" in broken.what
    write_image(chain / "loop", virtual_size=MIB, backing_file="loop", backing_format="qcow2")
    assert "loop" in broken_in("loop").what
    assert broken_in("4", max_depth=2).depth == 3
    with pytest.raises(PolicyError):
        inspect_chain("nbd://host/x")


def test_a_name_that_overrides_is_not_mended_in_a_header(chain):
    there = {"driver": "qcow2", "file": {"driver": "file", "filename": "4"}}
    gone = {"driver": "qcow2", "file": {"driver": "file", "filename": "/gone/1"}}
    broken = broken_in("json:" + json.dumps({**there, "backing": gone}))
    assert (broken.found, broken.mend) == ("1", None)
    assert "json:" in broken.advice


@pytest.mark.integration
@pytest.mark.parametrize("verb", ["index", "squash"])
def test_a_lift_whose_files_are_gone_is_named(chain, verb):
    subprocess.run([sys.executable, "-m", "chainlift", verb, "4"], check=True, capture_output=True)
    (chain / "4.lift").rename(chain / "away")
    broken = broken_in("4")
    assert broken.depth == 1
    assert "belongs to the lift of 4" in broken.advice
    assert "chainlift restore 4" in broken.advice
    (chain / "away").rename(chain / "4.lift")
    # A layer under the lift.
    (chain / "1").rename(chain / "away")
    if verb == "index":
        broken = broken_in("4")
        assert (broken.depth, Path(broken.path).name) == (1, "1")
        assert "through the index" in broken.advice
