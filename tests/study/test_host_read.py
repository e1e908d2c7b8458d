"""Host reads: how many requests are made, and that their time is theirs alone."""

import os
from dataclasses import replace

import pytest

from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu
from chainlift.study import host_read as module
from chainlift.study.active_layer import read_through
from chainlift.study.host_probe import HostProbe
from chainlift.study.host_read import HostRead, Pace, Pattern, Settled, host_read, patterns, spread_step
from chainlift.study.plan_file import load_plan

SIZE = 64 << 20
READS = Pattern("4k-strided-d1", 4096, 4096, 1, 2000)


@pytest.fixture
def timed(monkeypatch):
    """A machine on which opening is free, a request takes ``seconds``, and the first ten 0.1 s more in all."""
    asked, seconds = [], []

    def measure(qemu, image, pattern, requests, cache, aio):
        asked.append(requests)
        loading = 0.1 if pattern.warm_up else 0.0
        return HostRead({"wall_s": 9.0, "cpu_user_s": requests * seconds[0] + loading, "cpu_sys_s": 0.0,
                         "requests": requests, "bytes": requests * pattern.size})  # fmt: skip

    monkeypatch.setattr(module, "_measure", measure)
    return asked, seconds


@pytest.mark.parametrize(
    ("request_s", "expected_s", "asked"),
    [
        (1e-7, None, [8, 2000]),  # less than a clock of milliseconds tells
        (1e-2, None, [8, 100]),  # the pilot says what one second is enough for
        (1.0, None, [8]),  # the pilot took longer than there is time: it is the measurement
        (1e-2, 1e-2, [100]),
        (1e-2, 2e-2, [50]),
        (1e-2, 1e-1, [10, 100]),  # foreseen far too much: made again
    ],
)
def test_as_many_requests_are_made_as_the_budget_is_for(timed, request_s, expected_s, asked):
    found, seconds = timed
    seconds.append(request_s)
    host_read(None, "x", READS, cache="writeback", aio="threads", budget_s=1.0, request_s=expected_s)
    assert found == asked


def test_of_reads_past_the_page_cache_the_time_that_passes_is_the_budgets(timed):
    found, seconds = timed
    seconds.append(1e-6)
    host_read(None, "x", READS, cache="none", aio="threads", budget_s=1.0)
    assert found == [8]


def test_what_loading_the_tables_takes_is_in_no_figure_and_a_second_measurement_is_like_the_first(timed):
    asked, seconds = timed
    seconds.append(2**-7)
    pattern = replace(READS, requests=1 << 30, warm_up=10)
    first = host_read(None, "x", pattern, cache="writeback", aio="threads", budget_s=1.0)
    assert asked[0] == 10, "the first ones alone, to be taken off"
    count = asked[-1] - 10
    assert first.metrics["requests"] == count > 50
    assert first.metrics["warm_up_requests"] == 10
    assert first.metrics["bytes"] == count * 4096
    assert first.metrics["cpu_user_s"] == pytest.approx(count * 2**-7)
    asked.clear()
    again = host_read(None, "x", pattern, cache="writeback", aio="threads", budget_s=1.0, settled=first.settled)
    assert asked == [first.settled.requests + 10]
    assert again.metrics["cpu_user_s"] / again.metrics["requests"] == pytest.approx(2**-7)
    assert again.metrics["cpu_user_s"] == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("disk", [256 << 20, 2 << 30, 20 << 30, 50 << 30, 3 * 1000 * 4096], ids="{}".format)
