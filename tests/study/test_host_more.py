"""Host requests beside reads from the page cache."""

import csv
import ctypes
import mmap

import pytest
from tests.support.study import OFFLINE

from chainlift.report import document
from chainlift.study.active_layer import read_through
from chainlift.study.cells import cells_of
from chainlift.study.host_more import write_histogram
from chainlift.study.page_cache import drop, files_of
from chainlift.study.plan_file import parse_plan
from chainlift.study.progress import Silent
from chainlift.study.runner import run_study

ALSO = 'depths = [1]\nalso = ["cold", "write", "single", "mixed"]\nrequests = 50\n'


def plan_of(tmp_path, lift='["none"]'):
    text = OFFLINE.format(chains=tmp_path / "chains").replace("repeats = 2", f"repeats = 1\nlift = {lift}")
    return parse_plan(text.replace("depths = [1]\n", ALSO))


@pytest.mark.integration
def test_cold_reads_writes_and_single_requests_are_measured_and_single_requests_have_latencies(tmp_path):
    plan = plan_of(tmp_path, '["none", "index"]')
    results = run_study(plan, tmp_path / "out", Silent())
    samples = {(s.variant, s.lift, s.length): s for s in results.samples() if s.metrics}
    assert all(s.outcome == "ok" for s in results.samples())
    assert len(results.samples()) == len(cells_of(plan)) == 2 * 2 * 7
    for lift in ("none", "index"):
        assert samples["4k-cold-d1", lift, 3].metrics["requests"] == 50
        single = samples["4k-single-d1", lift, 3].metrics
        assert single["requests"] == 50
        assert 0 < single["latency_p50_s"] <= single["latency_p95_s"] <= single["latency_p99_s"]
        assert single["latency_p99_s"] <= single["latency_max_s"] < single["wall_s"]
    (histogram,) = (tmp_path / "out/latencies").glob("4k-mixed70-d1--host--3-layers--0.csv")
    with histogram.open() as stream:
        rows = [(float(row["at_most_s"]), int(row["requests"])) for row in csv.DictReader(stream)]
    assert rows == sorted(rows)
    assert sum(number for _, number in rows) == 50
    titles = [table.title for table in document([results.path]).tables]
    assert {
        "Host read: 4 KiB cold, depth 1, time a request", "Host read: 4 KiB written, depth 1, time a request",
        "Host read: 4 KiB one by one, depth 1, time a request",
        "Host read: 4 KiB one by one, 70 % reads, depth 1, time a request",
    } <= set(titles)  # fmt: skip
    assert "strided" in titles[0], "what is read from the page cache comes first"


@pytest.mark.integration
def test_a_write_leaves_the_chain_as_it_was_and_finds_it_so_each_time(tmp_path):
    plan = plan_of(tmp_path).model_copy(update={"repeats": 2, "lengths": (3,)})
    results = run_study(plan, tmp_path / "out", Silent())
    requests = {s.metrics["requests"] for s in results.samples() if s.variant == "4k-write-d1"}
    assert requests == {50}
    chain = next((tmp_path / "chains").glob("offline-3-*"))
    assert files_of(chain / "layer-0003.qcow2") == {
        *(chain / f"layer-000{n}.qcow2" for n in (1, 2, 3)), chain / "base.qcow2"
    }  # fmt: skip


def test_what_is_dropped_is_out_of_the_page_cache_and_comes_back(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))

    def cached():
        # A read with RWF_NOWAIT begins to read ahead, and a fast disk is done before it returns.
        pages = (ctypes.c_ubyte * ((1 << 20) // mmap.PAGESIZE))()
        with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
            address = ctypes.addressof(first := ctypes.c_char.from_buffer(mapped))
            assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20), pages) == 0
            del first
        return {page & 1 for page in pages}

    assert cached() == {1}
    drop([path])
    assert cached() == {0}
    read_through([path])
    assert cached() == {1}


def test_a_histogram_puts_each_request_under_the_latency_that_it_did_not_pass(tmp_path):
    taken = [1e-6, 2e-6, 2.01e-6, 0.5]
    path = write_histogram(tmp_path, "a b/c", taken)
    assert path == tmp_path / "latencies/a_b_c.csv"
    with path.open() as stream:
        bounds = [float(row["at_most_s"]) for row in csv.DictReader(stream) for _ in range(int(row["requests"]))]
    assert all(t <= b * 1.001 and b < t * 1.1 for t, b in zip(sorted(taken), bounds, strict=True))
