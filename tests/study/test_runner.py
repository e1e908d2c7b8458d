import csv
import signal
import subprocess
from collections import Counter

import pytest

from chainlift.errors import InputError, PlanError
from chainlift.qemu.binary import find_qemu
from chainlift.report import write_report
from chainlift.results.metrics import METRICS
from chainlift.results.store import ResultDirectory
from chainlift.study.active_layer import ActiveLayers, scratch_directory
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.guest_probes import fio_metrics
from chainlift.study.plan import load_plan, parse_plan
from chainlift.study.probe import probes_of
from chainlift.study.progress import Silent
from chainlift.study.runner import cells_of, run_study

OFFLINE = """
name = "offline"
lengths = [1, 3]
tests = ["host"]
repeats = 2
accelerator = "tcg"
chains = "{chains}"
[chain]
build = "offline"
length = 3
size = "256M"
[chain.workload]
size = "32M"
[host_read]
max_requests = 200
max_bytes = "16M"
depths = [1]
"""


def test_repeats_are_interleaved_over_lengths_and_not_run_in_blocks():
    plan = load_plan("seed")
    cells = cells_of(plan, probes_of(plan))
    seen = [(cell.repeat, cell.length) for cell in cells]
    runs = [key for number, key in enumerate(seen) if number == 0 or seen[number - 1] != key]
    up = [1, 20, 50, 100, 200, 300]
    assert runs == [(0, n) for n in up] + [(1, n) for n in reversed(up)] + [(2, n) for n in up]


def test_every_sample_that_a_plan_asks_for_is_taken_once():
    plan = load_plan("seed")
    names = Counter(name for cell in cells_of(plan, probes_of(plan)) for name in cell.sample_names)
    assert set(names.values()) == {1}
    # read, random, six host patterns, stream, two of memory.
    assert len(names) == 6 * 3 * 11


@pytest.mark.integration
def test_a_lifted_disk_is_measured_beside_the_plain_one(tmp_path):
    text = OFFLINE.format(chains=tmp_path / "chains").replace(
        "repeats = 2", 'repeats = 1\nlift = ["none", "index", "squash"]\nlift_lengths = [3]'
    )
    plan = parse_plan(text)
    results = run_study(plan, tmp_path / "out", Silent())
    assert {(s.lift, s.length, s.outcome) for s in results.samples()} == {
        ("none", 1, "ok"), ("none", 3, "ok"), ("index", 3, "ok"), ("squash", 3, "ok")
    }  # fmt: skip
    chain = ChainDirectory(tmp_path / "chains" / plan.chain_key())
    chain.check_unchanged(chain.manifest())
    # What was measured reads as the layer does.
    with scratch_directory(tmp_path / "chains") as scratch:
        layers = ActiveLayers(chain, scratch)
        for lift in ("none", "index", "squash"):
            for _ in range(2):
                with layers.copy(find_qemu(), 3, lift) as image:
                    subprocess.run(["qemu-img", "compare", "-s", image, chain.layer(3)], check=True)


def test_one_run_serves_the_read_test_and_the_memory_test():
    plan = parse_plan(OFFLINE.format(chains="x").replace('["host"]', '["memory", "read"]'))
    names = [name for probe in probes_of(plan) for name in probe.names]
    assert sorted(names) == [("memory", "boot-halt"), ("memory", "boot-read-halt"), ("read", "")]


def test_fios_figures_are_read_and_noise_before_them_is_not_minded():
    document = """fio: some warning
    {"jobs": [{"read": {"iops": 1085.5, "bw_bytes": 17784832, "runtime": 1001, "clat_ns":
      {"percentile": {"50.000000": 36096, "95.000000": 2736128, "99.000000": 11337728}}}}]}"""
    assert fio_metrics(document) == {
        "iops": 1085.5,
        "bytes_per_s": 17784832.0,
        "latency_p50_s": pytest.approx(36.096e-6),
        "latency_p95_s": pytest.approx(2.736128e-3),
        "latency_p99_s": pytest.approx(11.337728e-3),
        "duration_s": 1.001,
    }


