import json
import signal
import subprocess

import pytest
from tests.support.study import LIVE

from chainlift.study.build_live import fio_arguments
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.plan_file import load_plan, parse_plan


def test_the_pace_speeds_the_rate_up_and_nothing_else():
    spec = load_plan("seed").chain
    slow = fio_arguments(spec, "/srv", seed=0)
    fast = fio_arguments(spec.model_copy(update={"pace": 50.0}), "/srv", seed=0)
    assert [pair for pair in zip(slow, fast, strict=True) if pair[0] != pair[1]] == [
        ("--rate=,54272", "--rate=,2713600")
    ]


def test_a_build_that_continues_writes_elsewhere():
    spec = load_plan("seed").chain
    assert fio_arguments(spec, "/srv", seed=0) != fio_arguments(spec, "/srv", seed=7)


@pytest.mark.integration
def test_every_snapshot_reads_what_the_disk_held_when_it_was_taken(live_chain):
    for number in range(1, 6):
        compared = subprocess.run(
            ["qemu-img", "compare", "-f", "raw", "-F", "qcow2",
             live_chain.path / f"seen-{number}.raw", live_chain.layer(number - 1)],
            capture_output=True,
            text=True,
        )  # fmt: skip
        assert compared.returncode == 0, compared.stdout


@pytest.mark.integration
def test_a_file_written_before_a_snapshot_is_what_that_snapshot_has(live_chain, tmp_path):
    for number in range(1, 6):
        raw = tmp_path / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", live_chain.layer(number - 1), raw], check=True)
        # The snapshot has the journal of a mounted file system: recover it, as a guest that boots on it does.
        assert subprocess.run(["e2fsck", "-f", "-y", raw], capture_output=True).returncode in (0, 1)
        shown = subprocess.run(["debugfs", "-R", "cat /marker", raw], capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == f"before snapshot {number}"


@pytest.mark.integration
def test_the_layers_are_a_chain_that_qemu_finds_clean(live_chain):
    info = subprocess.run(
        ["qemu-img", "info", "--backing-chain", "--output=json", live_chain.layer(5)], check=True, capture_output=True
    )
    assert [entry["filename"] for entry in json.loads(info.stdout)] == [
        str(live_chain.layer(n)) for n in range(5, -1, -1)
    ]
    for number in range(6):
        subprocess.run(["qemu-img", "check", "-q", live_chain.layer(number)], check=True)
    manifest = live_chain.manifest()
    assert manifest.shape.length == 5
    assert manifest.resumed == 0
    live_chain.check_unchanged(manifest)


@pytest.mark.integration
@pytest.mark.interrupts
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_a_build_that_was_ended_in_the_middle_continues(number, tmp_path, command):
    plan_file = tmp_path / "plan.toml"
    plan_file.write_text(LIVE.format(chains=tmp_path / "chains").replace("pace = 20", "pace = 10"))
    plan = parse_plan(plan_file.read_text())
    chain = ChainDirectory(tmp_path / "chains" / plan.chain_key())
    first = command("study", "build", plan_file, marker=tmp_path)
    first.wait_until(lambda: len(chain.snapshots()) >= 2)
    assert first.programs()
    assert first.end(number) == (130 if number == signal.SIGINT else -number)
    noted = chain.snapshots()
    assert 2 <= len(noted) < 5
    below = {n: chain.layer(n).read_bytes() for n in range(len(noted))}

    second = command("study", "build", plan_file, marker=tmp_path)
    output, _ = second.process.communicate(timeout=120)
    assert second.process.returncode == 0, output
    assert f"continuing after snapshot {len(noted)} of 5" in output
    assert not second.programs()
    manifest = chain.manifest()
    assert manifest.shape.length == 5
    assert manifest.resumed == 1
    for n, content in below.items():
        assert chain.layer(n).read_bytes() == content
    for n in range(len(noted), 6):
        subprocess.run(["qemu-img", "check", "-q", chain.layer(n)], check=True)

    third = command("study", "build", plan_file, marker=tmp_path)
    assert third.process.wait(60) == 0
    assert chain.manifest() == manifest
