"""The verbs `cost` and `calibrate`, the line in `inspect` and the columns in `plan`, as a person meets them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.support.json_schemas import valid

from chainlift.cost.store import calibration_file
from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import installed_version

MIB = 1 << 20


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chain")
    for number in range(41):
        below = {"backing_file": f"{number - 1}.qcow2", "backing_format": "qcow2"} if number else {}
        clusters = np.arange(64) if not number else [number]
        write_image(
            directory / f"{number}.qcow2", virtual_size=4 * MIB, clusters=clusters,
            data=b"D" * len(clusters) * 65536, **below,
        )  # fmt: skip
    return directory / "40.qcow2"


def call(cache, *words):
    environment = {**os.environ, "CHAINLIFT_CACHE": str(cache), "COLUMNS": "160"}
    argv = [sys.executable, "-m", "chainlift", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=120)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(cache):
    return lambda *words: call(cache, *words)


def test_figures_have_units_in_their_names_and_an_uncertainty_beside_them(run, chain):
    done = run("cost", chain, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = valid("cost", done.stdout)
    assert (found["length"], found["lift"], found["unknown"]) == (40, "none", [])
    for name in ("read_4k_cpu_s", "read_64k_cpu_s", "read_4m_cpu_s", "memory_bytes", "open_cpu_s", "flush_cpu_s"):
        assert 0 < found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    # Nobody has calibrated here: it says so.
    assert found["parameters"].startswith("shipped for QEMU ")


def test_a_lift_is_beside_the_chain_as_it_is(run, chain, cache):
    found = valid("cost", run("cost", chain, "--json", "--lift", "squash").stdout)
    kept = (cache / "cost" / "host.txt").read_text()
    assert found["read_4k_cpu_s"] < found["without_lift"]["read_4k_cpu_s"]
    told = run("cost", chain, "--lift", "no-check").stdout
    assert "without the check" in told
    assert "CPU of a read of 4 KiB" in told
    # The host's speed was measured once.
    assert (cache / "cost" / "host.txt").read_text() == kept


def test_inspect_says_it_in_a_line(run, chain):
    assert "  foreseen for QEMU " in run("inspect", chain).stdout
    found = valid("inspect", run("inspect", "--json", chain).stdout)
    assert found["cost"]["read_4k_cpu_s"] > 0
    assert json.loads(run("inspect", "--json", chain.with_name("3.qcow2")).stdout)["cost"] is None


def test_plan_says_what_a_read_costs_after_each_lift_and_when_a_copy_pays_off(run, chain):
    plan = valid("plan", run("plan", "--json", chain).stdout)
    choices = {choice["kind"]: choice for choice in plan["choices"]}
    assert choices["none"]["read_4k_cpu_s"] > choices["squash"]["read_4k_cpu_s"] > 0
    assert choices["none"]["pays_off_reads_per_s"] is None
    assert choices["flatten"]["pays_off_reads_per_s"] >= 0
    assert "below" not in plan
    assert "pays off" in run("plan", chain).stdout
    # At 80 columns no word of the first column is broken for the figures beside it.
    narrow = subprocess.run(
        [sys.executable, "-m", "chainlift", "plan", chain],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"},
    ).stdout.splitlines()  # fmt: skip
    assert {line.split(" ")[0] for line in narrow} >= {"none", "index", "squash", "flatten"}


def test_a_qemu_that_is_not_there_is_one_line(run, chain):
    done = run("cost", chain, "--qemu", "debian:nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_calibration_that_cannot_be_read_is_said_and_inspect_and_plan_go_on(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path))
    calibration_file(installed_version() or "none").write_text("{}")
    for verb, said in (("inspect", "40 layers"), ("plan", "recommended: ")):
        done = call(tmp_path, verb, chain)
        assert done.returncode == 0
        assert "no calibration that can be read" in done.stderr
        assert said in done.stdout
    found = valid("plan", call(tmp_path, "plan", "--json", chain).stdout)
    assert (found["cost_parameters"], {choice["read_4k_cpu_s"] for choice in found["choices"]}) == (None, {None})


@pytest.mark.long
def test_a_calibration_takes_the_place_of_what_is_shipped(tmp_path, chain):
    done = call(tmp_path, "calibrate", "--json")
    assert done.returncode == 0
    (found,) = valid("calibrate", done.stdout)["calibrations"]
    assert found["visit_s"] > 0
    cost = valid("cost", call(tmp_path, "cost", chain, "--json").stdout)
    assert cost["parameters"] == found["origin"]
