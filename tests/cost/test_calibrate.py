"""Measuring a QEMU that is here, and fitting: the solver finds what made its data."""

import json
from dataclasses import asdict, fields, replace
from importlib.resources import files

import numpy as np
import pytest

from chainlift.cost import predict
from chainlift.cost.calibrate import LEAST_SPREAD, Measured, _is_due, calibrate, fit, foreseen, non_negative
from chainlift.cost.measure import Pacing, Runs, Settled, Span, Taken, measure, settle, with_l2_caches
from chainlift.cost.parameters import Parameters
from chainlift.cost.specimens import Cell, write_index
from chainlift.cost.store import find_parameters, keep, nearest_shipped
from chainlift.errors import InputError, QemuError
from chainlift.host.pace import Pace
from chainlift.qcow2.writer import write_image
from chainlift.qemu.find import find_qemu

KIB, MIB = 1 << 10, 1 << 20
K64 = 64 * KIB


def test_the_solver_finds_unknowns_that_are_not_negative():
    random = np.random.default_rng(1)
    columns, true = random.random((30, 6)), np.array([0.0, 2.0, 0.0, 1.0, 0.5, 3.0])
    assert non_negative(columns, columns @ true) == pytest.approx(true, abs=1e-9)
    # Least squares alone would take a negative one.
    assert non_negative(np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([1.0, -1.0])).tolist() == [1.0, 0.0]


@pytest.fixture
def made(tmp_path, chain_of, shape_at):
    """Cells of chains of 0 to 300 layers, as a QEMU with known parameters would take them."""
    true = replace(nearest_shipped("7.2.0"), near_nodes=300.0)
    chain_of(300)
    found = []
    for number, length in enumerate((0, 3, 10, 30, 100, 200, 300)):
        shape = shape_at(tmp_path / str(length))
        for work, size in (("read", 4 * KIB), ("read", 64 * KIB), ("write", 4 * KIB), ("flush", 4 * KIB)):
            cell = Cell("plain" if number else "one image, 4k", str(length), size, size, work=work)
            resident = int(9e6 + predict(shape, true).memory_bytes.value)
            took = foreseen(cell, shape, true)
            found.append(Measured(cell, shape, took, predict(shape, true).open_cpu_s.value, resident))
    return true, found


def test_a_fit_foresees_what_it_was_fitted_to(made):
    true, cells = made
    found = fit("7.2.0", cells)
    assert [foreseen(m.cell, m.shape, found) for m in cells] == pytest.approx(
        [m.request_cpu_s for m in cells], rel=0.01
    )
    assert found.visit_s == pytest.approx(true.visit_s, rel=0.05)
    # Of one size of clusters alone nobody can tell them from nodes; together they are what they were.
    assert found.node_bytes + K64 * found.node_clusters == pytest.approx(true.node_bytes + K64 * true.node_clusters)
    assert asdict(found.spread) == LEAST_SPREAD


def test_noise_is_in_the_uncertainty(made):
    random = np.random.default_rng(3)
    noisy = [
        Measured(m.cell, m.shape, m.request_cpu_s * random.choice((0.4, 2.5)), m.open_cpu_s, m.resident_bytes)
        for m in made[1]
    ]
    assert fit("7.2.0", noisy).spread.read > LEAST_SPREAD["read"]


def test_a_calibration_is_kept_by_its_build(made, tmp_path, monkeypatch):
    monkeypatch.setenv("CHAINLIFT_CACHE", str(tmp_path / "cache"))
    found = fit("7.2.0 (a build)", made[1])
    path = keep(found)
    assert find_parameters("7.2.0 (a build)") == found
    # Another build of the same version is another QEMU.
    assert "shipped" in find_parameters("7.2.0 (another)", may_measure=False).origin
    path.write_text("{}")
    with pytest.raises(InputError, match="no calibration that can be read"):
        find_parameters("7.2.0 (a build)")


def test_the_schema_of_a_calibration_names_every_parameter():
    text = files("chainlift.schemas").joinpath("calibrate.json").read_text()
    of_one = json.loads(text)["properties"]["calibrations"]["items"]
    assert set(of_one["required"]) == set(of_one["properties"]) == {field.name for field in fields(Parameters)}


def test_an_image_that_takes_long_to_open_is_measured_in_some_rounds_from_first_to_last():
    due = {open_s: [turn for turn in range(1, 8) if _is_due(turn, 8, open_s)] for open_s in (0.01, 0.8, 3.0)}
    assert due == {0.01: [1, 2, 3, 4, 5, 6, 7], 0.8: [2, 3, 5, 6, 7], 3.0: [4, 7]}
    assert [turn for turn in (1, 2) if _is_due(turn, 3, 3.0)] == [2]


def test_the_nearest_release_is_the_one_before():
    versions = ("4.2.0", "5.2.0", "6.0.0", "7.2.9", "9.2.0", "10.0.2", "11.0.0", "12.0.0")
    taken = [nearest_shipped(version).qemu.split(".")[0] for version in versions]
    assert taken == ["5", "5", "5", "7", "7", "10", "10", "11"]


def test_a_qemu_is_measured(any_qemu, chain_of):
    short, cell = chain_of(40), Cell("", "", 4 * KIB, 68 * KIB)
    one = measure(any_qemu, short.with_name("0"), cell, 3000)
    long = measure(any_qemu, short, cell, 3000)
    assert long.work.cpu_s / long.requests > one.work.cpu_s / one.requests > 0
    assert long.resident_bytes > one.resident_bytes > MIB
    assert long.opening.cpu_s > 0
    assert long.work.slowdown is None
    watched = measure(any_qemu, short, cell, 3000, Pace())
    assert watched.work.slowdown >= 1
    assert watched.opening.slowdown >= 1


