"""`chainlift survey`: what it shows, what it keeps, and what it leaves out."""

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.chains import plain_chain
from tests.support.children import wait_for_children
from tests.support.hostile import endless_image
from tests.support.json_schemas import valid

from chainlift.cli.main import main
from chainlift.cost.store import keep, nearest_shipped
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.results.survey.store import read_survey


@pytest.fixture(autouse=True)
def settled(monkeypatch, tmp_path_factory):
    """A host that was calibrated, so that its speed need not be measured for a second each time."""
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    version = find_qemu(need=()).version_text
    keep(replace(nearest_shipped(version), qemu=version, origin="calibrated"))


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    plain_chain(place / "short", 1)
    plain_chain(place / "long", 9)
    plain_chain(place / "broken", 2)
    (place / "broken/layer0.qcow2").unlink()
    for number in range(2):
        options = {"backing_file": "long/layer0.qcow2", "backing_format": "qcow2"}
        write_image(place / f"clone{number}.qcow2", virtual_size=4 << 20, **options)
    return place


@pytest.fixture
def survey(monkeypatch, capsys):
    def run(*words, status=0):
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit) as ended:
            main(["survey", "--no-libvirt", *map(str, words)])
        said = capsys.readouterr()
        assert ended.value.code == status, said.err
        return said

    return run


def test_what_it_shows(place, survey):
    out = survey(place).out
    assert "16 images in 5 chains" in out
    assert "0 in use, 1 broken" in out
    assert "long/layer0.qcow2: 3 chains" in out
    assert f"    chainlift index {place}/long/layer9.qcow2\n" in out
    assert "No such file" in " ".join(out.split())  # wrapped where the path ends
    assert all(len(line) <= 100 for line in out.splitlines() if str(place) not in line)


