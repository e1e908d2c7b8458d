"""Host reads: how many requests are made, and that their time is theirs alone."""

import pytest

from chainlift.qcow2.writer import write_image
from chainlift.qemu.binary import find_qemu
from chainlift.study import host_read as module
from chainlift.study.host_probe import HostProbe
from chainlift.study.host_read import HostRead, Pace, Pattern, host_read, patterns
from chainlift.study.plan import load_plan

SIZE = 64 << 20
READS = Pattern("4k-strided-d1", 4096, 4096, 1, 2000)


@pytest.fixture
def timed(monkeypatch):
    """A machine on which opening is free and a request takes as long as is put in ``seconds``."""
    asked, seconds = [], []

    def measure(qemu, image, pattern, requests, cache, aio):
        asked.append(requests)
        return HostRead({"wall_s": requests * seconds[0], "requests": requests})

    monkeypatch.setattr(module, "_measure", measure)
    return asked, seconds


@pytest.mark.parametrize(
    ("request_s", "expected_s", "asked"),
    [
        (1e-6, None, [8, 2000]),
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


def test_the_next_length_is_foreseen_from_the_longest_shorter_one():
    pace = Pace()
    assert pace.foresee("host", "none", 100) is None
    pace.learn("host", "none", 100, {"wall_s": 1.0, "requests": 1000})
    assert pace.foresee("host", "none", 100) == 1e-3
    assert pace.foresee("host", "none", 200) == pytest.approx(1e-3 * 2**2.5)
    assert pace.foresee("host", "index", 200) is pace.foresee("other", "none", 200) is None
    assert pace.foresee("host", "none", 50) is None


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