@pytest.mark.integration
def test_too_little_space_is_refused_before_anything_is_written(tmp_path):
    text = OFFLINE.format(chains=tmp_path / "chains").replace('"256M"', '"60000G"').replace('"32M"', '"50000G"')
    with pytest.raises(InputError, match=r"the plan offline needs about .* TiB free, there are"):
        run_study(parse_plan(text), tmp_path / "out", Silent())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_another_plans_directory_is_refused_before_a_chain_is_built(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/plan.toml").write_text('name = "other"\n')
    with pytest.raises(InputError, match="holds another plan's results"):
        run_study(parse_plan(OFFLINE.format(chains=tmp_path / "chains")), tmp_path / "out", Silent())
    assert not list((tmp_path / "chains").glob("*/*.qcow2"))


def test_a_test_that_is_not_there_is_refused():
    plan = parse_plan(OFFLINE.format(chains="x")).model_copy(update={"tests": ("host", "nothing")})
    with pytest.raises(PlanError, match=r"there is no test 'nothing'; there are .*host.*memory"):
        probes_of(plan)


@pytest.mark.integration
def test_a_study_that_continues_takes_only_what_is_missing(tmp_path):
    plan = parse_plan(OFFLINE.format(chains=tmp_path / "chains"))

    class Interrupting(Silent):
        def step(self, done, note=""):
            if "at length 3" in note:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, tmp_path / "out", Interrupting())
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    assert before.count(b"\n") == 3
    assert [path.name for path in (tmp_path / "chains/scratch").iterdir()] == ["lock"]
    results = run_study(plan, tmp_path / "out", Silent())
    after = (tmp_path / "out/samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(results.samples()) == after.count(b"\n") == 2 * 2 * 3
    assert results.environment().guest is None
    assert results.environment().qemus[0].accelerator_reason == "no guest boots in this study"
    run_study(plan, tmp_path / "out", Silent())
    assert (tmp_path / "out/samples.jsonl").read_bytes() == after


@pytest.mark.integration
def test_a_qemu_that_crashes_is_a_result_and_is_not_tried_again(tmp_path):
    build = tmp_path / "build"
    build.mkdir()
    for name in ("qemu-system-x86_64", "qemu-io"):
        (build / name).write_text(f'#!/bin/sh\nexec {name} "$@"\n')
    (build / "qemu-img").write_text(
        '#!/bin/sh\ncase "$1 $*" in bench*"-s 4096 "*) kill -SEGV $$;; esac\nexec /usr/bin/qemu-img "$@"\n'
    )
    for path in build.iterdir():
        path.chmod(0o755)
    text = OFFLINE.format(chains=tmp_path / "chains").replace("repeats = 2", f'repeats = 2\nqemu = ["host", "{build}"]')
    results = run_study(parse_plan(text), tmp_path / "out", Silent())
    crashed = [sample for sample in results.samples() if sample.outcome == "crashed"]
    assert sorted((s.qemu, s.variant, s.length, s.repeat, s.signal) for s in crashed) == [
        (str(build), "4k-strided-d1", 1, 0, 11),
        (str(build), "4k-strided-d1", 3, 0, 11),
    ]
    assert crashed[0].detail == "qemu-img ended by signal 11 (SIGSEGV) when it opened the chain"
    everything = 2 * 2 * 3 * 2
    assert len(results.samples()) == everything - len(crashed)


@pytest.mark.integration
def test_layers_on_different_file_systems_stop_the_study(tmp_path):
    plan = parse_plan(OFFLINE.format(chains=tmp_path / "chains"))
    run_study(plan, tmp_path / "first", Silent())
    chain = ChainDirectory(tmp_path / "chains" / plan.chain_key())
    other = subprocess.run(["mktemp", "-p", "/dev/shm"], check=True, capture_output=True, text=True).stdout.strip()
    try:
        subprocess.run(["cp", "--preserve=all", chain.layer(0), other], check=True)
        chain.layer(0).unlink()
        chain.layer(0).symlink_to(other)
        with pytest.raises(InputError, match=r"base\.qcow2 lies on tmpfs on \S+ and layer-0001\.qcow2 on \S+ on"):
            run_study(plan, tmp_path / "second", Silent())
    finally:
        subprocess.run(["rm", other], check=True)


@pytest.mark.integration
def test_a_changed_layer_stops_the_study(tmp_path):
    plan = parse_plan(OFFLINE.format(chains=tmp_path / "chains"))
    run_study(plan, tmp_path / "first", Silent())
    chain = ChainDirectory(tmp_path / "chains" / plan.chain_key())
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 64k", chain.layer(3)], check=True, capture_output=True)
    with pytest.raises(InputError, match=r"layer-0003\.qcow2: this layer has changed since it was built"):
        run_study(plan, tmp_path / "second", Silent())


@pytest.mark.integration
def test_every_test_gives_its_figures_at_both_ends_of_a_live_chain(live_plan, live_chain, tmp_path):
    results = run_study(live_plan, tmp_path / "out", Silent())
    samples = {(s.test, s.variant, s.length): s for s in results.samples()}
    variants = [("host", v) for v in ("4m-seq-d1", "64k-seq-d1", "4k-strided-d1")]
    variants += [("read", ""), ("stream", ""), ("memory", "boot-halt"), ("memory", "boot-read-halt")]
    assert set(samples) == {(*name, length) for name in variants for length in (1, 5)}
    assert all(s.outcome == "ok" for s in samples.values())
    assert all(s.metrics.keys() <= METRICS[s.test].keys() for s in samples.values())
    for length in (1, 5):
        read = samples["read", "", length].metrics
        assert read["bytes"] == live_plan.chain.size
        # An emulated CPU reads some gigabytes a second at the very best; dd's own figure is not the longer one.
        assert read["wall_s"] > 0.02
        assert 0 < read["guest_s"] <= read["wall_s"] + 0.02
        assert samples["stream", "", length].metrics["bytes"] == live_plan.chain.size
        for variant in ("boot-halt", "boot-read-halt"):
            memory = samples["memory", variant, length].metrics
            assert memory["peak_rss_without_guest_bytes"] < memory["peak_rss_bytes"]
    # Reading the whole disk touches guest memory that booting does not.
    with (tmp_path / "out/results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["test"], row["variant"], int(row["length"])) for row in rows} == set(samples)
    environment = results.environment()
    assert environment.qemus[0].accelerator == "tcg"
    assert [place.path for place in environment.files] == ["base.qcow2 ... throw-away active layers"]
    assert results.chain() == live_chain.manifest().shape
    live_chain.check_unchanged(live_chain.manifest())
    page = write_report([results.path])
    assert page.stat().st_size > 10_000


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill-9"])
def test_a_measurement_that_was_ended_in_the_middle_continues(number, tmp_path, command):
    plan_file = tmp_path / "plan.toml"
    text = OFFLINE.format(chains=tmp_path / "chains").replace('["host"]', '["host", "memory"]')
    text = (
        text.replace("[1, 3]", "[3]").replace("repeats = 2", "repeats = 1") + '\n[guest]\nmemory = "512M"\nvcpus = 1\n'
    )
    plan_file.write_text(text)
    out = tmp_path / "out"
    first = command("study", "run", plan_file, "--out", out, marker=tmp_path / "chains")
    # The guest that boots for the memory test: its command line names the throw-away active layer.
    first.wait_until(lambda: (out / "samples.jsonl").exists() and len(ResultDirectory(out).samples()) == 3)
    first.wait_until(first.programs)
    assert list((tmp_path / "chains/scratch").glob("study-*/run-*/active.qcow2"))
    assert first.end(number) == (130 if number == signal.SIGINT else -number)
    left = [path.name for path in (tmp_path / "chains/scratch").glob("study-*")]
    assert len(left) == (0 if number == signal.SIGINT else 1)
    before = (out / "samples.jsonl").read_bytes()

    second = command("study", "run", plan_file, "--out", out, "--json", marker=tmp_path / "chains")
    output, _ = second.process.communicate(timeout=120)
    assert second.process.returncode == 0, output
    assert (out / "samples.jsonl").read_bytes().startswith(before)
    assert len(ResultDirectory(out).samples()) == 5
    assert not list((tmp_path / "chains/scratch").glob("study-*"))
    assert (out / "report.html").exists()