@pytest.mark.integration
@pytest.mark.parametrize(("words", "verb", "length"), [([], "index", 1), (["--policy", "--keep-last 2"], "prune", 3)])
def test_the_command_works_as_it_is_pasted(tmp_path, survey, words, verb, length):
    image = plain_chain(tmp_path / "it's a place", 9)
    lines = survey(image.parent, *words).out.splitlines()
    (command,) = [line.strip() for line in lines if line.startswith("    chainlift ")]
    assert command.startswith(f"chainlift {verb} ")
    program = f"{shlex.quote(sys.executable)} -m chainlift"
    done = subprocess.run(command.replace("chainlift", program, 1), shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _, chain, _ = [json.loads(line) for line in survey(image.parent, *words, "--json", "-").out.splitlines()]
    assert (chain["path"], chain["length"], "advice" in chain) == (str(image), length, False)


def test_each_line_is_of_the_schema(place, survey, tmp_path):
    lines = survey(place, "--json", "-", "--policy", "--keep-last 1").out.splitlines()
    kinds = [valid("survey", line)["kind"] for line in lines]
    assert kinds == ["survey", *["chain"] * 5, "end"]
    survey(place, "--json", tmp_path / "s.jsonl", "--policy", "--keep-last 1")
    kept = read_survey(tmp_path / "s.jsonl")
    assert {one.path for one in kept.chains} == {json.loads(line)["path"] for line in lines[1:-1]}
    assert "is complete" in survey(place, "--json", tmp_path / "s.jsonl", status=2).err


def test_an_interrupted_one_goes_on(place, survey, tmp_path):
    lines = tmp_path / "s.jsonl"
    survey(place, "--json", lines)
    before = lines.read_text().splitlines(keepends=True)
    lines.write_text("".join(before[:3]) + before[3][:50])
    write_image(place / "new.qcow2", virtual_size=1 << 20)
    survey(place, "--json", lines)
    after = lines.read_text().splitlines(keepends=True)
    assert after[:3] == before[:3]
    assert [json.loads(line)["kind"] for line in after[3:]] == ["survey", *["chain"] * 4, "end"]
    assert len(read_survey(lines).chains) == 6


def test_what_is_left_out_is_said_and_is_status_1(place, survey, tmp_path):
    endless_image(place / "endless.qcow2")
    (place / "bad.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 200)
    said = survey(place, tmp_path / "nowhere", "--timeout", "1", status=1)
    words = " ".join(said.out.split())
    assert "endless.qcow2: took longer than 1.00 s" in words
    assert "bad.qcow2: " in words
    assert f"{tmp_path}/nowhere: cannot be searched: No such file or directory" in words
    assert "3 things could not be looked at" in said.err
    assert "17 images in 5 chains" in said.out


def test_bad_use(survey, tmp_path):
    assert "Missing argument 'PATH...'" in survey(status=2).err
    assert "the policy keeps nothing" in survey(tmp_path, "--policy", "", status=2).err
    assert "is no survey" in survey(tmp_path, "--before", __file__, status=2).err
    assert "--json goes with a PATH" in survey("--before", "x", "--json", "y", status=2).err


def test_a_calibration_that_cannot_be_read_leaves_the_costs_out(place, survey, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no QEMU: the newest calibration counts
    keep(nearest_shipped("7.2")).write_text("{}")
    said = survey(place)
    assert "no costs are predicted" in said.err
    assert f"    chainlift index {place}/long/layer9.qcow2\n" in said.out


def test_days_side_by_side(place, survey, tmp_path):
    survey(place, "--json", tmp_path / "1")
    first = (tmp_path / "1").read_text().splitlines(keepends=True)
    head = json.loads(first[0])
    head["started_at"] = "2025-01-01T00:00:00Z"
    (tmp_path / "1").write_text(json.dumps(head) + "\n" + "".join(first[1:]))
    (place / "clone1.qcow2").unlink()
    write_image(place / "new.qcow2", virtual_size=1 << 20)
    out = survey(place, "--before", tmp_path / "1").out
    assert "since the survey before: 1 new, 1 gone" in out


@pytest.mark.needs("fleet")
def test_a_table_for_data_frames(place, survey, tmp_path):
    import pyarrow.parquet as pq

    survey(place, "--parquet", tmp_path / "s.parquet", "--policy", "--keep-last 1")
    table = pq.read_table(tmp_path / "s.parquet")
    rows = {os.path.relpath(row["path"], place): row for row in table.to_pylist()}
    assert len(rows) == 5
    long = rows["long/layer9.qcow2"]
    assert (long["length"], long["advice_verb"]) == (9, "prune")
    assert long["cost_read_4k_cpu_s"] > long["advice_cost_read_4k_cpu_s"] > 0
    assert rows["broken/layer2.qcow2"]["cost_read_4k_cpu_s"] is None
    assert long["modified_at"].tzinfo is not None
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".new")]


@pytest.mark.interrupts
def test_a_signal_ends_it_and_the_same_command_goes_on(place, survey, tmp_path):
    endless_image(place / "long/z.qcow2")
    lines = tmp_path / "s.jsonl"
    words = ["survey", place, "--no-libvirt", "--json", lines, "--jobs", "1"]
    with subprocess.Popen([sys.executable, "-m", "chainlift", *words], stderr=subprocess.PIPE, text=True) as process:
        while not lines.exists() or '"chain"' not in lines.read_text():
            time.sleep(0.01)
        (child,) = wait_for_children(process.pid)
        process.terminate()
        _, said = process.communicate()
    assert process.returncode == 143
    assert said.endswith("chainlift: interrupted\n")
    assert not Path(f"/proc/{child}").exists()
    done = read_survey(lines)
    assert done.end is None
    (place / "long/z.qcow2").unlink()
    survey(place, "--json", lines)
    assert len(read_survey(lines).chains) == 5
    text = lines.read_text()
    assert all(text.count(f'"path":"{chain.path}"') == 1 for chain in done.chains)


def test_a_fleets_ranking_says_which_host(place, survey, tmp_path):
    survey(place, "--json", tmp_path / "1")
    other = (tmp_path / "1").read_text().replace('"host":"', '"host":"other-')
    (tmp_path / "2").write_text(other)
    out = survey("--before", tmp_path / "1", "--before", tmp_path / "2").out
    assert out.count("chainlift index ") == 2
    assert "    on other-" in out