def test_any_number_of_reads_is_spread_over_the_disk_and_none_reaches_past_its_end(disk):
    step = spread_step(disk)
    assert step % 4096 == 0
    assert step <= (1 << 31) - 1, "qemu-img takes an int"
    offsets = [number * step % disk for number in range(400)]
    assert len(set(offsets)) == 400
    assert max(offsets) <= disk - 4096
    for count in (100, 200, 400):
        tenths = [sum(offset * 10 // disk == tenth for offset in offsets[:count]) for tenth in range(10)]
        assert all(0.06 * count <= found <= 0.14 * count for found in tenths), tenths


def test_a_pattern_that_goes_over_the_disk_once_has_no_warm_up():
    plan = load_plan("quick")
    odd = plan.model_copy(update={"chain": plan.chain.model_copy(update={"size": (2 << 30) + 65536})})
    once = next(p for p in patterns(odd) if p.variant == "4m-seq-d1")
    assert (once.requests, once.warm_up) == (512, 0)


@pytest.mark.integration
def test_a_cell_that_is_measured_again_takes_what_it_took_before(tmp_path):
    """What a warm-up took is taken off of reads of the same places: of the disk's data, and not of its other half."""
    image, size = tmp_path / "0.qcow2", 512 << 20
    write_image(image, virtual_size=size, clusters=range(size >> 17), data=lambda _: b"x" * 65536)
    plan = load_plan("quick").model_copy(update={"chain": load_plan("quick").chain.model_copy(update={"size": size})})
    pattern = next(p for p in patterns(plan) if p.variant == "4m-seq-d32")
    qemu = find_qemu("host")
    cpu_s = []
    settled = None
    for _ in range(4):
        found = host_read(qemu, image, pattern, cache="writeback", aio="threads", budget_s=0.2, settled=settled)
        settled = settled or found.settled
        cpu_s.append((found.metrics["cpu_user_s"] + found.metrics["cpu_sys_s"]) / found.metrics["requests"])
    assert min(cpu_s) > 0


def test_the_next_length_is_foreseen_from_the_longest_shorter_one():
    pace, host = Pace(), ("host", "none")
    assert pace.foresee(host, 100) is pace.settled(host, 100) is None
    pace.learn(host, 100, Settled(requests=1000, request_s=1e-3, warm_up=None))
    pace.learn(host, 100, Settled(requests=7, request_s=1.0, warm_up=None))
    assert pace.settled(host, 100).requests == 1000, "what the first measurement has settled stays"
    assert pace.foresee(host, 100) == 1e-3
    assert pace.foresee(host, 200) == pytest.approx(1e-3 * 2**2.5)
    assert pace.foresee(("host", "index"), 200) is pace.foresee(("other", "none"), 200) is None
    assert pace.foresee(host, 50) is None


@pytest.mark.integration
def test_what_the_page_cache_has_lost_is_seen(tmp_path):
    image = tmp_path / "0.qcow2"
    write_image(image, virtual_size=SIZE, clusters=range(SIZE >> 16), data=lambda _: b"x" * 65536)

    def read():
        found = host_read(find_qemu("host"), image, READS, cache="writeback", aio="threads", budget_s=60)
        return found.metrics["storage_bytes"]

    read_through([image])
    assert read() == 0
    with image.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert read() > 0


def test_sequential_reads_are_made_at_the_lengths_that_the_plan_says():
    plan = load_plan("versions")
    lengths = {pattern.variant: HostProbe(pattern).lengths(plan) for pattern in patterns(plan)}
    assert lengths == {
        "4m-seq-d1": (1, 30, 100, 300),
        "64k-seq-d1": (1, 30, 100, 300),
        "4k-strided-d1": plan.lengths,
    }


@pytest.mark.integration
def test_neither_opening_nor_closing_a_chain_is_in_the_time_of_its_requests(tmp_path):
    write_image(tmp_path / "0.qcow2", virtual_size=SIZE, clusters=range(16))
    for number in range(1, 201):
        backing = {"backing_file": f"{number - 1}.qcow2", "backing_format": "qcow2"}
        # All of the disk is in the topmost layer: requests are cheap, only opening and closing know of the others.
        clusters = range(SIZE >> 16) if number == 200 else []
        write_image(tmp_path / f"{number}.qcow2", virtual_size=SIZE, clusters=clusters, **backing)
    qemu, image = find_qemu("host"), tmp_path / "200.qcow2"
    metrics = host_read(qemu, image, READS, cache="writeback", aio="threads", budget_s=60).metrics
    assert metrics["requests"] == 2000
    assert metrics["wall_s"] > 0
    # In user mode alone: what waking threads takes of the kernel grows with what else runs.
    assert 0 < metrics["cpu_user_s"] < metrics["open_cpu_s"]
    assert metrics["open_rss_bytes"] > 5 << 20