def test_what_loads_tables_is_not_what_a_request_takes():
    def took(requests, cpu_s):
        return Taken(requests, Span(cpu_s), Span(0.1), MIB)

    # 80 ms for the tables, and 50 µs a request; of each kind one was disturbed.
    runs = Runs([took(16, 0.2), took(20, 0.081)], [took(1000, 0.13), took(1000, 0.2)])
    assert runs.request_cpu_s() == pytest.approx(50e-6)


@pytest.fixture
def paced():
    """Runs of requests of 50 µs and one of 2 ms, in moments that are up to 1.8 times as slow as the fastest."""
    random = np.random.default_rng(4)

    def took(requests, each_s):
        slowdown, opening = random.uniform(1.0, 1.8, 2).tolist()
        work = Span((0.01 + requests * each_s) * slowdown**1.4, slowdown)
        return Taken(requests, work, Span(0.1 * opening**0.8, opening), MIB)

    return [Runs([took(8, s) for _ in range(2)], [took(n, s) for _ in range(6)]) for n, s in ((1000, 5e-5), (99, 2e-3))]


def test_what_slow_moments_took_is_brought_to_the_pace_of_quiet_ones(paced):
    pacing = Pacing.of(runs.work_each for runs in paced)
    assert pacing.power == pytest.approx(1.4)
    seen = sorted(run.work.slowdown for runs in paced for run in runs.many)
    assert seen[0] <= pacing.quiet < seen[len(seen) // 2]
    times = pacing.quiet**1.4
    assert [runs.request_cpu_s(pacing) for runs in paced] == pytest.approx([5e-5 * times, 2e-3 * times])
    opening = Pacing.of(runs.openings for runs in paced)
    assert opening.power == pytest.approx(0.8)
    assert [runs.open_cpu_s(opening) for runs in paced] == pytest.approx([0.1 * opening.quiet**0.8] * 2)
    settled = settle({"fast": paced[0], "slow": paced[1], "never measured": Runs()})
    assert settled == {
        name: Settled(runs.request_cpu_s(pacing), runs.open_cpu_s(opening), MIB)
        for name, runs in (("fast", paced[0]), ("slow", paced[1]))
    }


def test_of_runs_that_nobody_watched_the_second_least_counts(paced):
    unwatched = [
        Runs(*([replace(run, work=Span(run.work.cpu_s), opening=Span(run.opening.cpu_s)) for run in kind]
               for kind in (runs.few, runs.many)))
        for runs in paced
    ]  # fmt: skip
    assert Pacing.of(runs.work_each for runs in unwatched) == Pacing()
    pacing = Pacing.of(runs.work_each for runs in paced)
    for runs in unwatched:
        assert runs.request_cpu_s(pacing) == runs.request_cpu_s()
        assert runs.open_cpu_s(pacing) == sorted(span.cpu_s for span in runs.openings)[1]
    # One run in which the threads happened to be awake; of two it cannot be told which was lucky.
    assert [
        Pacing().typical([Span(s) for s in found], found)
        for found in ([27.0, 13.5, 55.0, 31.5, 37.0], [3.0, 2.0], [5.0])
    ] == [27.0, 2.0, 5.0]


def test_small_caches_reach_every_layer(tmp_path):
    for number in range(3):
        below = {"backing_file": str(number - 1), "backing_format": "qcow2"} if number else {}
        write_image(tmp_path / str(number), virtual_size=64 * MIB, cluster_size=4096, clusters=np.arange(0, 16384, 512),
                    **below)  # fmt: skip
    qemu, name = find_qemu("host", need=["img"]), with_l2_caches(tmp_path / "2", 8192)
    assert name.count('"l2-cache-size": 8192') == 3
    # Every read is in the next of 32 tables, of which the caches hold two.
    cell = Cell("", "", 4 * KIB, 2 * MIB + 4 * KIB, l2_cache_bytes=8192)
    few = measure(qemu, tmp_path / "2", cell, 3000).work.cpu_s
    assert few > measure(qemu, tmp_path / "2", Cell("", "", cell.size, cell.step), 3000).work.cpu_s


def test_an_index_of_extents_is_read(any_qemu, tmp_path):
    write_index(tmp_path / "index", 5, np.zeros(4 * MIB, dtype=np.uint8))
    # 5.2 and 7.2 with io_uring hang in a read past a file's end.
    assert (tmp_path / "index/0.vmdk").stat().st_size % 512 == 0
    assert measure(any_qemu, tmp_path / "index/1.qcow2", Cell("", "", 4 * KIB, 68 * KIB), 5000).work.cpu_s > 0


def test_an_image_that_does_not_open_is_an_error(tmp_path):
    (tmp_path / "empty").write_bytes(b"no qcow2 image")
    # Not with io_uring: 5.2 and 7.2 hang in a read past a file's end.
    with pytest.raises(QemuError):
        measure(find_qemu("host", need=["img"]), tmp_path / "empty", Cell("", "", 4096, 4096, aio="threads"), 10)


@pytest.mark.long
def test_a_calibration_of_each_release(any_qemu, chain_of, shape_at):
    found = calibrate(any_qemu)
    assert (found.qemu, "calibrated on this host" in found.origin) == (any_qemu.version_text, True)
    long = chain_of(200)
    one, many = (predict(shape_at(path), found).read_4k_cpu_s for path in (long.with_name("0"), long))
    assert 0 < one.low < one.value < one.high
    assert many.value > 5 * one.value
