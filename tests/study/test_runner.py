import csv
import shutil
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from tests.support.json_schemas import valid
from tests.support.study import OFFLINE

from chainlift._version import __version__
from chainlift.cost.store import read_parameters
from chainlift.errors import InputError, PlanError
from chainlift.qemu.find import find_qemu
from chainlift.report import document, write_report
from chainlift.results.metrics import METRICS
from chainlift.results.store import PARAMETERS, ResultDirectory
from chainlift.study.active_layer import ActiveLayers, scratch_directory
from chainlift.study.cells import cells_of
from chainlift.study.chain_store import ChainDirectory
from chainlift.study.guest_probes import fio_metrics
from chainlift.study.plan_file import load_plan, parse_plan
from chainlift.study.probe import probes_of
from chainlift.study.progress import Silent
from chainlift.study.runner import run_study

VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"


def test_a_repeat_has_every_cell_once_in_an_order_of_its_own_that_the_seed_decides():
    plan = load_plan("seed")
    # Profiles are made once.
    plan = plan.model_copy(update={"tests": tuple(test for test in plan.tests if test != "profile")})
    cells = cells_of(plan)
    assert [cell.repeat for cell in cells] == sorted(cell.repeat for cell in cells)
    rounds = [[cell.work for cell in cells if cell.repeat == repeat] for repeat in range(3)]
    assert sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert rounds[0] != rounds[1] != rounds[2]
    lengths = [cell.length for cell in cells if cell.repeat == 0]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))

    def order(seed):
        other = plan.model_copy(update={"seed": seed})
        return [(cell.repeat, *cell.work) for cell in cells_of(other)]

    assert order(plan.seed) == [(cell.repeat, *cell.work) for cell in cells]
    assert order(plan.seed + 1) != order(plan.seed)


def test_small_host_reads_with_the_fewest_in_flight_are_measured_most_often():
    plan = load_plan("quick")
    times = Counter(work[1] for cell in cells_of(plan) for work in cell.work if work[0] == "host")
    cells = len(plan.lengths) + 2
    assert times["4k-strided-d1"] == 12 * cells
    assert times["4k-strided-d32"] == 2 * cells
    assert times["64k-seq-d1"] == 2 * 4


def test_every_sample_that_a_plan_asks_for_is_taken_once():
    plan = load_plan("seed")
    names = Counter(name for cell in cells_of(plan) for name in cell.sample_names)
    assert set(names.values()) == {1}
    # read, random, six host patterns, stream, two of memory; small host reads more often; two profiles at both ends.
    assert len(names) == 6 * 3 * 11 + 6 * 9 + 2 * 2


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
def test_a_study_is_extended_in_its_directory_and_two_at_once_refuse_each_other(tmp_path):
    text = OFFLINE.format(chains=tmp_path / "chains").replace("repeats = 2", "repeats = 1")
    first = run_study(parse_plan(text), tmp_path / "out", Silent())
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    more = parse_plan(text.replace("repeats = 1", "repeats = 2").replace("[1, 3]", "[1, 2, 3]"))
    with first.lock(), pytest.raises(InputError, match="another study writes its results there"):
        run_study(more, tmp_path / "out", Silent())
    seen = []

    class Watching(Silent):
        def step(self, done, note=""):
            with (tmp_path / "out/results.csv").open() as stream:
                seen.append(len({tuple(row[:7]) for row in csv.reader(stream)}) - 1)
            seen.append(ResultDirectory(tmp_path / "out").state().is_complete)

    results = run_study(more, tmp_path / "out", Watching())
    assert (tmp_path / "out/samples.jsonl").read_bytes().startswith(before)
    assert len(results.samples()) == 3 * 2 * 3
    assert "repeats = 2" in results.plan_text()
    assert seen[:-2:2] == list(range(6, 18)), "each sample is in the table before the next is taken"
    assert not any(seen[1:-2:2])
    assert results.state().is_complete
    assert {sample.chainlift for sample in results.samples()} == {__version__}
    with pytest.raises(InputError, match="holds another plan's results"):
        run_study(parse_plan(text), tmp_path / "out", Silent())


def test_limits_are_of_the_chain_itself():
    text = OFFLINE.format(chains="x").replace('["host"]', '["limits"]')
    both = parse_plan(text.replace("repeats = 2", 'repeats = 1\nlift = ["none", "index"]'))
    assert [cell.lift for cell in cells_of(both)] == ["none"]
    alone = parse_plan(text.replace("repeats = 2", 'repeats = 1\nlift = ["index"]'))
    with pytest.raises(PlanError, match=r'"limits" is of the chain itself; add "none" to lift'):
        probes_of(alone)


@pytest.mark.integration
def test_a_study_that_continues_takes_only_what_is_missing(tmp_path):
    plan = parse_plan(OFFLINE.format(chains=tmp_path / "chains"))

    class Interrupting(Silent):
        def step(self, done, note=""):
            if done == 3 and "at length" in note:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(plan, tmp_path / "out", Interrupting())
    before = (tmp_path / "out/samples.jsonl").read_bytes()
    assert before.count(b"\n") == 3
    assert (tmp_path / "out/results.csv").exists()
    warned = document([tmp_path / "out"]).warnings
    assert any("Incomplete: 3 of 12 measurements are made" in text for text in warned)
    assert [path.name for path in (tmp_path / "chains/scratch").iterdir()] == ["lock"]
    results = run_study(plan, tmp_path / "out", Silent())
    after = (tmp_path / "out/samples.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(results.samples()) == after.count(b"\n") == 2 * 2 * 3
    environment = results.environment()
    assert environment.guest is None
    assert environment.qemus[0].has_symbols in (True, False)
    sums = subprocess.run(["sha256sum", shutil.which("qemu-img")], capture_output=True, text=True, check=True).stdout
    assert environment.qemus[0].sha256["qemu-img"] == sums.split()[0]
    assert len(environment.chain_sha256) == 64
    assert list(environment.mitigations) == sorted(p.name for p in Path(VULNERABILITIES).glob("*"))
    assert any("perf" in limit for limit in environment.limits) == (shutil.which("perf") is None)
    assert results.environment().qemus[0].accelerator_reason == "no guest boots in this study"
    # What the model knew when the study began stands beside what was measured, also when it is drawn elsewhere.
    foreseen = read_parameters(results.path / PARAMETERS)
    assert {q.label: q.version for q in environment.qemus}.keys() == foreseen.keys()
    assert "host" in foreseen["host"].origin
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
@pytest.mark.interrupts
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
    document = output[output.index("{\n") : output.rindex("}") + 1]  # between what standard error says
    assert valid("study run", document)["runs"]
    assert (out / "samples.jsonl").read_bytes().startswith(before)
    assert len(ResultDirectory(out).samples()) == 5
    assert not list((tmp_path / "chains/scratch").glob("study-*"))
    assert (out / "report.html").exists()
