"""The tests of boot time and RocksDB, and what db_bench prints."""

import pytest

from chainlift.errors import GuestError, PlanError
from chainlift.report import write_report
from chainlift.study.plan_file import load_plan, parse_plan
from chainlift.study.progress import Silent
from chainlift.study.rocksdb import database_bytes, db_bench_metrics
from chainlift.study.runner import run_study
from chainlift.study.space import base_bytes

#: db_bench 7.8.3 of Debian 12, shortened.
SAID = """\
Set seed to 1701140000 because --seed was 0
RocksDB:    version 7.8.3
Keys:       16 bytes each (+ 0 bytes user-defined timestamp)
Entries:    5000
DB path: [/srv/rocksdb]
readrandom   :      51.203 micros/op 19530 ops/sec 2.000 seconds 39062 operations;   19.4 MB/s (39062 of 39062 found)

Microseconds per read:
Count: 39062 Average: 51.2029  StdDev: 33.45
Min: 20  Median: 47.1107  Max: 1985
Percentiles: P50: 47.11 P75: 58.30 P99: 147.72 P99.9: 337.10 P99.99: 1189.38
"""


def test_the_figures_of_db_bench_are_read():
    assert db_bench_metrics(SAID) == {
        "ops_per_s": 19530.0,
        "operations": 39062.0,
        "latency_p50_s": pytest.approx(47.11e-6),
        "latency_p99_s": pytest.approx(147.72e-6),
    }


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("", "did not give its figures"),
        (SAID.replace("Percentiles", "Percentile").replace("P50:", "p50:"), "did not give its figures"),
        (SAID.replace("39062 of 39062", "20000 of 39062"), "found 20000 of 39062 keys"),
    ],
)
def test_figures_that_are_not_there_or_of_another_database_are_refused(said, problem):
    with pytest.raises(GuestError, match=problem):
        db_bench_metrics(said)


PLAN = """
name = "p"
lengths = [1, 3]
tests = ["boot", "rocksdb"]
repeats = 1
accelerator = "tcg"
chains = "{chains}"
[guest]
kind = "debian"
memory = "512M"
vcpus = 1
boot_deadline_s = 900
[chain]
length = 3
size = "2G"
pace = 20
rocksdb_keys = 2000
[chain.workload]
rw = "randwrite"
size = "32M"
[random]
duration_s = 1
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("rocksdb_keys = 2000", "", "say how many keys in chain.rocksdb_keys"),
        ('kind = "debian"', 'kind = "micro"', 'needs guest.kind "debian"'),
        ("[chain]\n", '[chain]\nbuild = "offline"\n', 'chain.rocksdb_keys: needs chain.build "live"'),
    ],
)
def test_a_plan_that_cannot_have_a_database_is_refused(before, after, said):
    with pytest.raises(PlanError, match=said):
        parse_plan(PLAN.replace(before, after))


def test_a_database_is_another_chain_and_takes_its_space():
    plan = parse_plan(PLAN.replace('size = "2G"', 'size = "20G"'))
    without = plan.model_copy(update={"chain": plan.chain.model_copy(update={"rocksdb_keys": 0})})
    assert plan.chain_key() != without.chain_key()
    assert base_bytes(plan) == base_bytes(without) + database_bytes(2000)
    # A plan of before has the key that it had.
    assert load_plan("seed").chain_key() == "live-300-97881f521233"


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.needs("apt")
def test_a_debian_guest_boots_and_reads_its_database(tmp_path):
    results = run_study(parse_plan(PLAN.format(chains=tmp_path / "chains")), tmp_path / "out", Silent())
    samples = {(s.test, s.length): s for s in results.samples()}
    assert {s.outcome for s in samples.values()} == {"ok"}
    assert set(samples) == {("boot", 1), ("boot", 3), ("rocksdb", 1), ("rocksdb", 3)}
    booted = samples["boot", 3].metrics
    assert 0 < booted["open_s"] < booted["wall_s"]
    assert samples["rocksdb", 3].metrics["operations"] > 0
    assert write_report([results.path]).exists()
